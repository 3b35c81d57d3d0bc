"""The commands that use a model, by their options."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fitwithin.cli.main import app
from fitwithin.errors import UsageError
from inference.test_handed_over import REFERENCE, handed_over


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    handed_over(folder, "test_resnet")
    return folder


def call(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_prediction_that_was_cut_off_is_resumed(run: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    assert "8 of 8 images" in call("predict", run, run / "model" / "references", "-o", whole, "--top", 2)
    cut.write_bytes(whole.read_bytes()[: len(whole.read_bytes()) // 2])
    assert "8 of 8 images" in call("predict", run, run / "model" / "references", "-o", cut, "--top", 2, "--resume")
    assert cut.read_bytes() == whole.read_bytes()
    with whole.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == sorted(REFERENCE)
    assert "class_2" in rows[0]
    assert "class_3" not in rows[0]


def test_other_images_are_not_resumed(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.csv"
    call("predict", run, run / "model" / "references", "-o", output)
    before = output.read_bytes()
    (tmp_path / "one.jpg").write_bytes(REFERENCE["0.jpg"])
    with pytest.raises(UsageError, match="start anew without --resume"):
        call("predict", run, tmp_path / "one.jpg", "-o", output, "--resume")
    assert output.read_bytes() == before


def test_below_the_threshold_nothing_is_named(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    call("predict", run, run / "model" / "references", "-o", output, "--threshold", 1)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8
    assert {row["class"] for row in rows} == {None}


def test_an_export_says_how_it_compares(run: Path, tmp_path: Path) -> None:
    found = json.loads(call("export", run, "--format", "torch", "--out", tmp_path, "--json").splitlines()[-1])
    assert (found["pictures"], found["same_class"]) == (8, 8)
    assert found["max_abs_diff"] <= 1e-4
    assert Path(found["file"]) == tmp_path / "model.pt2"
