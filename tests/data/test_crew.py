"""Decoding by several processes: nothing is lost or mixed up, whatever becomes of a process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fitwithin.data import crew, decode_pool
from fitwithin.data.crew import Done
from fitwithin.data.dataset import Broken
from fitwithin.data.decode_pool import Stored, decode_all
from fitwithin.errors import DataError
from fitwithin.files import bytecode_environment

COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour each, of different sizes; the last is broken."""
    value = tmp_path_factory.mktemp("images")
    for number in range(COUNT - 1):
        Image.new("RGB", (10 + number, 90 - number), (number, 2 * number, 3 * number)).save(value / f"{number}.png")
    (value / f"{COUNT - 1}.png").write_bytes(b"no image")
    return value


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are started after the first image."""
    monkeypatch.setattr(crew, "ALONE_S", 0.0)


def names(count: int = COUNT) -> list[str]:
    return [f"{number}.png" for number in range(count)]


def assert_right(folder: Path, file: Path, found: dict[int, Stored | Broken], px: int = 100) -> None:
    """Each image's pixels are where its row says, and no two share any."""
    pixels = np.fromfile(file, dtype=np.uint8)
    taken = np.zeros(len(pixels), dtype=int)
    for position, one in found.items():
        expected = decode_pool.decode(folder, f"{position}.png", px)
        if isinstance(one, Broken):
            assert one == expected
            continue
        assert not isinstance(expected, Broken)
        image, remarks = expected
        span = slice(one.offset, one.offset + image.nbytes)
        assert np.array_equal(pixels[span].reshape(one.height, one.width, 3), image)
        assert (one.crc, one.remarks) == (zlib.crc32(image.data), remarks)
        taken[span] += 1
    assert taken.max(initial=0) <= 1


@settings(max_examples=8, deadline=None)
@given(workers=st.integers(1, 5), count=st.integers(0, COUNT), px=st.sampled_from([20, 100]))
def test_any_number_of_processes_decodes_all(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, workers: int, count: int, px: int
) -> None:
    file = tmp_path_factory.mktemp("pixels") / "images.u8"
    pairs = list(decode_all(folder, names(count), px, file, workers))
    found = dict(pairs)
    assert sorted(position for position, _ in pairs) == list(range(count))
    assert_right(folder, file, found, px)


def test_what_is_decoded_within_a_moment_meets_no_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no process is wanted")

    monkeypatch.setattr(crew, "ALONE_S", 60.0)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert [position for position, _ in decode_all(folder, names(), 100, tmp_path / "x", 4)] == list(range(COUNT))


def test_what_was_done_when_time_is_over_is_right(folder: Path, tmp_path: Path) -> None:
    found = dict(decode_all(folder, names(), 100, tmp_path / "x", 2, until_at=time.monotonic() - 1))
    assert [*found] == [0]
    assert_right(folder, tmp_path / "x", found)


def children() -> list[int]:
    """The processes that this one has started and not taken leave of."""
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_no_process_is_left_when_nobody_asks_for_more(folder: Path, tmp_path: Path) -> None:
    before = children()
    with closing(decode_all(folder, names(), 100, tmp_path / "x", 2)) as decoded:
        found = dict(next(decoded) for _ in range(12))
        assert len(children()) > len(before)
    assert children() == before
    assert_right(folder, tmp_path / "x", found)


def test_killed_processes_lose_no_image(folder: Path, tmp_path: Path) -> None:
    before, found = children(), {}
    for position, one in decode_all(folder, names(), 100, tmp_path / "x", 2):
        found[position] = one
        if len(found) in (10, 30):
            for pid in {*children()} - {*before}:
                os.kill(pid, signal.SIGKILL)
    assert sorted(found) == list(range(COUNT))
    crashed = [one for one in found.values() if isinstance(one, Broken) and one.reason == decode_pool.CRASHED]
    assert not crashed
    assert_right(folder, tmp_path / "x", found)


def test_an_image_that_ends_its_process_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bug in an image library may. The others are decoded all the same."""
    ending = (
        "import os; from fitwithin.data import crew, decode_pool; decode = decode_pool.decode; decode_pool.decode ="
        "lambda root, path, px: os._exit(9) if path == '33.png' else decode(root, path, px); crew.main()"
    )
    monkeypatch.setattr(crew, "_MAIN", ending)
    found = dict(decode_all(folder, names(), 100, tmp_path / "x", 2))
    assert sorted(found) == list(range(COUNT))
    one = found.pop(33)
    assert isinstance(one, Broken)
    assert (one.path, one.reason) == ("33.png", decode_pool.CRASHED)
    assert one.status == decode_pool.status(folder / "33.png"), "it is not tried again in each run"
    assert_right(folder, tmp_path / "x", found)


def test_processes_that_cannot_start_are_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_MAIN", "raise SystemExit(7)")
    with pytest.raises(DataError, match="ended with code 7 as it started; is there memory for 2 of them"):
        list(decode_all(folder, names(), 100, tmp_path / "x", 2))


def test_a_full_disk_is_said_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = (
        "import os; from fitwithin.data import crew, decode_pool\n"
        "def write(*_): raise OSError(28, 'No space left on device')\n"
        "decode_pool.os.write = write; crew.main()"
    )
    monkeypatch.setattr(crew, "_MAIN", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        list(decode_all(folder, names(), 100, tmp_path / "x", 2))
    assert caught.value.errno == errno.ENOSPC


def test_a_killed_asker_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fitwithin.data import crew, decode_pool; crew.ALONE_S = 0\n"
        "paths = ['1.png'] * 100000\n"
        "for done, _ in enumerate(decode_pool.decode_all(Path(sys.argv[1]), paths, 9, Path(sys.argv[2]), 2)):\n"
        "    if done == 20: print('going', flush=True)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=bytecode_environment()) as asker:
        assert asker.stdout is not None
        asker.stdout.readline()
        theirs = Path(f"/proc/{asker.pid}/task/{asker.pid}/children").read_text().split()
        asker.kill()
    assert len(theirs) == 2
    ended_by = time.monotonic() + 20
    while any(running(pid) for pid in theirs):
        assert time.monotonic() < ended_by
        time.sleep(0.02)


def running(pid: str) -> bool:
    """Whether the process is there and not only waiting to be taken leave of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def numbers(count: int) -> Generator[Done, None, None]:
    for position in range(count):
        yield Done(position, position, position)


def test_what_is_read_ahead_is_the_same() -> None:
    assert [done.position for done in crew.ahead(numbers(100), 7)] == list(range(100))


def test_no_more_than_so_many_are_read_ahead() -> None:
    seen: list[int] = []

    def noted() -> Generator[Done, None, None]:
        for done in numbers(100):
            seen.append(done.position)
            yield done

    with closing(crew.ahead(noted(), 5)) as coming:
        next(coming)
        ended_by = time.monotonic() + 5
        while len(seen) < 7 and time.monotonic() < ended_by:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(seen) == 7  # one is asked for, five wait, and one is at the door
    assert threading.active_count() == 1 or not any(t.name == "reading ahead" for t in threading.enumerate())


def test_an_error_comes_after_what_was_read_before_it() -> None:
    def failing() -> Generator[Done, None, None]:
        yield from numbers(3)
        raise OSError("the disk is gone")

    coming = crew.ahead(failing(), 10)
    assert [next(coming).position for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(coming)
