"""The list of images to leave out: read as spreadsheets write it, and applied with the count said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.data.dataset import Dataset, Sample
from fitwithin.data.fingerprint import digest
from fitwithin.data.inspection import exclusions
from fitwithin.data.inspection.exclusions import Exclusions, fingerprint_without, leave_out, read
from fitwithin.data.inspection.suspects import Suspect, to_csv
from fitwithin.errors import DataError, UsageError


def dataset(count: int = 6) -> Dataset:
    samples = [
        Sample(path=f"{split}/{name}/{n}.jpg", label=label, split=split)
        for split in ("train", "val")
        for label, name in enumerate("ab")
        for n in range(count)
    ]
    return Dataset(
        source="/photos",
        root=Path("/photos"),
        classes=("a", "b"),
        samples=tuple(samples),
        fingerprint="0" * 32,
        split_why="as the folders have it",
        ignored=0,
    )


def suspect(path: str, exclude: bool) -> Suspect:
    return Suspect(path=path, label="a", split="train", what="copy", why="the same", suggestion="look", exclude=exclude)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(said=st.dictionaries(TEXT, st.booleans(), max_size=6))
def test_a_list_says_what_was_written(said: dict[str, bool], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("list") / "suspects.csv"
    file.write_text("\ufeff" + to_csv(suspect(path, yes) for path, yes in said.items()), encoding="utf-8")
    assert read(file).paths == {path for path, yes in said.items() if yes}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("word", ["yes", "Y", " x ", "1", "TRUE"])
def test_spreadsheets_write_their_own_way(tmp_path: Path, delimiter: str, word: str) -> None:
    file = tmp_path / "list.csv"
    rows = [("Path", "note", "Exclude"), ("a.jpg", "", word), ("b.jpg", "x", ""), ("c.jpg", "", "No")]
    file.write_text("\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8-sig")
    assert read(file).paths == {"a.jpg"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,what\na.jpg,copy\n", "has no column exclude"),
        ("", "has no column path and no column exclude"),
        ("exclude,path\nyes,a.jpg\nperhaps,b.jpg\n", "says 'perhaps' of b.jpg in line 3; write yes or no"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "absent.csv")


def test_images_are_left_out_and_the_fingerprint_is_that_of_the_rest() -> None:
    before = dataset()
    gone = frozenset({"train/a/0.jpg", "val/b/3.jpg", "nowhere.jpg"})
    after = leave_out(before, Exclusions(file=Path("/lists/mine.csv"), paths=gone))
    assert {sample.path for sample in before.samples} - {sample.path for sample in after.samples} == gone - {
        "nowhere.jpg"
    }
    assert after.excluded == "2 of 24 images are left out by mine.csv (1 train, 1 val)"
    assert after.excluded in after.notes
    assert any("1 of the 3 images that mine.csv leaves out are not there" in note for note in after.notes)
    assert after.fingerprint != before.fingerprint


@given(st.lists(TEXT, unique=True, min_size=1, max_size=5), st.randoms())
def test_the_fingerprint_depends_on_what_is_left_out_and_not_on_its_order_or_place(paths: list[str], rng) -> None:
    gone = [
        Sample(path=path, label=0, split="train", content=digest(path.encode("utf-8", "replace"))) for path in paths
    ]
    shuffled = gone.copy()
    rng.shuffle(shuffled)
    assert fingerprint_without("f", gone) == fingerprint_without("f", shuffled)
    assert fingerprint_without("f", gone) == fingerprint_without("f", [replace(each, path="x") for each in gone])
    assert fingerprint_without("f", gone) != fingerprint_without("f", gone[1:])
    assert fingerprint_without("f", gone) != fingerprint_without("g", gone)


def test_a_list_of_nothing_changes_nothing_but_says_so() -> None:
    before = dataset()
    after = leave_out(before, Exclusions(file=Path("mine.csv"), paths=frozenset()))
    assert (after.samples, after.fingerprint, after.excluded) == (before.samples, before.fingerprint, "")
    assert after.notes == ("mine.csv leaves no image out",)


def test_a_class_must_be_left() -> None:
    gone = frozenset(f"train/b/{n}.jpg" for n in range(6))
    with pytest.raises(DataError, match="no image to train the class 'b' once 6 of 24 images are left out"):
        leave_out(dataset(), exclusions.Exclusions(file=Path("mine.csv"), paths=gone))
