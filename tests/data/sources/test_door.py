"""The same pictures are the same data set, in whatever form they are given; what is no data is refused."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sources.forms import FORMS, Given, as_shards
from fitwithin.data.dataset import Dataset
from fitwithin.data.inspection import twins
from fitwithin.data.sources import door
from fitwithin.data.sources.door import absolute, is_plain, is_there, matching, open_dataset
from fitwithin.errors import DataError
from simulated.pictures import CHANGES, jpeg, picture, write

CLASSES = ("cat", "dog", "thé")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(folder))
        yield folder


def what_is_trained_on(dataset: Dataset) -> object:
    """All of a data set but for where its files lie and how they are called."""
    samples = [(sample.content, sample.label, sample.split) for sample in dataset.samples]
    return dataset.fingerprint, dataset.classes, samples, dataset.counts(), dataset.copies


def some_pictures(data: st.DataObject) -> list[Given]:
    """Four and more of each class, some of them copies, with or without a split."""
    number = data.draw(st.integers(12, 30))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    stated = data.draw(st.sampled_from([(), ("train", "test"), ("train", "val"), ("train", "val", "test")]))
    pictures = []
    for place in range(number):
        content = b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.choice([3, 50, 70_000]))
        split = stated[place // 3 % len(stated)] if stated else ""
        pictures.append(Given(content, CLASSES[place % 3], split))
    # Copies; and two long files that begin alike.
    pictures += [pictures[place] for place in data.draw(st.lists(st.integers(0, number - 1), max_size=3))]
    start = b"\x89PNG\r\n\x1a\n" + bytes(70_000)
    return [*pictures, *(Given(start + end, *pictures[0][1:]) for end in (b"1", b"2"))]


@settings(max_examples=12)
@given(data=st.data())
def test_the_same_pictures_are_the_same_data_in_every_form(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pictures, root = some_pictures(data), tmp_path_factory.mktemp("forms")
    seed, split = data.draw(st.integers(0, 3)), "auto"
    found = {
        name: what_is_trained_on(open_dataset(write(root / name, pictures), seed=seed, split=split))
        for name, write in FORMS.items()
    }
    assert all(each == found["folder"] for each in found.values())
    other = [pictures[0]._replace(label=CLASSES[1]), *pictures[1:]]
    assert what_is_trained_on(open_dataset(FORMS["csv"](root / "other", other), seed=seed)) != found["folder"]


def few() -> list[Given]:
    rng = random.Random(0)
    return [Given(b"\x89PNG\r\n\x1a\n" + rng.randbytes(40), CLASSES[place % 2]) for place in range(12)]


def test_a_second_look_unpacks_nothing_and_mends_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    for name in ("zip", "parquet", "shards"):
        given_ = FORMS[name](tmp_path / name, few())
        before = open_dataset(given_)
        files = {path: path.stat().st_mtime_ns for path in before.root.rglob("*")}
        assert open_dataset(given_) == before
        assert {path: path.stat().st_mtime_ns for path in before.root.rglob("*")} == files
        (before.root / before.samples[3].path).unlink()
        assert open_dataset(given_) == before
        assert (before.root / before.samples[3].path).is_file()
    places = list((tmp_path / "cache" / "sources").iterdir())
    assert len(places) == 3, "no half folder is left"


def test_moved_archives_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    given_ = FORMS["zip"](tmp_path / "zip", few())
    before = open_dataset(given_)
    moved = given_.rename(tmp_path / "elsewhere.zip")
    assert open_dataset(moved).root == before.root
    assert "elsewhere.zip/photos" in open_dataset(moved).split_why


def test_patterns_name_shards(tmp_path: Path) -> None:
    root = as_shards(tmp_path / "shards", few())
    whole = open_dataset(root)
    for pattern in ("photos-*.tar", "photos-{0000..0001}.tar", "*-000[01].tar"):
        assert what_is_trained_on(open_dataset(root / pattern)) == what_is_trained_on(whole)
    assert [path.name for path in matching(str(root / "photos-{0000..0001}.tar"))] == [
        "photos-0000.tar",
        "photos-0001.tar",
    ]
    with pytest.raises(DataError, match=r"7 of the 9 files .* are not there, such as .*photos-0002"):
        matching(str(root / "photos-{0000..0008}.tar"))
    assert not matching(str(root / "nothing-*.tar"))


def test_shards_may_name_their_splits(tmp_path: Path) -> None:
    root = as_shards(tmp_path / "shards", few())
    (root / "photos-0000.tar").rename(root / "imagenet-train-0000.tar")
    (root / "photos-0001.tar").rename(root / "imagenet-validation-0000.tar")
    with pytest.raises(DataError, match=r"val of .* has the class 'dog', which train does not have"):
        open_dataset(root)
    shuffled = as_shards(tmp_path / "shuffled", [few()[place] for place in (0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11)])
    (shuffled / "photos-0000.tar").rename(shuffled / "train.tar")
    (shuffled / "photos-0001.tar").rename(shuffled / "val-0000.tar")
    dataset = open_dataset(shuffled)
    assert dataset.counts() == {"train": 6, "val": 6, "test": 0}
    assert dataset.split_why.startswith("train, val as the shards have them")


def test_class_folders_have_no_columns(tmp_path: Path) -> None:
    for name in ("folder", "zip"):
        with pytest.raises(DataError, match=r"--columns says what the columns of a table are, and .* has none"):
            open_dataset(FORMS[name](tmp_path / name, few()), columns={"label": "kind"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list anything")
def test_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0)
    with pytest.raises(DataError, match="data cannot be listed"):
        open_dataset(tmp_path / "data")


REFUSED = {
    "nothing there": ("nowhere", "nowhere does not exist; give a folder, a table"),
    "a pattern of nothing": ("*.tar", "does not exist"),
    "a file of another kind": ("notes.docx", "is a file of an unknown kind; give"),
    "several tables": ("*.csv", "is 2 files that cannot be read together"),
    "several kinds": ("*", "files that cannot be read together"),
    "a name of one word": ("hf:mnist", "names no data set of the Hub; write hf:owner/name"),
    "a name that is none": ("hf:a b/c", "names no data set of the Hub"),
    "a folder above": ("hf:owner/name/../x", "names no data set of the Hub"),
}


@pytest.mark.parametrize(("name", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_data_is_refused(tmp_path: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("a.csv", "b.csv", "notes.docx"):
        (tmp_path / file).write_text("path,label\n")
    with pytest.raises(DataError) as refused:
        open_dataset(name)
    assert words in str(refused.value)


def test_a_data_set_of_the_hub_is_read_from_the_cache_of_its_client_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"is not on this machine, .*: hf download owner/birds --repo-type dataset"):
        open_dataset("hf:owner/birds")
    commit = "0" * 40
    repo = tmp_path / "datasets--owner--birds"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "README.md").write_text("birds")
    FORMS["parquet"](tmp_path / "made", few()).rename(snapshot / "data" / "train-00000-of-00001.parquet")
    found = open_dataset("hf:owner/birds")
    assert found.counts() == {"train": 8, "val": 2, "test": 2}
    assert found.source == "hf:owner/birds"
    assert open_dataset("hf:owner/birds/data").fingerprint == found.fingerprint
    with pytest.raises(DataError, match="there is no folder 'other'"):
        open_dataset("hf:owner/birds/other")


def test_names_of_the_hub_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("hf:owner/birds") == "hf:owner/birds"
    assert absolute("birds.csv") == os.path.join(tmp_path, "birds.csv")
    assert is_there("hf:owner/birds")
    assert not is_there("birds.csv")


def test_class_folders_stay_class_folders_whatever_lies_beside_them(tmp_path: Path) -> None:
    root = FORMS["folder"](tmp_path / "data", few())
    before = open_dataset(root)
    FORMS["tar"](tmp_path / "tar", few()).rename(root / "backup.tar")
    FORMS["parquet"](tmp_path / "parquet", few()).rename(root / "features.parquet")
    for file in list(root.rglob("*.png")):
        file.with_suffix(".txt").write_text("0 0.5 0.5 0.1 0.1")  # boxes, or captions
        file.with_suffix(".json").write_text("[]")
    assert is_plain(root)
    assert what_is_trained_on(open_dataset(root)) == what_is_trained_on(before)


def test_time_that_is_over_is_said_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    for name in ("zip", "tar", "shards", "parquet"):
        given_ = FORMS[name](tmp_path / name, few())
        with pytest.raises(DataError, match="half of the time was over when 0 files of"):
            open_dataset(given_, until_at=0.0)
    assert not list((tmp_path / "cache").glob("sources/*"))


def test_near_twins_are_on_one_side_where_that_is_asked_for(tmp_path: Path) -> None:
    files = {}
    for name, first in (("a", 0), ("b", 100)):
        for number in range(12):
            one = picture(first + number)
            files[f"{name}/{number}.jpg"] = jpeg(one)
            files[f"{name}/{number}-again.jpg"] = jpeg(CHANGES["mirrored"](one), 60)
    root = write(tmp_path / "photos", files)

    def torn(split: str, seed: int) -> int:
        found = {sample.path: sample.split for sample in open_dataset(root, seed=seed, split=split).samples}
        return sum(found[path] != found[path.replace("-again", "")] for path in found if "-again" in path)

    assert sum(torn("auto", seed) for seed in range(3)) > 0
    assert [torn("grouped", seed) for seed in range(3)] == [0, 0, 0]
    whole = open_dataset(root, split="grouped")
    assert "near twins kept together" in whole.split_why
    assert whole.fingerprint == open_dataset(root).fingerprint, "they are no statement of the data"
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    again = open_dataset(moved, split="grouped")
    assert [(each.content, each.split) for each in again.samples] == [
        (each.content, each.split) for each in whole.samples
    ]


def test_looking_for_near_twins_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "photos", {f"{name}/{n}.jpg": jpeg(picture(n)) for name in "ab" for n in range(4)})
    find = twins.groups

    def late(dataset: Dataset, on_progress: Callable[[int, int], None]) -> Mapping[str, str]:
        monkeypatch.setattr(door, "time", SimpleNamespace(monotonic=lambda: math.inf))
        return find(dataset, on_progress)

    monkeypatch.setattr(twins, "groups", late)
    with pytest.raises(DataError, match="leave out --split grouped"):
        open_dataset(root, split="grouped", until_at=time.monotonic() + 60)
