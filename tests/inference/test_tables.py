"""Files of predictions: what is written comes back, and a file that was cut off anywhere is continued."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import RunFolderError, UsageError
from fitwithin.inference.predictions import Prediction
from fitwithin.inference.tables import Known, beginning, known_rows, open_table

PREDICTIONS = [
    Prediction(path="a.jpg", top=(("cat", 0.75), ("dog", 0.25))),
    Prediction(path='odd, "name"\n.jpg', top=(("dog", 0.5), ("cat", 0.5))),
    Prediction(path="caf\udce9.jpg", top=(), error="cut short"),
    Prediction(path="b.jpg", top=(("emu, big", 0.9), ("cat", 0.1))),
]


def write(file: Path, some: list[Prediction], **how: object) -> None:
    with closing(open_table(file, 2, **how)) as table:  # type: ignore[arg-type]
        for each in some:
            table.add(each)


def read_back(file: Path) -> list[dict[str, str]]:
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.CSV"])
def test_every_row_comes_back(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, PREDICTIONS)
    rows = read_back(tmp_path / name)
    assert [row["path"] for row in rows] == [each.path for each in PREDICTIONS]
    assert [row["class"] or "" for row in rows] == ["cat", "dog", "", "emu, big"]
    assert float(rows[0]["probability_2"]) == 0.25
    assert rows[2]["error"] == "cut short"
    assert (
        (tmp_path / name).read_text(encoding="utf-8", errors="surrogateescape").startswith(beginning(tmp_path / name))
    )


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "x.parquet", PREDICTIONS)
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["class"] for row in rows] == ["cat", "dog", None, "emu, big"]
    assert rows[0]["probability"] == 0.75
    with pytest.raises(UsageError, match="cannot be continued"):
        known_rows(tmp_path / "x.parquet", 2)


def test_below_the_threshold_no_class_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", PREDICTIONS, threshold=0.6)
    rows = read_back(tmp_path / "x.csv")
    assert [row["class"] for row in rows] == ["cat", "", "", "emu, big"]
    assert rows[1]["error"] == "not sure: below 0.6"
    assert rows[1]["class_2"] == "cat"


@given(st.sampled_from(["x.csv", "x.jsonl"]), st.data())
def test_a_file_that_was_cut_off_anywhere_is_continued(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("table") / name
    write(file, PREDICTIONS)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    known = known_rows(file, 2)
    assert known.last == (PREDICTIONS[known.rows - 1].path if known.rows else "")
    write(file, PREDICTIONS[known.rows :], known=known)
    assert file.read_bytes() == whole


def test_what_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert known_rows(tmp_path / "x.csv", 2) == Known()


@pytest.mark.parametrize(
    ("name", "content"), [("x.csv", "a,b\r\n1,2\r\n"), ("x.jsonl", "[1]\n"), ("x.jsonl", '{"path": "a"}\n')]
)
def test_another_table_is_not_continued(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunFolderError, match="no table of 2 classes by fitwithin"):
        known_rows(tmp_path / name, 2)


def test_another_number_of_classes_is_another_table(tmp_path: Path) -> None:
    write(tmp_path / "x.csv", PREDICTIONS)
    with pytest.raises(RunFolderError, match="no table of 3 classes"):
        known_rows(tmp_path / "x.csv", 3)


def test_other_endings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"ends in '.xlsx'; predictions are written to .csv, .jsonl, .parquet"):
        beginning(Path("x.xlsx"))
