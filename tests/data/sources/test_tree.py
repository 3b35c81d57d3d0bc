"""One reading of folders: what is passed over everywhere, and the names of splits as people write them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitwithin.data.sources.door import open_dataset
from fitwithin.data.sources.splits import split_alike, split_named
from fitwithin.data.sources.tree import SYSTEM, Tree
from fitwithin.errors import DataError, UsageError
from fitwithin.inference.sources import image_files, labelled_files

RNG = np.random.default_rng(0)


def picture(path: Path) -> None:
    """A small image unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image.save(path, "JPEG" if path.suffix == ".jpg" else "PNG")


def classes(root: Path, *names: str, count: int = 4) -> Path:
    """A folder with so many images for each class."""
    for name in names:
        for i in range(count):
            picture(root / name / f"{i}.png")
    return root


LEFT_BEHIND = ("@eaDir", "#recycle", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "__pycache__")


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_systems_leave_behind_is_passed_over_by_runs_predictions_and_evaluations(
    tmp_path: Path, name: str
) -> None:
    root = classes(tmp_path / "data", "cat", "dog")
    picture(root / "cat" / name / "0.png")
    picture(root / name / "thumb.png")
    (root / "cat" / "._0.png").write_bytes(b"resource fork")
    (root / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    assert open_dataset(root).classes == ("cat", "dog")
    assert (
        len(open_dataset(root).samples)
        == len(list(image_files(root)))
        == len(labelled_files(root, ("cat", "dog")))
        == 8
    )


def test_a_system_folder_that_may_not_be_listed_is_never_looked_into(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", "cat", "dog")
    (root / "System Volume Information").mkdir(mode=0)
    assert open_dataset(root).classes == ("cat", "dog")


def test_runs_in_the_data_folder_are_no_class(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", "cat", "dog")
    (root / "runs" / "data-1").mkdir(parents=True)
    (root / "runs" / "data-1" / "run.db").write_bytes(b"")
    picture(root / "runs" / "data-1" / "chart.png")
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog")
    assert any("runs/data-1" in note for note in dataset.notes)
    assert len(labelled_files(root, ("cat", "dog"))) == 8


@pytest.mark.parametrize(
    "train", ["Training", "TRAIN", "train_images", "seg_train", "train2017", "TrainSet", "images-train"]
)
@pytest.mark.parametrize("other", ["Testing", "dev", "validation_set", "val2017", "test images", "seg_test", "Eval"])
def test_splits_have_the_names_that_people_give_them(tmp_path: Path, train: str, other: str) -> None:
    classes(tmp_path / train, "cat", "dog")
    classes(tmp_path / other, "cat", "dog")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    split = "test" if "test" in other.lower() else "val"
    assert dataset.counts()[split] == 8
    assert {s.split for s in dataset.samples if s.path.startswith(f"{other}/")} == {split}


@pytest.mark.parametrize(
    "names", [("test tube", "beaker"), ("train station", "airport"), ("bullet train", "test pattern")]
)
def test_classes_may_hold_the_word_of_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert open_dataset(classes(tmp_path, *names)).classes == tuple(sorted(names))


@given(
    st.sampled_from(["train", "val", "test"]), st.sampled_from(["{}", "{}_x", "x-{}", "{}2017", "{}set", "{}_images"])
)
def test_a_word_before_or_after_leaves_the_split(split: str, form: str) -> None:
    name = form.format(split)
    assert split_alike(name) == split_alike(name.upper() if form != "x-{}" else name) == split
    assert split_named(name) == (split if form == "{}" else None)


@pytest.mark.parametrize("name", ["trainer", "contest", "valley", "develop", "train_val", "latest", "evaluate me"])
def test_words_that_only_begin_like_a_split(name: str) -> None:
    assert split_alike(name) is None


def test_folders_too_many_are_looked_through(tmp_path: Path) -> None:
    classes(tmp_path / "archive" / "photos", "cat", "dog")
    (tmp_path / "__MACOSX").mkdir()
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert f"the images are read from {tmp_path / 'archive' / 'photos'}" in dataset.split_why
    classes(tmp_path / "twice" / "seg_train" / "seg_train", "cat", "dog")
    classes(tmp_path / "twice" / "seg_test" / "seg_test", "cat", "dog")
    assert open_dataset(tmp_path / "twice").counts() == {"train": 8 - 2, "val": 2, "test": 8}
    assert len(labelled_files(tmp_path / "archive", ("cat", "dog"))) == 8


def test_splits_that_have_classes_in_common_are_splits_beside_other_folders_too(tmp_path: Path) -> None:
    classes(tmp_path / "seg_train" / "seg_train", "cat", "dog")
    classes(tmp_path / "seg_test" / "seg_test", "cat", "dog")
    picture(tmp_path / "seg_pred" / "seg_pred" / "1.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.counts()["test"] == 8
    assert "seg_pred/ is no split and was left out" in dataset.split_why


def test_broken_files_that_are_alike_are_no_copies(tmp_path: Path) -> None:
    root = classes(tmp_path, "cat", "dog")
    for number in range(40):
        (root / "cat" / f"broken{number}.png").write_bytes(b"404 not found")
    dataset = open_dataset(root)
    assert dataset.copies == {}
    assert not any("cop" in note for note in dataset.notes)


def test_one_class_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has one class, 'cat'"):
        open_dataset(classes(tmp_path, "cat"))


def test_unlabelled_test_images_may_lie_one_folder_down(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog")
    picture(tmp_path / "test" / "images" / "1.png")
    assert [s.label for s in open_dataset(tmp_path).of("test")] == [-1]


def test_names_are_compared_in_one_form(tmp_path: Path) -> None:
    one, other = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    classes(tmp_path / "train", one, "thé")
    classes(tmp_path / "test", other, "thé")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == (one, "thé")
    assert dataset.counts()["test"] == 8
    assert {name for _, name in labelled_files(tmp_path / "test", (other, "thé"))} == {other, "thé"}


def test_files_are_known_by_how_they_begin(tmp_path: Path) -> None:
    root = classes(tmp_path, "cat", "dog")
    for name in ("a.jpg_large", "b", "c.bin", "d.mpo"):
        picture(root / "cat" / "x.jpg")
        (root / "cat" / "x.jpg").rename(root / "cat" / name)
    (root / "cat" / "notes.txt").write_text("BM is no bitmap")
    dataset = open_dataset(root)
    assert len(dataset.samples) == 12
    assert dataset.notes[0] == "1 file is not an image: 1 .txt"
    assert len(list(image_files(root))) == 12


def test_every_class_of_a_kind_is_named_at_once(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b", "c", count=1)
    with pytest.raises(DataError, match=r"1 image of each of 3 classes \('a', 'b', 'c'\)"):
        open_dataset(tmp_path)
    classes(tmp_path / "split" / "train", "cat", "dog")
    classes(tmp_path / "split" / "val", "cow", "pig", "hen")
    with pytest.raises(DataError, match="the classes 'cow', 'hen', 'pig'"):
        open_dataset(tmp_path / "split")


def test_copies_are_counted(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog")
    classes(tmp_path / "val", "cat", "dog")
    for i in range(3):
        (tmp_path / "test" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / "cat" / f"{i}.png").write_bytes((tmp_path / "train" / "cat" / f"{i}.png").read_bytes())
    (tmp_path / "train" / "dog" / "wrong.png").write_bytes((tmp_path / "train" / "cat" / "3.png").read_bytes())
    dataset = open_dataset(tmp_path)
    assert dataset.copies == {"test": 3}
    notes = "; ".join(dataset.notes)
    assert "3 test images are copies of training images, such as test/cat/0.png" in notes
    assert "1 image lies in more than one class, such as" in notes
    assert "there is no test image of the class 'dog'" in notes


def test_long_files_that_begin_alike_are_no_copies(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog")
    classes(tmp_path / "test", "cat", "dog")
    for split, last in (("train", b"1"), ("test", b"2")):
        (tmp_path / split / "cat" / "big.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100_000) + last)
    assert open_dataset(tmp_path).copies == {}


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a").symlink_to(tmp_path / "a")
    with pytest.raises(DataError):
        open_dataset(tmp_path)
    with pytest.raises(UsageError, match="holds no images"):
        image_files(tmp_path)


def test_all_names_are_in_lower_case() -> None:
    assert {name.lower() for name in SYSTEM} == SYSTEM


def test_an_evaluation_takes_the_test_split_of_a_folder_with_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        classes(tmp_path / split, "cat", "dog")
    found = labelled_files(tmp_path, ("cat", "dog"))
    assert {path.parent.parent.name for path, _ in found} == {"test"}
    assert os.path.commonpath([path for path, _ in found]) == str(tmp_path / "test")


def test_what_is_counted_is_counted_once(tmp_path: Path) -> None:
    classes(tmp_path, "cat")
    (tmp_path / "cat" / "a.txt").write_text("x")
    tree = Tree(tmp_path)
    for _ in range(2):
        assert len(tree.images_below("cat")) == 4
    assert tree.endings == {".txt": 1}
