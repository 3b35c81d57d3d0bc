"""What predictions are asked for: every kind of picture is taken, everything else refused with a sentence."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin.data.sources.tree import Tree
from fitwithin.errors import DataError, UsageError
from fitwithin.inference.sources import labelled, sources


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture of 10 x 20 pixels."""
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10), "teal").save(path)
    return path


def test_every_kind_of_picture_is_read_alike(image: Path) -> None:
    opened = Image.open(image)
    pixels = np.asarray(opened)
    given: list[Any] = [image, str(image), image.read_bytes(), opened, pixels, [image], (pixels,), pixels[None]]
    for each in given:
        (source,) = sources(each)
        assert np.array_equal(np.asarray(source.read(16)), pixels)
    assert [source.name for source in sources([image, pixels])] == [str(image), "image 2"]
    assert [source.name for source in sources(image.parent)] == [str(image)]


@pytest.mark.parametrize("shape", [(10, 20), (10, 20, 1), (10, 20, 4)])
def test_grey_and_transparent_arrays(shape: tuple[int, ...]) -> None:
    (source,) = sources(np.zeros(shape, np.uint8))
    assert source.read(16).size == (20, 10)
    assert source.read(16).mode == "RGB"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (7, "not int"),
        (None, "not NoneType"),
        ([3.5], "image 1 is of type float"),
        (np.zeros((4, 4, 3), np.float32), "4 x 4 x 3 float32 values; give uint8"),
        (np.zeros((4, 4, 7), np.uint8), "4 x 4 x 7 uint8"),
        ("nowhere.jpg", "there is no file or folder 'nowhere.jpg'"),
    ],
)
def test_what_is_no_picture_is_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sources(given)


def test_bytes_that_are_no_image_fail_when_they_are_read() -> None:
    (source,) = sources(b"no image")
    with pytest.raises(OSError, match="no image that Pillow knows"):
        source.read(16)


def files(folder: Path, *names: str) -> list[Path]:
    found = [folder / name for name in names]
    for path in found:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return found


def named(given: Any) -> list[str]:
    return [source.name for source in sources(given)]


def test_folders_are_walked_by_name_folder_by_folder(tmp_path: Path) -> None:
    files(tmp_path, "b.png", "a/2.png", "a/1.png", "c/d/3.png", ".hidden/4.png", "c/5.png")
    (tmp_path / "notes.md").write_text("no image")
    expected = ["b.png", "a/1.png", "a/2.png", "c/5.png", "c/d/3.png"]
    assert named(tmp_path) == [str(tmp_path / name) for name in expected]


def test_folders_are_looked_into_as_pictures_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, *(f"{place:03}/{number}.png" for place in range(50) for number in range(2)))
    listed: list[str] = []
    whole = Tree.entries
    monkeypatch.setattr(Tree, "entries", lambda self, path: listed.append(path) or whole(self, path))
    coming = sources(tmp_path)
    next(coming)
    assert len({*listed}) < 4
    assert len(list(coming)) == 99


def test_patterns_lists_and_tables_name_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = files(tmp_path, "x/1.png", "x/2.png")
    assert named(str(tmp_path / "x" / "*.png")) == [str(one), str(two)]
    (tmp_path / "list.txt").write_text("x/2.png\n\nx/1.png\n")
    assert named(tmp_path / "list.txt") == [str(two), str(one)]
    (tmp_path / "table.csv").write_text("label,Filename\ncat,x/1.png\ndog,gone.png\n")
    assert named(tmp_path / "table.csv") == [str(one), str(tmp_path / "gone.png")]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{two}\n{one}\n"))
    assert named("-") == [str(two), str(one)]


def test_a_file_that_a_list_names_and_that_is_gone_fails_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.png\n")
    (source,) = sources(tmp_path / "list.txt")
    with pytest.raises(OSError, match="No such file"):
        source.read(16)


def test_labelled_pictures_of_a_table_are_those_of_its_test_split(tmp_path: Path) -> None:
    given = files(tmp_path, *(f"{number}.png" for number in range(6)))
    kinds = [(kind, split) for split in ("train", "val", "test") for kind in ("cat", "dog")]
    lines = [f"{number}.png,{kind},{split}" for number, (kind, split) in enumerate(kinds)]

    def asked(*lines: str, header: str = "path,label,split") -> list[tuple[Path, str]]:
        (tmp_path / "table.csv").write_text("\n".join([header, *lines]) + "\n")
        return labelled(tmp_path / "table.csv", ("cat", "cow", "dog"))

    assert asked(*lines) == [(given[4], "cat"), (given[5], "dog")]
    assert asked(*lines[:4]) == [(given[2], "cat"), (given[3], "dog")]
    assert asked(lines[4]) == [(given[4], "cat")]
    assert asked("0.png,dog", header="path,label") == [(given[0], "dog")]
    with pytest.raises(DataError, match=r"classes the model does not know \('hen'\); .* 'cat', 'cow', 'dog'"):
        asked("0.png,hen,test")
    with pytest.raises(DataError, match="holds no labelled images"):
        asked("0.png,,test")


@pytest.mark.parametrize(
    ("content", "words"),
    [("a,b\n1,2\n", "has no column of paths \\('a', 'b'\\); call it 'path'"), ("", "has no column")],
)
def test_a_table_without_paths_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(UsageError, match=words):
        sources(tmp_path / "table.csv")


def test_every_source_can_go_to_another_process(image: Path) -> None:
    pixels = np.asarray(Image.open(image))
    for source in sources([image, image.read_bytes(), Image.open(image), pixels]):
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(np.asarray(again.read(16)), pixels)


def peak_bytes_of(given: Path) -> int:
    """What naming all pictures takes at a time, in a process of its own: Python's table of words grows in leaps."""
    code = (
        "import sys, tracemalloc\n"
        "from collections import deque\n"
        "from fitwithin.inference.sources import sources\n"
        "tracemalloc.start()\n"
        "deque(sources([sys.argv[1]]), maxlen=1)\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(given)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("kind", ["list", "table", "folders"])
def test_however_many_pictures_there_are_memory_is_flat(tmp_path: Path, kind: str) -> None:
    """All the paths would take 16 MB. (Some words of paths stay in a table of Python's, of 2 MB at the most.)"""
    peaks = []
    for count in (400, 40_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        if kind == "folders":
            for place in range(count // 400):
                (folder / f"{place:03}").mkdir()
                for number in range(10):
                    (folder / f"{place:03}" / f"{number}.png").touch()
            peaks.append(peak_bytes_of(folder))
            continue
        names = [f"images/{number:07}.png" for number in range(count)]
        given = folder / ("some.txt" if kind == "list" else "some.csv")
        lines = names if kind == "list" else ["path,other", *(f"{name},1" for name in names)]
        given.write_text("\n".join(lines), encoding="utf-8")
        del names, lines
        peaks.append(peak_bytes_of(given))
    assert peaks[1] < peaks[0] + 4_000_000
