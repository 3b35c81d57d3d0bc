"""Where files go: whole or not at all, into a run's folder that was checked before, and into the cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fitwithin.errors import RunFolderError

#: What a file's name ends with while it is written.
NEW = ".new"


def write_atomic(path: Path, write: Callable[[Path], object], *, fsync: bool = False, shared: bool = False) -> None:
    """Let ``write(temporary path)`` make a file and replace ``path`` by it in one step: a reader finds the old file or
    the new one, also where this process is killed.

    Args:
        fsync: wait until the new file is on the disk before the old one goes, so that it survives a power cut.
        shared: several processes may write the file at once, as in the cache; the last one's stays.
    """
    own = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporary = path.with_name(path.name + own + NEW)
    write(temporary)
    if fsync:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(path)


def write_text_atomic(path: Path, text: str, *, fsync: bool = False, shared: bool = False) -> None:
    """:func:`write_atomic` that text."""
    write_atomic(path, lambda new: new.write_text(text, encoding="utf-8"), fsync=fsync, shared=shared)


def cache_root() -> Path:
    """The folder kept between runs: $FITWITHIN_CACHE, else $XDG_CACHE_HOME/fitwithin, else ~/.cache/fitwithin."""
    if chosen := os.environ.get("FITWITHIN_CACHE"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fitwithin"
    return Path.home() / ".cache" / "fitwithin"


def bytecode_dir() -> Path | None:
    """Where bytecode is kept if Python keeps none beside torch; None where it does, or may write some there.

    Containers often have none: uv compiles nothing when it installs, PYTHONDONTWRITEBYTECODE is set, or the packages
    belong to another user. Then each start would compile everything anew, which takes 12 s for torch and timm and 0.4 s
    for the command line (two cores).
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None  # the worker server will say so
    compiled = Path(importlib.util.cache_from_source(torch.origin))
    there = next(path for path in (compiled, *compiled.parents) if path.exists())
    if there == compiled or (os.access(there, os.W_OK) and not sys.dont_write_bytecode):
        return None
    return cache_root().absolute() / "bytecode"


def bytecode_environment() -> dict[str, str]:
    """This process's environment, for a process that shall keep bytecode in :func:`bytecode_dir`."""
    value = dict(os.environ)
    if (folder := bytecode_dir()) is not None:
        value.pop("PYTHONDONTWRITEBYTECODE", None)
        value["PYTHONPYCACHEPREFIX"] = str(folder)
    return value


def keep_bytecode() -> None:
    """Keep bytecode in :func:`bytecode_dir`: that of what this process imports from now on, and its children."""
    if (folder := bytecode_dir()) is not None:
        sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def check_writable(path: Path) -> None:
    """RunFolderError unless a file can be written at ``path``."""
    parent = path.absolute().parent
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder; give the name of a file")
    if not parent.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise RunFolderError(f"{path} cannot be written, since {parent} is not a writable folder; give another file")


def default_folder(data: Path) -> Path:
    """The folder of a run on this data by default: ``runs/<data>-<time>``."""
    return Path("runs") / f"{data.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_free(folder: Path) -> None:
    """RunFolderError unless a new run may be written to ``folder``; nothing is written yet."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        held = "another run" if (folder / "run.db").is_file() else "something else"
        raise RunFolderError(
            f"{folder} holds {held}; give another --out"
            + (f", or continue that run with `fitwithin resume {folder}`" if held == "another run" else "")
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunFolderError(f"{folder} cannot be made, since {parent} is not writable; give another --out")


def create_run_dir(folder: Path) -> list[Path]:
    """Make the run's folder; returns the folders that were not there before, the deepest first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made ({error.strerror}); give another --out") from error
    return made


def remove_run_dir(folder: Path, made: list[Path]) -> None:
    """Undo :func:`create_run_dir`, which returned ``made``: an empty folder that was there before stays."""
    for path in folder.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for path in made:
        with suppress(OSError):  # somebody else has put something there meanwhile
            path.rmdir()
