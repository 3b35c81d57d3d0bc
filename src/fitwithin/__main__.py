"""The command line's door: ``fitwithin``, and ``python -m fitwithin``."""

from fitwithin import bytecode


def main() -> None:
    """Run the command line. What it imports is most of a short command's time: its bytecode is seen to first."""
    bytecode.keep()
    from fitwithin.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
