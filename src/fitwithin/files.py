"""Where things may be written: checked before anything is spent, and left as they were if nothing came of it. Files are
put there whole."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fitwithin.errors import RunFolderError

#: What a file's name ends with while it is written.
NEW = ".new"


def put(path: Path, write: Callable[[Path], object], *, lasting: bool = False, shared: bool = False) -> None:
    """Let ``write(temporary path)`` make a file and put it in place of ``path`` in one step: whoever reads it, or kills
    this process, finds the old one or the new one.

    Args:
        lasting: the new one is on the disk before the old one goes, whatever becomes of the machine.
        shared: several processes may do so at once, as in the cache; the last one's stays.
    """
    own = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporary = path.with_name(path.name + own + NEW)
    write(temporary)
    if lasting:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(path)


def put_text(path: Path, text: str, *, lasting: bool = False, shared: bool = False) -> None:
    """:func:`put` that text there."""
    put(path, lambda new: new.write_text(text, encoding="utf-8"), lasting=lasting, shared=shared)


def cache_root() -> Path:
    """Where what outlasts a run is kept: $FITWITHIN_CACHE, else $XDG_CACHE_HOME/fitwithin, else ~/.cache/fitwithin."""
    if chosen := os.environ.get("FITWITHIN_CACHE"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fitwithin"
    return Path.home() / ".cache" / "fitwithin"


def check_writable(path: Path) -> None:
    """RunFolderError unless a file can be written at ``path``."""
    parent = path.absolute().parent
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder where a file is to be written; choose another file")
    if not parent.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise RunFolderError(
            f"{path} cannot be written: {parent} is no folder that may be written to; choose another file"
        )


def default_folder(data: Path) -> Path:
    """Where a run on this data goes unless told otherwise."""
    return Path("runs") / f"{data.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_free(folder: Path) -> None:
    """RunFolderError unless a new run may be written to ``folder``; nothing is written yet."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        held = "another run" if (folder / "run.db").is_file() else "something else"
        raise RunFolderError(
            f"{folder} holds {held}; choose another --out"
            + (f", or go on with `fitwithin resume {folder}`" if held == "another run" else "")
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunFolderError(f"{folder} cannot be made: no permission to write in {parent}; choose another --out")


def make_folder(folder: Path) -> list[Path]:
    """Make the run's folder; returns the folders that were not there before, the deepest first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made ({error.strerror}); choose another --out") from error
    return made


def unmake(folder: Path, made: list[Path]) -> None:
    """Leave things as they were before :func:`make_folder`; an empty folder that was there stays."""
    for path in folder.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for path in made:
        with suppress(OSError):  # somebody else has put something there meanwhile
            path.rmdir()
