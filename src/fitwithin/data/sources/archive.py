"""Archives (zip, tar) are unpacked as if somebody wished us ill: nothing is written outside, and there are limits.

Refused are names that lead out of the folder, links, devices, two files of one name, what is encrypted, and archives
that unpack to far more than their size.
"""

from __future__ import annotations

import lzma
import re
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fitwithin.data.sources import unpack
from fitwithin.errors import DataError
from fitwithin.units import format_size

ZIP = (".zip",)

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

TAR = (*_TAR, ".tar.zst") if sys.version_info >= (3, 14) else _TAR

SUFFIXES = ZIP + TAR

#: An archive may have so many members, and unpack to so many times its size; pictures hardly get smaller in archives.
#: (Up to LEAST_BYTES anything goes: a few blank pictures.)
MOST_MEMBERS, MOST_TIMES, LEAST_BYTES = 5_000_000, 200, 64 * 2**20

#: The names and attributes of one member of a tar may take so many bytes.
MOST_HEADER_BYTES = 2**20

CHUNK_BYTES = 2**20

_BY_HAND = "unpack it yourself, if you trust it, and give the folder"

#: What the libraries were seen to raise on damaged archives.
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError),
)


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A file in an archive: its name, the bytes that it is said to have, what is wrong with it, and its content."""

    name: str
    n_bytes: int
    wrong: str
    content: IO[bytes] | None


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """An archive's name without its ending."""
    ending = max((each for each in SUFFIXES if path.name.lower().endswith(each)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def unpack_all(archives: Sequence[Path], into: Path, *, until_at: float) -> None:
    """Unpack archives: one into ``into``, several each into a folder of its own in it, ``<number>-<name>``.

    Raises:
        DataError: an archive is damaged or not to be trusted, or there is no room or no time for it.
        OSError: a file cannot be written.
    """
    for number, archive in enumerate(archives):
        place = into if len(archives) == 1 else into / f"{number:05d}-{stem(archive)}"
        place.mkdir(exist_ok=True)
        _unpack(archive, place, until_at)


def _unpack(archive: Path, into: Path, until_at: float) -> None:
    most = max(LEAST_BYTES, MOST_TIMES * archive.stat().st_size)
    written, unchecked = 0, unpack.CHECK_BYTES
    for count, member in enumerate(_members(archive), 1):
        if count > MOST_MEMBERS:
            raise DataError(f"{archive} has more than {MOST_MEMBERS:,} files, the most that are unpacked; {_BY_HAND}")
        if member.wrong:
            raise DataError(f"{archive} has {member.name!r}, {member.wrong}, which is not unpacked; {_BY_HAND}")
        target = _target(archive, member.name, into)
        unpack.in_time(str(archive), count - 1, until_at)
        if member.content is None:
            continue
        with target.open("xb") as file:
            while chunk := _read(archive, member):
                written += len(chunk)
                if written > most:
                    size, limit = format_size(archive.stat().st_size), format_size(most)
                    raise DataError(f"{archive} ({size}) unpacks to more than {limit}, its most; {_BY_HAND}")
                unchecked += len(chunk)
                if unchecked >= unpack.CHECK_BYTES:
                    unpack.room(str(archive), unchecked)
                    unchecked = 0
                file.write(chunk)


def _target(archive: Path, name: str, into: Path) -> Path:
    """Where a member goes, in folders that are there then; DataError for a name that is not safe or taken."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in parts or "\0" in name or not parts:
        raise DataError(f"{archive} has {name!r}, which leads out of the folder and is not unpacked; {_BY_HAND}")
    target = into.joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        taken = target.exists()
    except (FileExistsError, NotADirectoryError):
        taken = True
    if taken:
        raise DataError(f"{archive} has {name!r} twice, or as a file and as a folder; {_BY_HAND}")
    return target


def _read(archive: Path, member: _Member) -> bytes:
    assert member.content is not None
    with _naming_damage(archive, member.name):
        return member.content.read(CHUNK_BYTES)


@contextmanager
def _naming_damage(archive: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        at = f" at {name!r}" if name else ""
        raise DataError(f"{archive} is damaged{at} ({error or type(error).__name__}); get it anew") from error


def _members(archive: Path) -> Iterator[_Member]:
    return _zipped(archive) if archive.name.lower().endswith(ZIP) else _tarred(archive)


def _zipped(archive: Path) -> Iterator[_Member]:
    with _naming_damage(archive):
        opened = zipfile.ZipFile(archive)
    with opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        unpack.room(
            str(archive),
            min(sum(info.file_size for info in infos), max(LEAST_BYTES, MOST_TIMES * archive.stat().st_size)),
        )
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            wrong = "encrypted" if info.flag_bits & 1 else "" if kind in (0, stat.S_IFREG) else "a link or a device"
            if wrong:
                yield _Member(name=info.filename, n_bytes=0, wrong=wrong, content=None)
                continue
            with _naming_damage(archive, info.filename):
                content = opened.open(info)
            with content:
                yield _Member(name=info.filename, n_bytes=info.file_size, wrong="", content=content)


class _Header(tarfile.TarInfo):
    """The header of a member. tarfile reads long names and attributes whole, however long they are said to be, and
    takes whatever is no header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("it ends without an end" if len(buf) < tarfile.BLOCKSIZE else str(error)) from error
        if not found.isreg() and found.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {format_size(found.size)}")
        return found


def _tarred(archive: Path) -> Iterator[_Member]:
    with _naming_damage(archive):
        opened = tarfile.open(archive, "r|*", tarinfo=_Header)  # noqa: SIM115 - closed below
    with opened:
        while True:
            with _naming_damage(archive):
                info = opened.next()
            if info is None:
                return
            opened.members.clear()  # type: ignore[attr-defined] # a stream is not read again, and members add up
            if info.isdir():
                continue
            wrong = "" if info.isreg() else "a link or a device"
            with _naming_damage(archive, info.name):
                content = None if wrong else opened.extractfile(info)
            yield _Member(name=info.name, n_bytes=info.size, wrong=wrong, content=content)
