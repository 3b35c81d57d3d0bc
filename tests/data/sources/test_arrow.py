"""Parquet, and what Hugging Face's datasets saves: that library is the oracle."""

from __future__ import annotations

import datetime
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fitwithin.data.dataset import Dataset
from fitwithin.data.sources import arrow
from fitwithin.data.sources.door import open_dataset
from fitwithin.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def columns(count: int = 12, **more: list[Any]) -> dict[str, list[Any]]:
    """Pictures and classes; a column that is given as None is left out."""
    found: dict[str, Any] = {
        "image": [png(number) for number in range(count)],
        "label": [CLASSES[number % 2] for number in range(count)],
        **more,
    }
    return {name: values for name, values in found.items() if values is not None}


def write(file: Path, **more: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns(**more)), file, row_group_size=5)
    return file


def contents(dataset: Dataset) -> dict[bytes, str]:
    """The class of each picture by its bytes."""
    return {(dataset.root / s.path).read_bytes(): dataset.classes[s.label] for s in dataset.samples}


EXPECTED = {png(number): CLASSES[number % 2] for number in range(12)}


def test_bytes_and_the_structs_of_hugging_face_are_the_same_pictures(tmp_path: Path) -> None:
    plain = open_dataset(write(tmp_path / "plain.parquet"))
    structs = [{"bytes": png(number), "path": f"../../{number}.PNG"} for number in range(12)]
    struct = open_dataset(write(tmp_path / "struct.parquet", image=structs))
    assert contents(plain) == contents(struct) == EXPECTED
    assert plain.fingerprint == struct.fingerprint
    assert {Path(s.path).suffix for s in struct.samples} == {".png"}
    assert all(struct.root in (struct.root / s.path).resolve().parents for s in struct.samples)


def test_rows_are_split_over_folders_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "IN_FOLDER", 5)
    monkeypatch.setattr(arrow, "AT_ONCE", 4)
    found = open_dataset(write(tmp_path / "x.parquet"))
    assert contents(found) == EXPECTED
    assert {Path(s.path).parent.name for s in found.samples} == {"00000", "00001", "00002"}


def test_rows_without_bytes_name_files(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    structs = [
        {"bytes": None, "path": f"{number}.png"} if number % 3 else {"bytes": png(number), "path": None}
        for number in range(12)
    ]
    assert contents(open_dataset(write(tmp_path / "x.parquet", image=structs))) == EXPECTED
    paths = open_dataset(write(tmp_path / "y.parquet", image=None, path=[f"{number}.png" for number in range(12)]))
    assert contents(paths) == EXPECTED
    assert paths.root == tmp_path
    with pytest.raises(DataError, match=r"row 2 of .* has no picture; take it out"):
        open_dataset(write(tmp_path / "z.parquet", image=[png(0), None, *map(png, range(2, 12))]))


def test_labels_of_any_type(tmp_path: Path) -> None:
    numbers = [number % 2 for number in range(12)]
    for name, labels, classes in (
        ("whole", numbers, ("0", "1")),
        ("float", [float(number) for number in numbers], ("0", "1")),
        ("bool", [bool(number) for number in numbers], ("False", "True")),
        ("categories", pa.array([CLASSES[number] for number in numbers]).dictionary_encode(), CLASSES),
    ):
        assert open_dataset(write(tmp_path / f"{name}.parquet", label=labels)).classes == classes
    for labels, words in (
        ([number / 3 for number in range(12)], "has the label 0.333333, a number with a fraction"),
        ([[1, 2]] * 12, "has several labels"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset(write(tmp_path / "wrong.parquet", label=labels))


def test_times_as_the_table_has_them(tmp_path: Path) -> None:
    times = [datetime.datetime(2026, 1, 28 - number, 12) for number in range(12)]
    for name, values in (("moment", times), ("day", [each.date() for each in times])):
        found = open_dataset(write(tmp_path / f"{name}.parquet", time=values), split="order")
        tested = {(found.root / s.path).read_bytes() for s in found.of("test")}
        assert tested == {png(0), png(1)}


def test_a_folder_of_tables_as_on_the_hub(tmp_path: Path) -> None:
    for name, numbers in (
        ("train-00000-of-00002", range(6)),
        ("train-00001-of-00002", range(6, 8)),
        ("test", range(8, 12)),
    ):
        write(
            tmp_path / "hub" / "data" / f"{name}.parquet",
            image=[png(number) for number in numbers],
            label=[CLASSES[number % 2] for number in numbers],
        )
    found = open_dataset(tmp_path / "hub")
    assert contents(found) == EXPECTED
    assert {(found.root / s.path).read_bytes() for s in found.of("test")} == {png(number) for number in range(8, 12)}
    assert found.split_why.startswith("train and test as the files have them, val drawn as 10 % of train")
    assert open_dataset(tmp_path / "hub" / "data").fingerprint == found.fingerprint
    assert open_dataset(tmp_path / "hub" / "data" / "*.parquet").fingerprint == found.fingerprint
    write(tmp_path / "hub" / "data" / "extra.parquet")
    with pytest.raises(DataError, match=r"beside extra.parquet, which states no split; rename it"):
        open_dataset(tmp_path / "hub")


def test_several_data_sets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("two in one")
    for name in ("large", "small"):
        write(tmp_path / name / "train.parquet")
    with pytest.raises(DataError, match=r"has several data sets \('large', 'small'\); give the folder of one"):
        open_dataset(tmp_path)
    assert contents(open_dataset(tmp_path / "small")) == EXPECTED


def test_damage_and_columns_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(DataError, match=r"x.parquet cannot be read \(.*\); get it anew"):
        open_dataset(tmp_path / "x.parquet")
    write(tmp_path / "two" / "train.parquet")
    write(tmp_path / "two" / "val.parquet", label=None, kind=list(CLASSES) * 6)
    with pytest.raises(DataError, match=r"val.parquet has no column 'label', which other files"):
        open_dataset(tmp_path / "two")
    with pytest.raises(DataError, match=r"has no column called 'label' or 'class' or 'category'; .* 'image', 'kind'"):
        open_dataset(tmp_path / "two" / "val.parquet")
    found = open_dataset(tmp_path / "two" / "val.parquet", columns={"label": "kind"})
    assert contents(found) == EXPECTED


def test_without_pyarrow_there_is_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow to be read: pip install 'fitwithin\[data\]'"):
        open_dataset(path)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A data set of Hugging Face's library, with a picture and the number of a named class in each row."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    rows = {"image": pictures, "label": [number % 2 for number in range(20)]}
    return datasets.Dataset.from_dict(rows, features=features)


def pixels(dataset: Dataset) -> dict[bytes, str]:
    found = {}
    for sample in dataset.samples:
        with Image.open(dataset.root / sample.path) as image:
            found[image.tobytes()] = dataset.classes[sample.label]
    return found


def test_what_datasets_saves_is_read_as_datasets_reads_it(saved: Any, tmp_path: Path) -> None:
    names = saved.features["label"].names
    expected = {row["image"].tobytes(): names[row["label"]] for row in saved}
    saved.save_to_disk(tmp_path / "whole", num_shards=3)
    assert pixels(open_dataset(tmp_path / "whole")) == expected
    saved.to_parquet(tmp_path / "data.parquet")
    assert pixels(open_dataset(tmp_path / "data.parquet")) == expected
    chosen = saved.select([3, 4, 7, 8, 11, 12])
    chosen.save_to_disk(tmp_path / "chosen")
    assert pixels(open_dataset(tmp_path / "chosen")) == {row["image"].tobytes(): names[row["label"]] for row in chosen}


def test_splits_that_datasets_saves_are_kept(saved: Any, tmp_path: Path) -> None:
    import datasets

    parts = saved.train_test_split(test_size=8, seed=0)
    parts.save_to_disk(tmp_path / "parts")
    found = open_dataset(tmp_path / "parts")
    assert found.counts() == {"train": 10, "val": 2, "test": 8}
    datasets.DatasetDict({"train": parts["train"], "validation": parts["test"]}).save_to_disk(tmp_path / "other")
    assert open_dataset(tmp_path / "other").counts() == {"train": 12, "val": 8, "test": 0}
    datasets.DatasetDict({"train": parts["train"], "fold": parts["test"]}).save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match=r"has the split 'fold', which is none of train, val and test"):
        open_dataset(tmp_path / "odd")


def test_a_saved_data_set_that_was_damaged_is_a_sentence(saved: Any, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "data")
    (tmp_path / "data" / "state.json").write_text('{"_data_files": []}')
    with pytest.raises(DataError, match="has no rows"):
        open_dataset(tmp_path / "data")
    (tmp_path / "data" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"is a saved data set that cannot be read .*; save it anew"):
        open_dataset(tmp_path / "data")
