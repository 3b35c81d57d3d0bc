"""Where things may be written: checked before anything is spent, and left as they were if nothing came of it. Files are
put there whole, and values come back from their JSON as they were."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fitwithin.errors import RunFolderError

T = TypeVar("T")

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
    """The value of type ``kind`` that ``dataclasses.asdict`` and JSON made plain.

    ``kind`` is a dataclass, or what a field of one may be: a plain type, a tuple, a dict whose keys are text or whole
    numbers, a literal, a union of these, or anything (``Any``).

    Raises:
        ValueError: ``value`` is of another type, lacks a field or has one too many; the message says which.
    """
    return cast(T, _decode(kind, value))


def _decode(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and value in arguments):
        return value
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
