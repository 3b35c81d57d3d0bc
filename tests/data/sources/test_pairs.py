"""Pictures with their class in a file beside each: what counts as one, and what is refused."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from data.sources.forms import add
from fitwithin.data.dataset import Dataset
from fitwithin.data.sources.door import open_dataset
from fitwithin.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))


def kind(number: int) -> str:
    return ("cat", "dog")[number % 2]


def files(number: int, **beside: str) -> dict[str, bytes]:
    """A picture, and files beside it by their endings."""
    return {
        f"{number:03}.png": b"\x89PNG\r\n\x1a\n%d" % number,
        **{f"{number:03}.{ending}": text.encode() for ending, text in beside.items()},
    }


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return path


def labels(dataset: Dataset) -> set[tuple[bytes, str]]:
    return {((dataset.root / s.path).read_bytes(), dataset.classes[s.label]) for s in dataset.samples}


EXPECTED = {(files(number)[f"{number:03}.png"], kind(number)) for number in range(8)}

WAYS = {
    "cls": lambda number: {"cls": f"{kind(number)}\n"},
    "txt": lambda number: {"txt": kind(number)},
    "json": lambda number: {"json": json.dumps({"id": number, "Class": kind(number)})},
    "the class counts more than the caption": lambda number: {"cls": kind(number), "txt": f"picture {number}"},
    "facts count more than the caption": lambda number: {"json": f'{{"label": "{kind(number)}"}}', "txt": f"{number}"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_file_that_says_a_class(tmp_path: Path, way: object) -> None:
    members = {name: content for number in range(8) for name, content in files(number, **way(number)).items()}  # type: ignore[operator]
    one = open_dataset(shard(tmp_path / "one.tar", members))
    assert labels(one) == EXPECTED
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)
    assert open_dataset(folder).fingerprint == one.fingerprint


def test_numbers_are_names(tmp_path: Path) -> None:
    members = {name: content for number in range(8) for name, content in files(number, cls=str(number % 2)).items()}
    assert open_dataset(shard(tmp_path / "one.tar", members)).classes == ("0", "1")


def test_groups_and_splits_in_json(tmp_path: Path) -> None:
    members = {
        name: content
        for number in range(8)
        for name, content in files(
            number, json=json.dumps({"label": kind(number), "patient": number // 4, "split": "train"})
        ).items()
    }
    found = open_dataset(shard(tmp_path / "one.tar", members))
    sides = {(found.root / s.path).read_bytes()[-1:]: s.split for s in found.samples}
    assert len({sides[b"%d" % number] for number in range(4)}) == 1
    assert {*sides.values()} == {"train", "val"}


REFUSED = {
    "no class": ({}, "without its class; put 003.cls, 003.json or 003.txt beside it"),
    "no JSON": ({"json": "{"}, "003.json in .* cannot be read"),
    "a list": ({"json": "[1]"}, "003.json in .* does not say a class"),
    "far too deep": ({"json": "[" * 200_000}, "003.json in .* cannot be read"),
    "no text": ({"cls": "\udcff"}, "003.cls in .* cannot be read"),
    "far too long": ({"cls": "x" * (2**20 + 1)}, "003.cls in .* does not say a class"),
    "an empty class": ({"cls": " "}, "1 images in train of .* have no label, such as 003.png"),
}


@pytest.mark.parametrize(("beside", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_says_no_class_is_refused(tmp_path: Path, beside: dict[str, str], words: str) -> None:
    members = {name: content for number in range(8) for name, content in files(number, cls=kind(number)).items()}
    del members["003.cls"]
    members |= {f"003.{ending}": text.encode("utf-8", "surrogateescape") for ending, text in beside.items()}
    with pytest.raises(DataError, match=words):
        open_dataset(shard(tmp_path / "one.tar", members))


def test_json_without_a_class_names_what_it_has(tmp_path: Path) -> None:
    members = {
        name: content
        for number in range(8)
        for name, content in files(number, json=json.dumps({"a": kind(number)})).items()
    }
    path = shard(tmp_path / "one.tar", members)
    with pytest.raises(DataError, match=r"000.json in .* has no column called 'label' .*columns are 'a'.*label=NAME"):
        open_dataset(path)
    assert labels(open_dataset(path, columns={"label": "a"})) == EXPECTED
