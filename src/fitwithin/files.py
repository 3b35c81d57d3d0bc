"""Files: written whole or not at all, the folders of runs and of the cache, and dataclasses as JSON and back."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import EnumType
from functools import cache
from itertools import count
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fitwithin.errors import DiskFull, FitwithinError, RunFolderError, UsageError

T = TypeVar("T")

#: What a file's name ends with while it is written.
NEW = ".new"


def write_atomic(path: Path, write: Callable[[Path], object], *, fsync: bool = False, shared: bool = False) -> None:
    """Write ``path`` by ``write(temporary path)`` and one rename: a reader finds the old file or the new one, whole.

    Args:
        fsync: wait until the new file is on the disk: it survives a power cut.
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


def to_json(value: Any, *, indent: int | None = None) -> str:
    """A dataclass as JSON text; ValueError where a number in it is not finite. :func:`from_json` is its inverse."""
    return json.dumps(dataclasses.asdict(value), indent=indent, allow_nan=False)


def from_json(kind: type[T], text: str) -> T:
    """The value of the dataclass ``kind`` that :func:`to_json` wrote; ValueError if the text is none."""
    return decode(kind, json.loads(text))


def read_json(kind: type[T], path: Path) -> T | None:
    """The value of the dataclass ``kind`` in that file; None if there is no file."""
    return from_json(kind, path.read_text(encoding="utf-8")) if path.is_file() else None


def decode(kind: type[T], value: Any) -> T:
    """The value of type ``kind`` from plain JSON values.

    ``kind`` is a dataclass, or what a field of one may be: a plain type, a tuple, a dict whose keys are text or whole
    numbers, a literal, an enumeration of texts, a union of these, or ``Any``.

    Raises:
        ValueError: ``value`` is of another type, lacks a field or has one too many; the message says which.
    """
    return cast(T, _decode(kind, value))


def _decode(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in arguments):
        return value
    if isinstance(kind, EnumType) and isinstance(value, str):
        return kind(value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(kind, value)
    if origin in (Union, UnionType):
        return _union(arguments, value)
    if origin is tuple and isinstance(value, list | tuple):
        parts = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(parts) == len(value):
            return tuple(_decode(part, each) for part, each in zip(parts, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        of_key, of_value = arguments
        return {int(key) if of_key is int else key: _decode(of_value, each) for key, each in value.items()}
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{str(value)[:80]!r} is no {getattr(kind, '__name__', kind)}")


def _union(kinds: tuple[Any, ...], value: Any) -> Any:
    """The value of the first of the kinds that it is of."""
    if value is None and NoneType in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not NoneType)
    for kind in others:
        with suppress(ValueError):
            return _decode(kind, value)
    return _decode(last, value)


@cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """The fields of a dataclass: the type of each, and whether it must be given."""
    hints = get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
    }


def _dataclass(kind: Any, value: dict[str, Any]) -> Any:
    fields = _fields(kind)
    unknown = sorted(value.keys() - fields.keys())
    missing = sorted(name for name, (_, needed) in fields.items() if needed and name not in value)
    if unknown or missing:
        wrong = [f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"{kind.__name__}: {'; '.join(wrong)}")
    found = {}
    for name, each in value.items():
        try:
            found[name] = _decode(fields[name][0], each)
        except ValueError as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
    return kind(**found)


def cache_root() -> Path:
    """The folder kept between runs: $FITWITHIN_CACHE, else $XDG_CACHE_HOME/fitwithin, else ~/.cache/fitwithin; in the
    temporary folder where there is no home that can be written to.

    Raises:
        UsageError: the folder that FITWITHIN_CACHE names cannot be made.
    """
    if chosen := os.environ.get("FITWITHIN_CACHE"):
        if (reason := _not_makable(Path(chosen))) is not None:
            raise UsageError(f"the cache {chosen} cannot be used ({reason}); set FITWITHIN_CACHE to another folder")
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):  # a user without a name and without $HOME
        home = Path(base or Path.home() / ".cache") / "fitwithin"
        if _not_makable(home) is None and os.access(home, os.W_OK | os.X_OK):
            return home
    own = Path(tempfile.gettempdir()) / f"fitwithin-{os.getuid()}"
    if (reason := _not_makable(own)) is not None or own.stat().st_uid != os.getuid():
        raise UsageError(f"there is no folder for the cache ({own}: {reason}); set FITWITHIN_CACHE to one")
    return own


@cache
def _not_makable(folder: Path) -> str | None:
    """Make a folder that only its owner may write to; the reason if that cannot be done."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


#: What libraries say where a disk is full, besides the numbers of an OSError: SQLite, safetensors, torch.save.
_FULL_WORDS = ("disk is full", "No space left on device", "os error 28", "PytorchStreamWriter failed writing")


def disk_is_full(error: BaseException | None) -> bool:
    """Whether that error, or one that it was raised over, means that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not isinstance(error, OSError) and any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


#: A disk with more room than this is not the one that is full.
FULL_BYTES = 64 * 2**20


@contextmanager
def naming_full_disks(run: Path | None = None) -> Iterator[None]:
    """Turn the error of a full disk into DiskFull, a sentence that names the folder with the least room."""
    try:
        yield
    except FitwithinError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise disk_full(run) from error


def disk_full(run: Path | None = None) -> DiskFull:
    """The error to raise where a disk is full; a ``run`` can go on."""
    room: dict[Path, int] = {}
    for folder in filter(None, (run, cache_root(), Path(tempfile.gettempdir()))):
        with suppress(OSError):
            room[folder] = shutil.disk_usage(folder).free
    full = min(room, key=lambda folder: room[folder])
    goes_on = run is not None and (run / "run.db").is_file()
    then = f"then `fitwithin resume {run}` goes on" if goes_on else "then start again"
    what = f"the disk with {full} is full ({room[full] // 2**20} MiB left); free some space"
    if room[full] > FULL_BYTES:  # another one is, or what is written to takes no more
        what = "no room is left where something was to be written; free some space there"
    return DiskFull(f"{what}, {then}")


def bytecode_dir() -> Path | None:
    """Where bytecode is kept if there is none beside torch and Python writes none there; else None.

    So it is in many containers: uv compiles nothing when it installs, PYTHONDONTWRITEBYTECODE is set, or the packages
    belong to another user. Compiling at each start takes 12 s for torch and timm (two cores).
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
    """The environment for a child that keeps bytecode in :func:`bytecode_dir`."""
    value = dict(os.environ)
    if (folder := bytecode_dir()) is not None:
        value.pop("PYTHONDONTWRITEBYTECODE", None)
        value["PYTHONPYCACHEPREFIX"] = str(folder)
    return value


def keep_bytecode() -> None:
    """Let this process, from now on, and its children keep bytecode in :func:`bytecode_dir`."""
    if (folder := bytecode_dir()) is not None:
        sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def check_writable(path: Path, beginning: str) -> None:
    """RunFolderError unless a file can be written at ``path``; what is there and begins otherwise is kept."""
    parent = path.absolute().parent
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder; give the name of a file")
    if not parent.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise RunFolderError(f"{path} cannot be written, since {parent} is not a writable folder; give another file")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(beginning)) != beginning.encode():
                raise RunFolderError(f"{path} holds something else, which is kept; give another file")


def default_folder(data: Path, below: str = "runs") -> Path:
    """The folder of a run on these data by default: ``runs/<data>-<time>``, with a number if that is taken."""
    plain = re.sub(r"[*?\[\]{}:]+", "-", data.resolve().name)  # of a pattern, or of a name on the Hub
    name = f"{below}/{plain}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (Path(name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in numbered if not folder.exists())


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
        folder.mkdir(parents=True, exist_ok=folder not in made)  # else another run has just taken it
    except FileExistsError as error:
        if folder.is_symlink() and not folder.exists():
            raise RunFolderError(f"{folder} is a link to a folder that is not there; give another --out") from error
        raise RunFolderError(f"{folder} was taken by another run just now; start again") from error
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
