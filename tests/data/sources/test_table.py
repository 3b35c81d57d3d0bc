"""Tables as text: what people write is understood, and what makes no sense is refused with its row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin.data.dataset import Dataset
from fitwithin.data.sources.door import open_dataset
from fitwithin.data.sources.listing import natural
from fitwithin.errors import DataError

#: Twelve pictures, six of a class.
FILES = [f"{number}.png" for number in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures, and one with another picture beside it."""
    for number, name in enumerate(FILES):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n%d" % number)
    return tmp_path


def kind(name: str) -> str:
    return ("cat", "dog")[FILES.index(name) % 2]


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows(*more: str, header: str = "path,label", files: list[str] | None = None) -> str:
    """A table with the pictures and their classes, and further rows."""
    return "\n".join([header, *(f"{name},{kind(name)}" for name in files or FILES), *more]) + "\n"


def labels(dataset: Dataset) -> dict[str, str]:
    return {s.path: dataset.classes[s.label] for s in dataset.samples if s.label >= 0}


def splits(dataset: Dataset) -> dict[str, str]:
    return {s.path: s.split for s in dataset.samples}


HEADERS = ["path,label", "Image,Class", "file_name,TARGET", "File Path,class-name", "img,category"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_are_known_by_the_usual_words(folder: Path, header: str, delimiter: str, encoding: str) -> None:
    text = rows(header=header).replace(",", delimiter).replace("\n", "\r\n")
    (folder / "list.csv").write_bytes(text.encode(encoding))
    assert labels(open_dataset(folder / "list.csv")) == {name: kind(name) for name in FILES}


cells = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and text not in (".", "..") and "/" not in text
)


@settings(max_examples=40)
@given(names=st.lists(cells, min_size=2, max_size=6, unique=True), delimiter=st.sampled_from(",;\t|"))
def test_any_name_of_a_file_and_class_comes_back(
    names: list[str], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("table")
    names = [name for name in names if len(name.encode()) < 200]
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["path", "label", "note"])
        for name in names:
            (folder / "x").mkdir(exist_ok=True)
            (folder / "x" / f"{name}.png").write_bytes(name.encode())
            writer.writerow([f"x/{name}.png", "a", "so; it, is\tsaid|"])
            (folder / "x" / f"{name}.jpg").write_bytes(name.encode() + b"2")
            writer.writerow([f"x/{name}.jpg", names[0], ""])
    if names[0] == "a":
        return
    found = open_dataset(folder / "list.csv")
    assert {s.path for s in found.samples} == {f"x/{name}.{end}" for name in names for end in ("png", "jpg")}
    assert all(found.root.joinpath(s.path).is_file() for s in found.samples)
    assert len(found.classes) == 2


def test_absolute_paths_and_paths_out_of_the_folder(folder: Path) -> None:
    (folder / "lists").mkdir()
    text = rows().replace("0.png", f"{folder}/0.png", 1).replace("\n", "\n../").replace(f"../{folder}", str(folder))
    found = open_dataset(table(folder / "lists", text.removesuffix("../")))
    assert {Path(found.root / s.path).resolve().name for s in found.samples} == {*FILES}


def test_one_file_by_two_names_is_one_picture(folder: Path) -> None:
    found = open_dataset(table(folder, rows("./0.png,cat", "x/../1.png,dog", "1.png,dog")))
    assert len(found.samples) == 12
    assert "3 rows name a picture again and were left out" in found.notes


def test_a_stated_split_is_kept(folder: Path) -> None:
    stated = [("train", "training", "dev", "Test")[number // 3] for number in range(12)]
    text = "path,label,split\n" + "".join(f"{n},{kind(n)},{s}\n" for n, s in zip(FILES, stated, strict=True))
    found = open_dataset(table(folder, text))
    meant = {"train": "train", "training": "train", "dev": "val", "Test": "test"}
    assert splits(found) == {name: meant[s] for name, s in zip(FILES, stated, strict=True)}
    assert found.split_why == "train, val, test as the table has them"
    ordered = open_dataset(table(folder, text), split="order")
    assert (ordered.fingerprint, splits(ordered)) == (found.fingerprint, splits(found))
    assert ordered.split_why == f"{found.split_why}, so nothing is put in order"
    drawn = open_dataset(table(folder, text), columns={"split": ""})
    assert "80/10/10 %" in drawn.split_why
    assert drawn.fingerprint != found.fingerprint


def test_a_test_may_be_without_labels(folder: Path) -> None:
    text = "path,label,split\n" + "".join(f"{n},{kind(n)},train\n" for n in FILES[:10])
    found = open_dataset(table(folder, text + "10.png,,test\n11.png,,test\n"))
    assert [s.label for s in found.of("test")] == [-1, -1]
    with pytest.raises(DataError, match=r"1 images in test of .* have no label, such as 11.png"):
        open_dataset(table(folder, text + "10.png,cat,test\n11.png,,test\n"))


def test_groups_stay_whole_and_are_part_of_the_fingerprint(folder: Path) -> None:
    text = "path,label,patient\n" + "".join(f"{n},{kind(n)},{number // 4}\n" for number, n in enumerate(FILES))
    found = open_dataset(table(folder, text))
    sides = {number // 4: splits(found)[name] for number, name in enumerate(FILES)}
    assert all(splits(found)[name] == sides[number // 4] for number, name in enumerate(FILES))
    assert {*sides.values()} == {"train", "val", "test"}
    assert "drawn per class, groups kept whole, with seed 0" in found.split_why
    other = text.replace("11.png,dog,2", "11.png,dog,1")
    assert open_dataset(table(folder, other)).fingerprint != found.fingerprint
    one = "path,label,patient\n" + "".join(f"{n},{kind(n)},7\n" for n in FILES)
    with pytest.raises(DataError, match="no image to validate on because of its groups"):
        open_dataset(table(folder, one))


TIMES = {
    "dates": lambda number: f"2026-01-{28 - number:02}",
    "moments": lambda number: f"2026-01-01T{20 - number:02}:30:00+01:00",
    "numbers": lambda number: str(1000 - number),
}


@pytest.mark.parametrize("time", TIMES.values(), ids=TIMES.keys())
def test_the_last_by_time_are_tested(folder: Path, time: object) -> None:
    text = "path,label,date\n" + "".join(f"{n},{kind(n)},{time(number)}\n" for number, n in enumerate(FILES))  # type: ignore[operator]
    found = open_dataset(table(folder, text), split="order")
    assert {s.path for s in found.of("test")} == {"0.png", "1.png"}
    assert {s.path for s in found.of("val")} == {"2.png", "3.png"}
    assert "drawn per class from the last by time" in found.split_why
    assert open_dataset(table(folder, text)).fingerprint != found.fingerprint, "its split is as good as stated"


def test_the_last_by_name_are_tested_as_people_count(folder: Path) -> None:
    found = open_dataset(table(folder, rows()), split="order")
    assert {s.path for s in found.of("test")} == {"10.png", "11.png"}
    assert "drawn per class from the last by name" in found.split_why
    assert sorted(["b10", "b9", "a", "b", "10", "b9c"], key=natural) == ["10", "a", "b", "b9", "b9c", "b10"]


def test_columns_can_be_named(folder: Path) -> None:
    text = rows(header="photo,species")
    with pytest.raises(DataError, match=r"has no column called 'path' or .*'photo', 'species'. Say .* path=NAME"):
        open_dataset(table(folder, text))
    found = open_dataset(table(folder, text), columns={"path": "photo", "label": "species"})
    assert labels(found) == {name: kind(name) for name in FILES}
    with pytest.raises(DataError, match="has no column 'kind'; its columns are 'photo', 'species'"):
        open_dataset(table(folder, text), columns={"path": "photo", "label": "kind"})


def test_two_columns_that_could_be_meant_are_refused(folder: Path) -> None:
    text = "path,label,category\n" + "".join(f"{n},{kind(n)},animal\n" for n in FILES)
    with pytest.raises(DataError, match=r"2 columns that could be the label \('label', 'category'\); .* label=label"):
        open_dataset(table(folder, text))
    assert open_dataset(table(folder, text), columns={"label": "label"}).classes == ("cat", "dog")


def test_numbers_are_names_of_classes(folder: Path) -> None:
    found = open_dataset(table(folder, rows().replace("cat", "10").replace("dog", "9")))
    assert found.classes == ("10", "9")


def test_weights_are_not_used_which_is_said(folder: Path) -> None:
    text = "path,label,weight\n" + "".join(f"{n},{kind(n)},2\n" for n in FILES)
    found = open_dataset(table(folder, text))
    assert found.notes == ("the column 'weight' is not used: every picture counts the same",)


def test_some_files_may_be_missing(folder: Path) -> None:
    """Decoding reports them, as it does of links that lead nowhere."""
    assert len(open_dataset(table(folder, rows("gone.png,cat"))).samples) == 13


REFUSED = {
    "nothing in it": ("", "has no column called 'path'"),
    "no header": ("0.png,cat\n1.png,dog\n", "its columns are '0.png', 'cat'"),
    "no rows": ("path,label\n\n", "has no rows"),
    "no file there": ("path,label\na/x.png,cat\na/y.png,dog\n", "none of the 2 files that"),
    "an empty path": (rows(",cat"), "row 14 of"),
    "too many cells": (rows("a,b.png,cat"), "has 3 cells where the first row names 2 columns; put cells with"),
    "too few cells": (rows("a.png"), "row 14 of"),
    "no label": (rows("12.png,"), "1 images in train of"),
    "one class": (rows().replace("dog", "cat"), "has one class, 'cat'"),
    "two labels of one file": (rows("0.png,dog"), "rows 2 and 14 of"),
    "bytes that are no text": ("path,label\n0.png,\0\n", "has a zero byte in it"),
    "a quantity": (
        "path,label\n" + "".join(f"{name},0.{number}7\n" for number, name in enumerate(FILES)),
        "has 1 image of each of 12 classes",
    ),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_makes_no_sense_is_refused(folder: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as refused:
        open_dataset(table(folder, text))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


SPLIT = {
    "no split": ("fold 3", "has the split 'fold 3', which is none of train, val and test; rename it, or leave"),
    "some without": ("", "row 14 of .* states no split, where others do"),
    "an unknown class": ("val", "val of .* has the class 'cow', which train does not have"),
}


@pytest.mark.parametrize(("split", "words"), SPLIT.values(), ids=SPLIT.keys())
def test_splits_that_make_no_sense_are_refused(folder: Path, split: str, words: str) -> None:
    text = "path,label,split\n" + "".join(f"{n},{kind(n)},train\n" for n in FILES)
    with pytest.raises(DataError, match=words):
        open_dataset(table(folder, f"{text}12.png,cow,{split}\n"))


def test_a_table_without_training_rows_is_refused(folder: Path) -> None:
    text = "path,label,split\n" + "".join(f"{n},{kind(n)},test\n" for n in FILES)
    with pytest.raises(DataError, match="no picture to learn from: its splits are 'test'; call one train"):
        open_dataset(table(folder, text))


@pytest.mark.parametrize("time", ["12/31/2025", ""])
def test_times_that_nobody_can_order_are_refused_when_they_are_needed(folder: Path, time: str) -> None:
    text = "path,label,date\n" + "".join(f"{n},{kind(n)},{time}\n" for n in FILES)
    with pytest.raises(DataError, match=r"row 2 of .* has .*time.*or.* order by name with --columns time="):
        open_dataset(table(folder, text), split="order")
    assert open_dataset(table(folder, text)).counts()["test"] == 2
    by_name = open_dataset(table(folder, text), split="order", columns={"time": ""})
    assert {s.path for s in by_name.of("test")} == {"10.png", "11.png"}
