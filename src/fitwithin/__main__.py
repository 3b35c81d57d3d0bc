"""The command line's door: ``fitwithin``, and ``python -m fitwithin``."""

from fitwithin import files


def main() -> None:
    """Run the command line. Bytecode comes first: what is imported is most of a short command's time."""
    files.keep_bytecode()
    from fitwithin.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
