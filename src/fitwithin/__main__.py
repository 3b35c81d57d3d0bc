"""The command line's door: ``fitwithin``, and ``python -m fitwithin``."""

import os
import sys
from contextlib import suppress

from fitwithin import files


def main() -> None:
    """Run the command line. Bytecode comes first: what is imported is most of a short command's time."""
    _open_streams()
    try:
        os.getcwd()
    except OSError:  # oneMKL would end the process
        sys.stderr.write("fitwithin: the working folder is gone; change into one that is there\n")
        sys.exit(2)
    files.keep_bytecode()
    from fitwithin.cli import main as cli

    try:
        cli.main()
    except SystemExit as ended:
        _leave(ended.code)
        raise


def _leave(code: object) -> None:
    """End the process here if it has imported torch: to take that apart takes Python a second, of 4.4 for a prediction
    of some pictures (two cores), and nothing is left to be done."""
    if "torch" not in sys.modules or not (code is None or isinstance(code, int)):
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # whoever read it is gone: Python says so in its own way
        return
    os._exit(code or 0)


def _open_streams() -> None:
    """Open stdin, stdout and stderr where the caller has closed them, and let no character fail to be printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
