"""The winner, its views, the four methods, and the ensemble on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import LAYOUTS, PRECISIONS, Candidate, View, grid, views_of
from fitwithin.engine.results import EvalResult, TrainResult, logits_path, read_logits
from fitwithin.errors import RunFolderError
from fitwithin.inference.ensemble import Ensemble, read_ensemble, write_ensemble
from fitwithin.pipeline.evaluate_phase import (
    Member,
    best_trial,
    choose_views,
    delivered_row,
    other_precision,
    table1_rows,
    view_rows,
)

VIEWS = views_of([160, 224], flips=True)


def trained(best: int | None, epochs: float = 1.0) -> TrainResult:
    return TrainResult(
        steps=10,
        planned_steps=10,
        epochs=epochs,
        ended="complete",
        best=best,
        validations=(),
        curve=(),
        peak_bytes=1,
        startup_s=1.0,
    )


def member(precision: str = "amp", px: int = 160, done: tuple[str, ...] = ("val", "test"), missing: int = 0) -> Member:
    """A candidate right on all images but one; ``missing`` views at the end were not evaluated."""
    rows = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] * 4
    views = VIEWS[: len(VIEWS) - missing]
    logits = {split: dict.fromkeys(views, rows) for split in done}
    evaluated = EvalResult(
        done=tuple((split, view.name) for split in done for view in views),
        ms_per_image={view.name: view.px / 100 for view in views},
        batch=4,
        peak_bytes=1,
    )
    (candidate,) = grid(["resnet18"], [precision], [px])
    return Member(candidate=candidate, evaluated=evaluated, logits=logits)


LABELS = {"val": np.array([0, 1, 2, 1]), "test": np.array([0, 1, 2, 0])}


@given(st.dictionaries(st.text("abc", min_size=1), st.one_of(st.none(), st.integers(0, 100)), min_size=1))
def test_the_best_validation_wins_and_the_first_on_a_tie(scores: dict[str, int | None]) -> None:
    name, why = best_trial({key: trained(best) for key, best in scores.items()})
    known = {key: best for key, best in scores.items() if best is not None}
    if known:
        assert name == next(key for key, best in known.items() if best == max(known.values()))
        assert ("the only candidate" in why) == (len(known) == 1)
    else:
        assert "No candidate was validated" in why


def test_where_nobody_validated_the_longest_training_wins() -> None:
    assert best_trial({"a": trained(None, 2.0), "b": trained(None, 5.0)})[0] == "b"
    assert best_trial({"a": trained(None, 99.0), "b": trained(0, 1.0)})[0] == "b"


@given(st.integers(0, 11))
def test_a_twin_differs_in_precision_alone(which: int) -> None:
    every = grid(["resnet18", "resnet50", "vgg11"], ["amp", "fp32"], [160, 224])
    winner = every[which]
    other = other_precision(winner, every)
    assert other is not None
    assert {(c.model, c.train_px) for c in (winner, other)} == {(winner.model, winner.train_px)}
    assert {winner.precision, other.precision} == {"amp", "fp32"}
    assert other_precision(other, every) == winner
    assert other_precision(winner, [c for c in every if c != other]) is None


def test_what_the_paper_did_not_try_has_no_twin() -> None:
    every = grid(["resnet18"], PRECISIONS, [160], LAYOUTS)
    for winner in every:
        other = other_precision(winner, every)
        assert (other is None) == (winner.precision in ("amp-bf16", "tf32"))
        assert other is None or other.layout == winner.layout


def test_the_ensemble_on_disk_reads_back(tmp_path: Path) -> None:
    ensemble = Ensemble(candidate="resnet18-amp-160", trial="candidates/x", views=tuple(VIEWS[1:3]), batch=32)
    write_ensemble(ensemble, tmp_path)
    assert read_ensemble(tmp_path) == ensemble
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble.json"]


def test_a_folder_without_an_ensemble_says_how_to_finish(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no finished model \(no model/ensemble.json\)$"):
        read_ensemble(tmp_path)
    (tmp_path / "run.db").touch()
    with pytest.raises(RunFolderError, match=r"no finished model .*`fitwithin resume .*` finishes the run"):
        read_ensemble(tmp_path)


def test_logits_have_a_file_each(tmp_path: Path) -> None:
    paths = {logits_path(tmp_path, split, view) for split in ("val", "test") for view in VIEWS}
    assert len(paths) == 8
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(logits_path(tmp_path, "val", VIEWS[1]), rows)
    np.testing.assert_array_equal(read_logits(tmp_path, "val", VIEWS[1]), rows)


@pytest.mark.parametrize(
    ("precision", "px", "names"),
    [
        ("fp32", 160, ["Symmetric sizes", "Asymmetric sizes", "Asymmetric sizes + ensemble"]),
        ("amp", 160, ["Symmetric sizes + AMP", "Asymmetric sizes + AMP", "Asymmetric sizes + ensemble + AMP"]),
        ("amp", 224, ["Symmetric sizes + AMP", "Ensemble + AMP"]),
        ("amp", 192, ["Asymmetric sizes + AMP", "Asymmetric sizes + ensemble + AMP"]),
    ],
)
def test_the_rows_of_table_1(precision: str, px: int, names: list[str]) -> None:
    rows = table1_rows(member(precision, px), LABELS, VIEWS)
    assert [row.method for row in rows] == names
    for row in rows:
        assert (row.validation.correct, row.validation.total) == (3, 4)
        assert (row.test.correct, row.test.total) == (4, 4)
        assert row.train_px == px


def test_a_missing_view_leaves_its_rows_blank() -> None:
    rows = table1_rows(member(missing=1), LABELS, VIEWS)
    assert [row.validation is None for row in rows] == [False, False, True]
    assert table1_rows(member(done=("val",)), LABELS, VIEWS)[0].test is None


@pytest.mark.parametrize("labels", [np.array([0, 1, -1, 0]), np.array([], dtype=int)])
def test_unlabelled_test_pictures_have_no_accuracy(labels: Any) -> None:
    assert table1_rows(member(), {**LABELS, "test": labels}, VIEWS)[0].test is None


def test_views_are_chosen_by_validation_data_and_the_limit() -> None:
    everything = choose_views(member(), LABELS, None)
    assert everything.views == tuple(VIEWS)
    within = choose_views(member(), LABELS, 2.0)
    assert within.views == (View(px=160, flip=False),)
    row = delivered_row(member(), LABELS, within)
    assert row.delivered
    assert (row.test_px, row.test.correct) == ("160", 4)
    rows = view_rows(member(), LABELS, within)
    assert [view.chosen for view in rows] == [True, False, False, False]
    assert all(view.reason for view in rows)


def partly(tested: int) -> Member:
    """A candidate whose first views alone were tested."""
    whole = member()
    logits = {"val": whole.logits["val"], "test": {view: whole.logits["test"][view] for view in VIEWS[:tested]}}
    return Member(candidate=whole.candidate, evaluated=whole.evaluated, logits=logits)


@pytest.mark.parametrize("limit_ms", [None, 5.0])
def test_where_time_was_short_it_is_chosen_from_what_was_tested(limit_ms: float | None) -> None:
    choice = choose_views(partly(2), LABELS, limit_ms)
    assert set(choice.views) <= set(VIEWS[:2])
    assert delivered_row(partly(2), LABELS, choice).test is not None
    assert all("before it was tested" in choice.reasons[view] for view in VIEWS[2:])


def test_the_inference_limit_comes_before_a_figure_on_test() -> None:
    whole = member()
    dear = replace(whole.evaluated, ms_per_image={view.name: 300 - view.px for view in VIEWS})
    late = replace(partly(2), evaluated=dear)
    assert choose_views(late, LABELS, 100.0).views == (View(px=224, flip=False),)
    assert choose_views(partly(0), LABELS, None).views == tuple(VIEWS), "none was tested"


def test_without_an_evaluation_the_training_size_is_handed_over() -> None:
    empty = Member(
        candidate=Candidate(model="m", train_px=96, precision="amp"),
        evaluated=EvalResult(done=(), ms_per_image={}, batch=4, peak_bytes=0),
        logits={},
    )
    choice = choose_views(empty, LABELS, 1.0)
    assert choice.views == (View(px=96, flip=False),)
    assert "time was over" in choice.why
    assert delivered_row(empty, LABELS, choice).validation is None
    assert view_rows(empty, LABELS, choice) == []
