"""What predictions are asked for: every kind of picture is taken, everything else refused with a sentence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin.errors import UsageError
from fitwithin.inference.predictions import CsvTable, Prediction
from fitwithin.inference.sources import sources


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


def test_a_table_has_a_line_for_each_image_and_any_bytes_of_a_path() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = CsvTable(file, 3)
        table.add(Prediction(path="caf\udce9.jpg", top=(("cat", 0.75), ("dog", 0.25))))
        table.add(Prediction(path="b.jpg", top=(), error="cut short"))
        file.flush()
        lines = raw.getvalue().split(b"\r\n")
    assert lines[0] == b"path,class,probability,class_2,probability_2,class_3,probability_3,error"
    assert lines[1] == b"caf\xe9.jpg,cat,0.750000,dog,0.250000,,,"
    assert lines[2] == b"b.jpg,,,,,,,cut short"
