"""build and open_pack: what is stored is what was read, whatever happened before, meanwhile or to the disk."""

from __future__ import annotations

import errno
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fitwithin.data import crew, decode_pool
from fitwithin.data import pack as packs_module
from fitwithin.data.dataset import Broken, Dataset
from fitwithin.data.decode import ONE_COLOUR, Picture, read, read_rgb
from fitwithin.data.pack import Pack, open_pack
from fitwithin.data.pack_builder import build, location
from fitwithin.data.sources.door import open_dataset
from fitwithin.errors import DataError
from fitwithin.files import cache_root

RNG = np.random.default_rng(0)
Usage = namedtuple("Usage", "total used free")


class DecodedAgainError(Exception):
    """Unlike whatever a damaged file raises."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two classes of ten PNG images of 12 x 16 pixels of noise."""
    for name in ("cat", "dog"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return open_dataset(tmp_path / "data")


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail(*_: object, **__: object) -> None:
            raise DecodedAgainError

        monkeypatch.setattr(decode_pool, "read", fail)

    return forbid


def assert_matches(pack: Pack, dataset: Dataset) -> None:
    """Every sample is there, in order, with its label, its split and its very pixels (images below the side)."""
    assert list(pack.paths) == [s.path for s in dataset.samples]
    assert pack.labels.tolist() == [s.label for s in dataset.samples]
    for split in ("train", "val", "test"):
        assert [pack.paths[i] for i in pack.indices(split)] == [s.path for s in dataset.samples if s.split == split]
    for i, sample in enumerate(dataset.samples):
        assert np.array_equal(pack.image(i), np.asarray(read_rgb(dataset.root / sample.path)))
    assert len(pack) == len(dataset.samples)
    assert (pack.classes, pack.fingerprint, pack.broken) == (dataset.classes, dataset.fingerprint, ())


# --- laws


def test_small_images_come_back_pixel_for_pixel(dataset: Dataset) -> None:
    calls: list[tuple[int, int]] = []
    pack = build(dataset, 32, on_progress=lambda done, total: calls.append((done, total)))
    assert_matches(pack, dataset)
    assert calls == [(done, 20) for done in range(1, 21)]
    assert pack.folder == location(dataset, 32)
    assert (pack.labels.dtype, pack.indices("train").dtype, pack.offsets.dtype) == (np.int64,) * 3
    assert (pack.heights.dtype, pack.widths.dtype, pack.split_codes.dtype) == (np.int32, np.int32, np.uint8)


def test_images_are_read_only_views_of_the_map(dataset: Dataset) -> None:
    pack = build(dataset, 32)
    image = pack.image(3)
    assert np.shares_memory(image, pack.pixels)
    assert not image.flags.writeable


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.integers(1, 120),
    kind=st.sampled_from(["png", "jpg"]),
)
def test_the_shorter_side_is_cut_to_side_and_never_enlarged(
    width: int, height: int, side: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("one")
    Image.new("RGB", (width, height), "teal").save(folder / f"x.{kind}")
    found = decode_pool.decode(folder, f"x.{kind}", side)
    assert not isinstance(found, Broken)
    found, remarks = found
    assert remarks == ((ONE_COLOUR,) if width * height > 1 else ())
    assert found.dtype == np.uint8
    assert min(found.shape[:2]) == min(width, height, side)
    scale = min(1.0, side / min(width, height))
    # A drafted JPEG has rounded once before: its longer side may differ by the aspect of that one pixel.
    slack = 0.5 if kind == "png" else 0.5 + 1.5 * max(width, height) / min(width, height)
    assert abs(found.shape[0] - height * scale) <= slack
    assert abs(found.shape[1] - width * scale) <= slack


def test_reuse_decodes_nothing(dataset: Dataset, no_decoding: Callable[[], None]) -> None:
    build(dataset, 32)
    no_decoding()
    assert_matches(build(dataset, 32), dataset)
    with pytest.raises(DecodedAgainError):
        build(dataset, 8)


def test_a_pack_pickles_as_its_folder(dataset: Dataset) -> None:
    pack = build(dataset, 32)
    content = pickle.dumps(pack)
    assert len(content) < 500
    assert_matches(pickle.loads(content), dataset)
    assert_matches(open_pack(pack.folder), dataset)


def test_another_split_or_side_or_content_has_another_place(dataset: Dataset) -> None:
    places = {location(dataset, 32), location(dataset, 33), location(open_dataset(dataset.root, seed=1), 32)}
    (dataset.root / "cat" / "0.png").unlink()
    places.add(location(open_dataset(dataset.root), 32))
    assert len(places) == 4
    assert location(dataset, 32).parent == cache_root() / "packs"


def test_odd_names_round_trip(dataset: Dataset) -> None:
    shutil.copy(dataset.root / "cat" / "0.png", dataset.root / "cat" / os.fsdecode(b"caf\xe9\n.png"))
    again = open_dataset(dataset.root)
    assert_matches(build(again, 32), again)


# --- broken files


@pytest.fixture
def with_broken(dataset: Dataset) -> Dataset:
    cat = dataset.root / "cat"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(cat / "cut.jpg")
    (cat / "cut.jpg").write_bytes((cat / "cut.jpg").read_bytes()[:1500])
    (cat / "text.jpg").write_text("this is no image")
    (cat / "zero.png").write_bytes(b"")
    (cat / "gone.png").symlink_to("/nowhere/at/all.png")
    return open_dataset(dataset.root)


def test_broken_files_are_listed_and_left_out(with_broken: Dataset) -> None:
    pack = build(with_broken, 32)
    reasons = {item.path: item.reason for item in pack.broken}
    assert reasons.keys() == {"cat/cut.jpg", "cat/text.jpg", "cat/zero.png", "cat/gone.png"}
    assert "truncated" in reasons["cat/cut.jpg"]
    assert reasons["cat/text.jpg"] == "no image that Pillow knows"
    assert reasons["cat/zero.png"] == "the file is empty"
    assert reasons["cat/gone.png"] == "No such file or directory"
    assert len(pack) == 20
    assert build(with_broken, 32).broken == pack.broken
    assert open_pack(pack.folder).broken == pack.broken


def test_strict_refuses_broken_files_new_or_known(with_broken: Dataset) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match=r"4 of 24 images in .* cannot be read, such as cat/cut.jpg \(.*; repair"):
            build(with_broken, 32, strict=True)
    assert len(build(with_broken, 32)) == 20


def test_a_mended_file_is_taken_in(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the fingerprint cannot tell, as when a share was away for a moment."""

    def away(file: Path, *, at_least: int) -> Picture:
        if file.name == "3.png":
            raise OSError(errno.EIO, "Input/output error")
        return read(file, at_least=at_least)

    with monkeypatch.context() as during:
        during.setattr(decode_pool, "read", away)
        assert [(item.path, item.reason) for item in build(dataset, 32).broken] == [
            ("cat/3.png", "Input/output error"),
            ("dog/3.png", "Input/output error"),
        ]
    assert_matches(build(dataset, 32), dataset)


def test_too_few_whole_images_leave_nothing_behind(dataset: Dataset, cache: Path) -> None:
    for file in (dataset.root / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image to train the class 'dog' once the 10 unreadable files"):
        build(open_dataset(dataset.root), 32)
    for file in (dataset.root / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image in 2 classes once the 20 unreadable files"):
        build(open_dataset(dataset.root), 32)
    assert list((cache / "packs").iterdir()) == []


# --- damage


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped pixel": lambda folder: flip(folder / "images.u8", 5000),
    "pixels cut short": lambda folder: os.truncate(folder / "images.u8", 100),
    "pixels too long": lambda folder: (folder / "images.u8").write_bytes((folder / "images.u8").read_bytes() + b"0"),
    "a flipped index byte": lambda folder: flip(folder / "index.npz", 300),
    "no index": lambda folder: (folder / "index.npz").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "half a meta": lambda folder: os.truncate(folder / "meta.json", 50),
    "a list for meta": lambda folder: (folder / "meta.json").write_text("[]"),
    "another schema": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"schema": 2', '"schema": 0')
    ),
    "an empty folder": empty,
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("?")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pack_is_built_again(dataset: Dataset, damage: str, cache: Path) -> None:
    folder = build(dataset, 32).folder
    DAMAGES[damage](folder)
    if damage != "a flipped pixel":  # open_pack trusts build for the pixels
        with pytest.raises(DataError, match=r"holds no complete pack of images .*; start again to have it built"):
            open_pack(folder)
    assert_matches(build(dataset, 32), dataset)
    assert os.listdir(cache / "packs") == [folder.name]


def test_a_pack_of_other_data_is_not_trusted_for_its_name(dataset: Dataset) -> None:
    folder = build(dataset, 32).folder
    other = replace(dataset, fingerprint="0" * 32)
    shutil.copytree(folder, location(other, 32))
    assert build(other, 32).fingerprint == "0" * 32


def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are looked at from now on."""
    found = list[int]()
    monkeypatch.setattr(Pack, "image", lambda self, i, original=Pack.image: found.append(i) or original(self, i))
    return found


def test_all_pixels_are_checked_once_and_then_a_sample(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(dataset, 32).folder
    monkeypatch.setattr(packs_module, "CHECK_SAMPLE", 5)
    later = time.time() + 60
    monkeypatch.setattr(packs_module, "time", SimpleNamespace(time=lambda: later))
    checked = seen(monkeypatch)
    build(dataset, 32)
    assert len(set(checked)) == 20
    checked.clear()
    build(dataset, 32)
    assert len(set(checked)) == 5
    flip(folder / "images.u8", 5000)
    checked.clear()
    assert_matches(build(dataset, 32), dataset)
    assert not (folder / packs_module.CHECKED).exists(), "another file's"


def test_pixels_that_were_just_written_are_all_checked_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their date would not tell a later change from what was checked."""
    folder = build(dataset, 32).folder
    checked = seen(monkeypatch)
    for _ in range(2):
        checked.clear()
        build(dataset, 32)
        assert len(set(checked)) == 20
    assert not (folder / packs_module.CHECKED).exists()


@pytest.mark.parametrize("told", ["", "[]", "[1, 2, 3, 4]", "{}", '"12345"'])
def test_what_cannot_be_read_of_an_earlier_check_counts_for_nothing(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    (build(dataset, 32).folder / packs_module.CHECKED).write_text(told)
    checked = seen(monkeypatch)
    build(dataset, 32)
    assert len(set(checked)) == 20


def test_large_packs_are_checked_by_sample(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(dataset, 32).folder
    monkeypatch.setattr(packs_module, "CHECK_ALL_BYTES", 0)
    monkeypatch.setattr(packs_module, "CHECK_SAMPLE", 5)
    checked = seen(monkeypatch)
    build(dataset, 32)
    assert len(set(checked)) == 5
    for i in range(20):
        flip(folder / "images.u8", i * 12 * 16 * 3)
    assert_matches(build(dataset, 32), dataset)


# --- interruptions and company


def test_an_interrupted_build_leaves_no_pack(dataset: Dataset, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(dataset, 32, on_progress=interrupt)
    assert list((cache / "packs").iterdir()) == []
    assert_matches(build(dataset, 32), dataset)


def test_leftovers_of_dead_processes_are_removed_and_no_others(dataset: Dataset, cache: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = [f"x-32-y@{host}@{dead.pid}@1", f"x-32-y@{host}@{os.getppid()}@1", f"x-32-y@{host}.far@{dead.pid}@1"]
    for name in names:
        (cache / "packs" / name).mkdir(parents=True)
        (cache / "packs" / name / "images.u8").write_bytes(b"half")
    pack = build(dataset, 32)
    assert {*os.listdir(cache / "packs")} == {*names[1:], pack.folder.name}


def test_two_processes_build_one_pack(dataset: Dataset, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from fitwithin.data.sources.door import open_dataset; from fitwithin.data.pack_builder import build\n"
        "dataset = open_dataset(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "print(len(build(dataset, 32)))"
    )
    command = [sys.executable, "-c", code, str(dataset.root)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["20\n", "20\n"]
    assert_matches(build(dataset, 32), dataset)
    assert len(os.listdir(cache / "packs")) == 1


def test_the_slower_thread_takes_the_faster_ones_pack(dataset: Dataset, cache: Path) -> None:
    together = threading.Barrier(2)
    packs: list[Pack] = []

    def run() -> None:
        packs.append(build(dataset, 32, workers=1, on_progress=lambda done, total: done == total and together.wait(9)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(packs) == 2
    for pack in packs:
        assert_matches(pack, dataset)
    assert len(os.listdir(cache / "packs")) == 1


# --- space


def test_too_little_space_is_said_beforehand(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, no_decoding: Callable[[], None]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 5000))
    with pytest.raises(
        DataError, match=r"20 images at 32 px need about 11.2 KiB where .* has 4.88 KiB left; free some"
    ):
        build(dataset, 32)
    # Stored as they are, 20 images of 12 x 16 take 11 520 bytes, where 20 of 512 x 512 would take 20 MiB.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 12_000))
    assert_matches(build(dataset, 512), dataset)


def test_a_disk_that_fills_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"packs: the disk is full \(No space left on device\); .*FITWITHIN_CACHE"):
        build(dataset, 32)
    assert list((cache / "packs").iterdir()) == []


def test_a_cache_that_cannot_be_written(dataset: Dataset, cache: Path) -> None:
    cache.mkdir()
    (cache / "packs").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot be stored in .*/cache/packs: .*; .* set FITWITHIN_CACHE to"):
        build(dataset, 32)


def test_what_progress_raises_is_not_taken_for_the_disk(dataset: Dataset) -> None:
    def hang_up(done: int, total: int) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        build(dataset, 32, on_progress=hang_up)


def test_checksums_are_those_of_the_images(dataset: Dataset) -> None:
    pack = build(dataset, 32)
    assert pack.crcs.tolist() == [zlib.crc32(pack.image(i).tobytes()) for i in range(len(pack))]


# --- time that is over


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it a second later."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(crew, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(crew, "ALONE_S", math.inf)


def test_what_is_decoded_when_time_is_over_is_a_fair_part(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch)
    pack = build(dataset, 32, until_at=14.0)
    assert pack.partial
    assert len(pack) == 14
    assert {*pack.labels.tolist()} == {0, 1}
    order = [sample.path for sample in dataset.samples]
    assert list(pack.paths) == sorted(pack.paths, key=order.index)
    assert not location(dataset, 32).exists()
    again = build(dataset, 32, partial=True)
    assert (again.folder, again.paths) == (pack.folder, pack.paths)
    for i, path in enumerate(pack.paths):
        assert np.array_equal(pack.image(i), np.asarray(read_rgb(dataset.root / path)))
    assert_matches(build(dataset, 32), dataset)


def test_too_little_decoded_is_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    ticking(monkeypatch)
    with pytest.raises(DataError, match="of which 2 of 20 could be read before half of the time was over"):
        build(dataset, 32, until_at=2.0)
    assert list((cache / "packs").iterdir()) == []


def test_a_broken_file_is_decoded_once(with_broken: Dataset, no_decoding: Callable[[], None]) -> None:
    for path in ("cut.jpg", "text.jpg", "zero.png"):
        os.utime(with_broken.root / "cat" / path, (1, 1))
    (with_broken.root / "cat" / "gone.png").unlink()
    dataset = open_dataset(with_broken.root)
    assert len(build(dataset, 32).broken) == 3
    no_decoding()
    assert len(build(dataset, 32).broken) == 3
    os.utime(with_broken.root / "cat" / "cut.jpg", (2, 2))
    with pytest.raises(DecodedAgainError):
        build(dataset, 32)


def test_odd_images_are_counted(dataset: Dataset) -> None:
    for name in ("x.png", "y.png"):
        Image.new("RGB", (12, 16), "teal").save(dataset.root / "dog" / name)
    pack = build(open_dataset(dataset.root), 32)
    assert [str(remark) for remark in pack.remarks] == ["2 images of one colour (dog/x.png)"]
    assert open_pack(pack.folder).remarks == pack.remarks
