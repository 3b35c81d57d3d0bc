"""The same pictures in a folder, a CSV file, a Parquet file, a zip and a tar of shards: one fingerprint, one result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data.sources.forms import FORMS, Given
from e2e.conftest import Finished
from e2e.door import CLASSES, SIZES, TINY, Door, budget_s, delivered, receipt, report, tree, write_shapes

#: The folder comes first: the plan is drawn up for it.
GIVEN = ("folder", "csv", "parquet", "zip", "shards")


def result(run: Path) -> dict[str, object]:
    """The data's fingerprint, and what the model says of every validation and test image, to the last bit."""
    logits = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.rglob("logits-*.npy")}
    assert {name.split("-")[1] for name in logits} == {"val", "test"}
    row = delivered(run)
    return {
        "fingerprint": receipt(run)["data_fingerprint"],
        "logits": logits,
        "accuracy": (row["validation"], row["test"]),
        "counts": report(run)["data"]["counts"],
    }


@pytest.mark.slow
def test_a_plan_for_a_folder_gives_the_same_result_in_every_form(door: Door, tmp_path: Path) -> None:
    """A plan fixes the steps, so that no clock has a say."""
    pytest.importorskip("pyarrow")
    shapes = write_shapes(tmp_path / "shapes", 20)
    pictures = [Given(file.read_bytes(), file.parent.name) for file in sorted(shapes.rglob("*.png"))]
    plan = tmp_path / "plan.json"
    given = {name: FORMS[name](tmp_path / name, pictures) for name in GIVEN}
    asked = (*TINY, *SIZES, "--models", "test_byobnet", "--time", f"{budget_s(12)}s")
    door.fine("plan", given["folder"], *asked, "--out", plan)
    steps = json.loads(plan.read_text())
    for trial in steps["trials"]:  # a moment's training is as good as a minute's
        trial["epochs"], trial["steps"] = trial["epochs"] * 20 / trial["steps"], 20
    plan.write_text(json.dumps(steps))
    found = {}
    for name, data in given.items():
        run = tmp_path / f"run-{name}"
        door.fine("run", data, "--plan", plan, "--out", run)
        found[name] = result(run)
    assert found["folder"]["counts"] == {"train": 64, "val": 8, "test": 8}
    assert all(each == found["folder"] for each in found.values())


def test_an_evaluation_takes_the_same_forms(door: Door, finished: Finished, tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", 3, seed=97)
    pictures = [Given(file.read_bytes(), file.parent.name) for file in sorted(shapes.rglob("*.png"))]
    table = FORMS["csv"](tmp_path / "csv", pictures)
    found = [json.loads(door.fine("evaluate", finished.folder, each, "--json").out) for each in (shapes, table)]
    assert found[0] == found[1]
    assert found[0]["images"] == 3 * len(CLASSES)
    renamed = table.with_name("renamed.csv")
    renamed.write_text(table.read_text(encoding="utf-8-sig").replace("Category", "Kind"), encoding="utf-8")
    refused = door.forked("evaluate", finished.folder, renamed)
    assert refused.code == 2
    assert "--columns label=NAME" in refused.err
    again = door.forked("evaluate", finished.folder, renamed, "--columns", "label=Nothing")
    assert "has no column 'Nothing'; its columns are 'Kind', 'Image Path', 'subset'" in again.err


def test_tables_that_cannot_serve_leave_nothing_behind(door: Door, tmp_path: Path) -> None:
    options = (*TINY, *SIZES, "--models", "test_byobnet", "--time", "30s")
    (tmp_path / "list.csv").write_text("photo,species\na.png,cat\n", encoding="utf-8")
    before = tree(door.cwd, tmp_path)
    for words, said in (
        (("list.csv",), "has no column called 'path'"),
        (("list.csv", "--columns", "path=photo,label=species"), "none of the 1 files"),
        (("list.csv", "--columns", "photo"), "--columns 'photo' does not say which column is which"),
        (("list.csv", "--split", "banana"), "'banana' is no way to split; choose from auto, grouped, order"),
        (("hf:owner/birds",), "hf download owner/birds --repo-type dataset"),
        (("nothing.zip",), "does not exist"),
    ):
        name = words[0] if words[0].startswith("hf:") else tmp_path / words[0]
        refused = door.forked("run", name, *words[1:], *options)
        assert refused.code == 2, refused.err
        assert len(refused.err.strip().splitlines()) == 1, refused.err
        assert said in refused.err
    assert tree(door.cwd, tmp_path) == before
