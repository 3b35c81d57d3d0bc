"""The fingerprint is of the files' contents, whether they are read or are known to be what was read before."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fitwithin.data import fingerprint as module
from fitwithin.data.fingerprint import contents

NAMES = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


class ReadAgainError(Exception):
    """A file was read that should be known."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four files of different contents."""
    root = tmp_path / "data"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes([number]) * 100_000)
    return root


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "folders"


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts as changed a moment ago."""
    monkeypatch.setattr(module, "TICK_S", -3600.0)


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail(*_: object) -> None:
            raise ReadAgainError

        monkeypatch.setattr(module, "_read", fail)

    return forbid


@pytest.mark.usefixtures("old")
def test_what_did_not_change_is_not_read_again(root: Path, kept: Path, no_reading: Callable[[], None]) -> None:
    found = contents(root, NAMES)
    assert contents(root, NAMES, kept) == found
    no_reading()
    assert contents(root, NAMES, kept) == found
    with pytest.raises(ReadAgainError):
        contents(root, NAMES)
    assert len(list(kept.iterdir())) == 1


def rewritten(file: Path) -> None:
    """Other contents of the same size, and the date of modification set back."""
    status = file.stat()
    file.write_bytes(b"x" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(file: Path) -> None:
    """Another file in its place, of the same size and date."""
    other = file.with_name("other")
    other.write_bytes(b"x" * file.stat().st_size)
    shutil.copystat(file, other)
    other.replace(file)


def exchanged(file: Path) -> None:
    """Two files that change their names."""
    other = file.with_name("0.png")
    file.rename(file.with_name("between"))
    other.rename(file)
    file.with_name("between").rename(other)


def longer(file: Path) -> None:
    """One byte more."""
    with file.open("ab") as appended:
        appended.write(b"x")


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("change", [rewritten, replaced, exchanged, longer])
def test_whatever_changes_is_read(root: Path, kept: Path, change: Callable[[Path], None]) -> None:
    before = contents(root, NAMES, kept)
    change(root / "b/1.png")
    after = contents(root, NAMES, kept)
    assert after == contents(root, NAMES)
    assert after != before


@pytest.mark.usefixtures("old")
def test_files_that_come_and_go_are_noticed(root: Path, kept: Path) -> None:
    whole = contents(root, NAMES, kept)
    assert contents(root, NAMES[:3], kept) == contents(root, NAMES[:3]) != whole
    assert contents(root, NAMES, kept) == whole


@pytest.mark.usefixtures("old")
def test_nothing_is_trusted_in_another_folder(root: Path, kept: Path, no_reading: Callable[[], None]) -> None:
    """Moved, its files are the same to their inodes and dates."""
    contents(root, NAMES, kept)
    (note,) = kept.iterdir()
    moved = root.rename(root.with_name("moved"))
    no_reading()
    with pytest.raises(ReadAgainError):
        contents(moved, NAMES, kept)
    note.rename(note.with_name(module.digest(os.fsencode(moved)).hex() + ".json"))
    with pytest.raises(ReadAgainError):
        contents(moved, NAMES, kept)


@pytest.mark.usefixtures("old")
def test_the_same_folder_under_another_name_is_known(root: Path, kept: Path, no_reading: Callable[[], None]) -> None:
    found = contents(root, NAMES, kept)
    (root.parent / "link").symlink_to(root)
    no_reading()
    assert contents(root.parent / "link", NAMES, kept) == found


def test_a_file_changed_a_moment_ago_could_change_again_unseen(root: Path, kept: Path) -> None:
    assert contents(root, NAMES, kept) == contents(root, NAMES)
    assert not kept.exists()


@pytest.mark.usefixtures("old")
def test_a_file_that_changes_while_it_is_read_is_read_again(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, no_reading: Callable[[], None]
) -> None:
    """Its status was asked for, then it was written to, then it was read: what was recorded is not believed."""
    ask, written = module.status_of, list[bool]()

    def late(status: os.stat_result) -> object:
        if not written:
            written.append(True)
            longer(root / NAMES[0])
        return ask(status)

    monkeypatch.setattr(module, "status_of", late)
    contents(root, NAMES, kept)
    assert written
    no_reading()
    with pytest.raises(ReadAgainError):
        contents(root, NAMES, kept)


@pytest.mark.usefixtures("old")
def test_a_file_that_cannot_be_read_may_be_there_again(root: Path, kept: Path) -> None:
    (root / "a/0.png").rename(root / "away")
    (root / "a/0.png").symlink_to(root / "back")
    without = contents(root, NAMES, kept)
    assert not kept.exists()
    (root / "away").rename(root / "back")
    assert contents(root, NAMES, kept) != without


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stamp": 1}'])
def test_a_damaged_note_is_made_anew(root: Path, kept: Path, content: str, no_reading: Callable[[], None]) -> None:
    found = contents(root, NAMES, kept)
    (note,) = kept.iterdir()
    note.write_text(content)
    assert contents(root, NAMES, kept) == found
    no_reading()
    assert contents(root, NAMES, kept) == found


@pytest.mark.usefixtures("old")
def test_a_cache_that_cannot_be_written_costs_time_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert contents(root, NAMES, tmp_path / "file" / "folders") == contents(root, NAMES)


@pytest.mark.parametrize("slow_s", [0.0, math.inf])
def test_files_are_read_alike_in_one_thread_and_in_several(
    root: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    found = contents(root, NAMES)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    monkeypatch.setattr(module, "SLOW_S", slow_s)
    assert contents(root, NAMES) == found


def test_fast_files_need_no_threads_and_slow_ones_get_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []

    def pool(threads: int) -> ThreadPoolExecutor:
        pools.append(threads)
        return ThreadPoolExecutor(threads)

    monkeypatch.setattr(module, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    monkeypatch.setattr(module, "SLOW_S", math.inf)
    contents(root, NAMES)
    assert pools == []
    monkeypatch.setattr(module, "SLOW_S", 0.0)
    contents(root, NAMES)
    assert pools == [module.THREADS]
