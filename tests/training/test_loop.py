"""train: a trial in this process, and killed and carried on in others, to the same bytes."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fitwithin.candidate import Candidate
from fitwithin.data import pack_builder
from fitwithin.data.batches import EvalBatches, TrainBatches
from fitwithin.data.pack import Pack
from fitwithin.data.prefetch import PrefetchLoader, _fork
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import EvaluateJob, Stage, TrainJob
from fitwithin.engine.margins import EXIT_S
from fitwithin.engine.results import (
    CARD,
    CHECKPOINT,
    OUTCOME,
    SALVAGE,
    WEIGHTS,
    Progress,
    TrainResult,
)
from fitwithin.errors import LoaderTimeout, TrainingError
from fitwithin.files import read_json
from fitwithin.training import evaluation, loop, progress
from fitwithin.training import learner as learners
from fitwithin.training import trainer as trainers
from fitwithin.training.evaluation import feeder_rings
from fitwithin.training.learner import Learner
from fitwithin.training.model import load
from fitwithin.training.progress import EvalEstimate, TrialProgress
from fitwithin.training.schedule import steps_end_at
from simulated.clock import SimulatedClock
from simulated.run import on_cpu
from training.test_schedule import cosine

CANDIDATE = Candidate(model="test_efficientnet", train_px=32, precision="fp32")
BATCH, STEPS, N_TRAIN, N_VAL = 8, 36, 32, 8  # 4 steps an epoch

#: The planned pace.
STEP_S = 0.02


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes below: beside busy neighbours OpenMP's threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Two classes, dark and bright, 16 images to train and 4 to validate on of each."""
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(3)
    for split, count in (("train", N_TRAIN // 2), ("val", N_VAL // 2)):
        for name, low in (("dark", 0), ("bright", 120)):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(low, low + 130, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(root / "cache"))
        return pack_builder.build(open_dataset(root / "data"), 34)


def job(images: Pack, folder: Path, **changed: Any) -> TrainJob:
    """A trial of nine epochs with ample time."""
    setting = on_cpu("upright", pack=str(images.folder))
    usual = TrainJob(
        setting=setting,
        candidate=CANDIDATE,
        batch=BATCH,
        steps=STEPS,
        folder=str(folder),
        until_at=time.monotonic() + 120,
        step_s=STEP_S,
        validation_s=0.05,
        save_s=0.02,
        checkpoint_every_s=1000.0,
    )
    return replace(usual, **changed)


def advance(wanted: TrainJob, images: Pack, emit: Any = None, evaluator: Any = None) -> TrainResult:
    """Here, without a cap: a limit on this process would outlive the test."""
    rings = feeder_rings(wanted.candidate, wanted.setting, wanted.batch)
    with PrefetchLoader(images, wanted.setting.workers, rings, pin=False) as feeder:
        note = emit or (lambda progress: None)
        return loop.train(wanted, Cpu(), feeder, time.monotonic(), note, evaluator=evaluator)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimulatedClock:
    """The trial's and the test's: time passes by steps alone, as planned (slow ones, so that they are few), and by what
    a test adds.

    The loaders go by the true one, which is far behind: they do not run out of time.
    """
    clock, take = SimulatedClock(time.monotonic() + 1000.0), Learner.step

    def step(self: Learner, *arguments: Any) -> torch.Tensor:
        clock.sleep(STEP_S)
        return take(self, *arguments)

    simulated = SimpleNamespace(monotonic=clock.now, sleep=clock.sleep)
    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(trainers, "time", simulated)
    monkeypatch.setitem(globals(), "time", simulated)
    monkeypatch.setitem(globals(), "STEP_S", 0.08)
    return clock


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step taken."""
    seen: list[float] = []
    take = Learner.step

    def step(self: Learner, x_bhwc: torch.Tensor, y_b: torch.Tensor, lr: float) -> torch.Tensor:
        seen.append(lr)
        return take(self, x_bhwc, y_b, lr)

    monkeypatch.setattr(Learner, "step", step)
    return seen


def test_a_complete_trial_anneals_to_exactly_zero(images: Pack, tmp_path: Path, rates: list[float]) -> None:
    wanted = job(images, tmp_path)
    told: list[Progress] = []
    outcome = advance(wanted, images, told.append)
    peak = wanted.setting.recipe.learning_rate(BATCH)
    assert rates == [peak * cosine(step, STEPS) for step in range(STEPS)]
    assert (rates[0], rates[-1]) == (peak, 0.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert (outcome.ended, outcome.steps, outcome.planned_steps, outcome.epochs) == ("complete", STEPS, STEPS, 9.0)
    assert [found["step"] for found in outcome.validations] == [STEPS - 8, STEPS - 4, STEPS]
    assert all(found["accuracy"]["total"] == N_VAL for found in outcome.validations)
    assert outcome.best == max(found["accuracy"]["correct"] for found in outcome.validations) == N_VAL
    assert outcome.curve[-1]["step"] == STEPS
    assert outcome.curve[-1]["loss"] < math.log(2)
    assert told[-1].total == STEPS
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, CARD, CHECKPOINT, OUTCOME, SALVAGE}
    assert read_json(TrainResult, tmp_path / OUTCOME) == outcome


def test_a_trial_that_has_ended_is_not_taken_again(images: Pack, tmp_path: Path, rates: list[float]) -> None:
    first = advance(job(images, tmp_path, steps=6), images)
    weights = (tmp_path / WEIGHTS).read_bytes()
    rates.clear()
    assert advance(job(images, tmp_path, steps=6), images) == first
    assert rates == []
    assert (tmp_path / WEIGHTS).read_bytes() == weights


class Foreseeing:
    """An evaluator that foresees so many seconds, whatever it is asked."""

    def __init__(self, whole_s: float, *, first_s: float = 0.0, validation_s: float = 0.0) -> None:
        self.foreseen = EvalEstimate(whole_s=whole_s, first_s=first_s, validation_s=validation_s)
        self.asked, self.saved_dir = list[Any](), ""

    def estimate_time(self, *asked: Any) -> EvalEstimate:
        self.asked.append(asked)
        return self.foreseen


def staying(images: Pack, folder: Path, within_s: float, **changed: Any) -> TrainJob:
    """A trial of as many steps as there is time for, whose process stays for the evaluation."""
    now = time.monotonic()
    wanted = job(images, folder, steps=10**6, until_at=now + within_s)
    evaluation = EvaluateJob(
        setting=wanted.setting,
        candidate=CANDIDATE,
        batch=BATCH,
        folder=str(folder),
        views=(),
        splits=("val",),
        until_at=wanted.until_at,
    )
    return replace(wanted, evaluation=evaluation, **changed)


def once(wanted: TrainJob) -> TrainJob:
    """Validated at its end alone."""
    return replace(
        wanted, setting=replace(wanted.setting, recipe=replace(wanted.setting.recipe, validate_last_epochs=1))
    )


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("rehearsed_s", "planned_s"), [(3.0, 5.0), (60.0, 3.0)])
def test_a_trial_whose_process_stays_ends_in_time_for_the_evaluation(
    images: Pack, tmp_path: Path, rates: list[float], rehearsed_s: float, planned_s: float
) -> None:
    """As it was tried out, but never sooner than was planned for another process."""
    told: list[Progress] = []
    wanted = staying(images, tmp_path, 8.0, evaluation_s=planned_s)
    evaluator: Any = Foreseeing(rehearsed_s)
    outcome = advance(wanted, images, told.append, evaluator)
    left_s = wanted.until_at - time.monotonic()
    assert 2.7 < left_s < 4.5
    ((_, asked, most_s),) = evaluator.asked
    assert asked == wanted.evaluation
    assert most_s == pytest.approx(0.01 * 8.0)
    assert outcome.ended == "shortened"
    assert rates[-1] == 0.0


@pytest.mark.usefixtures("clock")
def test_validation_has_the_time_that_was_tried_out(images: Pack, tmp_path: Path) -> None:
    """The plan has 0.05 s for it: by those the steps would have ended a second later."""
    wanted = once(staying(images, tmp_path, 8.0, evaluation_s=3.0))
    outcome = advance(wanted, images, evaluator=Foreseeing(3.0, validation_s=1.0))
    left_s = wanted.until_at - time.monotonic()
    assert outcome.best is not None
    assert 3.9 < left_s < 5.7


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("first_s", "validated"), [(1.0, True), (3.0, False)])
def test_who_was_never_validated_may_take_the_time_of_later_sizes_for_it(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_s: float, validated: bool
) -> None:
    """A validation that takes a second longer than was to be seen loses a trial only where there is one size."""
    asked: list[float] = []

    def slow(*_: Any, until_at: float, **__: Any) -> int | None:
        asked.append(until_at)
        time.sleep(1.0)
        return 5 if time.monotonic() < until_at else None

    monkeypatch.setattr(trainers, "count_correct", slow)
    wanted = once(staying(images, tmp_path, 8.0, evaluation_s=3.0))
    outcome = advance(wanted, images, evaluator=Foreseeing(3.0, first_s=first_s))
    assert asked == [pytest.approx(steps_end_at(wanted, 0.0, first_s))]
    assert (outcome.best is not None) == validated
    assert outcome.ended == "shortened", "the model is whole in either case"


@pytest.mark.parametrize(("before_s", "saves"), [(4.0, 0), (6.0, 1), (11.0, 2)])
def test_a_checkpoint_that_is_due_before_the_end_is_counted_with(
    images: Pack, tmp_path: Path, before_s: float, saves: int
) -> None:
    """By when the one before was written, however little is left, and with what that took."""
    wanted = job(images, tmp_path, checkpoint_every_s=5.0, validation_s=0.0)
    trial = TrialProgress(wanted, n_train=N_TRAIN, n_val=N_VAL, began_at=0.0, now=0.0)
    saved_at = trial.schedule.training_ends_at - before_s
    trial.checkpoint_saved(saved_at - 0.5, saved_at)
    trial.model_saved(wanted.save_s)
    assert trial.overhead_s() == pytest.approx(saves * 0.5 + 1.2 * 2 * wanted.save_s)


@pytest.mark.usefixtures("clock")
def test_what_a_checkpoint_takes_is_measured(images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, found = trainers.write_checkpoint, list[float]()

    def slow(*told: Any) -> None:
        time.sleep(0.3)
        write(*told)

    class Seen(trainers.Trainer):
        def finish(self) -> TrainResult:
            found.append(self.progress.checkpoint_s)
            return super().finish()

    monkeypatch.setattr(trainers, "write_checkpoint", slow)
    monkeypatch.setattr(loop, "Trainer", Seen)
    advance(job(images, tmp_path), images)
    assert found == [pytest.approx(0.3)]


def test_what_a_validation_found_is_there_if_the_process_is_ended_after_it(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(self: Any) -> TrainResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainers.Trainer, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        advance(job(images, tmp_path), images)
    left = read_json(TrainResult, tmp_path / SALVAGE)
    assert left is not None
    assert (left.steps, left.best, len(left.validations)) == (STEPS, N_VAL, 3)


@pytest.mark.parametrize(("found", "held"), [((5, 7, 6), False), ((5, 7, 7), True)])
def test_weights_that_are_the_saved_models_own_are_not_loaded_for_its_evaluation(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[int, ...], held: bool
) -> None:
    """Others are: an earlier validation had found the best model."""
    answers, evaluator = iter(found), Foreseeing(0.1)
    monkeypatch.setattr(trainers, "count_correct", lambda *_, **__: next(answers))
    advance(job(images, tmp_path, steps=12), images, evaluator=evaluator)
    assert evaluator.saved_dir == (str(tmp_path) if held else "")


@pytest.mark.parametrize(("found", "kept"), [((5, 7, 6), 1), ((5, 7, 7), 2), ((8, 2, 3), 0)])
def test_the_best_model_is_kept_the_later_on_a_tie(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[int, ...], kept: int
) -> None:
    answers, seen = iter(found), []

    def count(learner: Learner, *_: Any, **__: Any) -> int:
        seen.append({name: value.clone() for name, value in learner.net.state_dict().items()})
        return next(answers)

    monkeypatch.setattr(trainers, "count_correct", count)
    outcome = advance(job(images, tmp_path, steps=12), images)
    assert outcome.best == max(found)
    saved = load(tmp_path, torch.device("cpu"))[0].state_dict()
    assert all(torch.equal(saved[name], value) for name, value in seen[kept].items())
    assert any(not torch.equal(saved[name], value) for name, value in seen[kept - 1].items())


@pytest.mark.parametrize("found", [(6, 7), (6, 6), (6, 5)], ids=["better", "as good", "worse"])
def test_fine_tuning_hands_over_the_mean_with_its_start_if_that_is_as_good(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[int, int]
) -> None:
    setting = replace(on_cpu("transfer", pack=str(images.folder)), view_sizes=(32,))
    advance(job(images, tmp_path / "start", setting=setting, steps=4), images)
    start, _ = load(tmp_path / "start", torch.device("cpu"))
    answers, last = iter(found), dict[str, torch.Tensor]()

    def count(learner: Learner, *_: Any, **__: Any) -> int:
        if not last:
            last.update({name: value.clone() for name, value in learner.net.state_dict().items()})
        return next(answers)

    monkeypatch.setattr(trainers, "count_correct", count)
    tuned = job(images, tmp_path / "tuned", setting=setting, steps=8, init_from=str(tmp_path / "start"))
    result = advance(tuned, images)
    kept = found[1] >= found[0]
    assert (result.averaged, result.best) == (kept, max(found))
    net, _ = load(tmp_path / "tuned", torch.device("cpu"))
    for (name, value), first in zip(net.state_dict().items(), start.state_dict().values(), strict=True):
        if value.is_floating_point():
            torch.testing.assert_close(value, (first + last[name]) / 2 if kept else last[name])


def test_other_trials_are_not_averaged_with_their_start(images: Pack, tmp_path: Path) -> None:
    advance(job(images, tmp_path / "start", steps=4), images)
    result = advance(job(images, tmp_path / "next", steps=4, init_from=str(tmp_path / "start")), images)
    assert not result.averaged


def test_a_loss_that_is_never_a_number_again_ends_the_trial_and_leaves_a_model(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken = Learner.step, []

    def step(self: Learner, *arguments: Any) -> torch.Tensor:
        taken.append(1)
        return take(self, *arguments) * (math.nan if len(taken) > 4 else 1.0)

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(progress, "reading_every_s", lambda trial_s: 0.0)
    with pytest.raises(TrainingError, match=r"no longer finite at step 2, in attempt 4 of 4"):
        advance(job(images, tmp_path), images)
    assert_finite(tmp_path)
    assert read_json(TrainResult, tmp_path / SALVAGE) is not None


def assert_finite(folder: Path) -> None:
    net, card = load(folder, torch.device("cpu"))
    assert card.classes == ("bright", "dark")
    assert all(torch.isfinite(value).all() for value in net.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("shown", [True, False], ids=["in the loss", "in the weights alone"])
@pytest.mark.parametrize("at", [6, STEPS - 4, STEPS], ids=["early", "before a validation", "at the end"])
def test_weights_that_are_no_numbers_are_taken_back(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: list[float], at: int, shown: bool
) -> None:
    take, taken = Learner.step, []

    def step(self: Learner, *arguments: Any) -> torch.Tensor:
        taken.append(1)
        loss = take(self, *arguments)
        if len(taken) == at:
            with torch.no_grad():
                next(self.net.parameters())[0] = math.nan
            return loss * math.nan if shown else loss
        return loss

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(progress, "reading_every_s", lambda trial_s: 0.0)
    outcome = advance(job(images, tmp_path), images)
    assert (outcome.ended, outcome.steps, outcome.nan_restarts) == ("complete", STEPS, 1)
    assert (outcome.best or 0) > N_VAL // 2
    assert_finite(tmp_path)
    steps = [point["step"] for point in outcome.curve]
    assert steps == sorted(set(steps)), "what was taken back is not on the curve"
    assert steps[-1] == STEPS
    peak = job(images, tmp_path).setting.recipe.learning_rate(BATCH)
    assert rates[-1] == 0.0
    assert rates[-(STEPS - 1)] == 0.5 * peak * cosine(1, STEPS), "back at the checkpoint after the first step"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_near_deadline_ends_the_trial_in_time_with_a_model(
    images: Pack, tmp_path: Path, rates: list[float], frozen: bool
) -> None:
    until_at = time.monotonic() + 4.0
    outcome = advance(job(images, tmp_path, steps=100_000, until_at=until_at, frozen=frozen), images)
    assert time.monotonic() <= until_at
    assert 1 < outcome.steps < 100_000
    if frozen:
        assert outcome.ended == "cut"
        assert min(rates) > 0.9 * rates[0], "a frozen schedule is cut, not bent"
    else:
        assert outcome.ended == "shortened"
        assert rates[-1] == 0.0
    assert load(tmp_path, torch.device("cpu"))[1].model == CANDIDATE.model


def test_no_time_at_all_still_leaves_a_model(images: Pack, tmp_path: Path) -> None:
    outcome = advance(job(images, tmp_path, until_at=time.monotonic() + EXIT_S), images)
    assert outcome.ended == "cut"
    assert outcome.best is None
    assert (tmp_path / WEIGHTS).is_file()


#: Progressive resizing in three stages of a third of the steps.
STAGES = tuple(Stage(since=n / 3, px=16 + 8 * n, step_s=0.01 * (n + 1)) for n in range(3))


def test_progressive_resizing_trains_on_each_size_in_turn(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, sizes = Learner.step, []

    def step(self: Learner, x_bhwc: torch.Tensor, y_b: torch.Tensor, lr: float) -> torch.Tensor:
        sizes.append(x_bhwc.shape[1])
        return take(self, x_bhwc, y_b, lr)

    monkeypatch.setattr(Learner, "step", step)
    outcome = advance(job(images, tmp_path, stages=STAGES), images)
    assert sizes == [16] * 12 + [24] * 12 + [32] * 12
    assert (outcome.ended, outcome.steps) == ("complete", STEPS)
    assert (outcome.best or 0) >= N_VAL - 1  # chance is half


@pytest.mark.usefixtures("clock")
def test_an_open_ended_trial_uses_its_time_up(images: Pack, tmp_path: Path, rates: list[float]) -> None:
    """Planned for far fewer steps than there is time for; the validation at its end and the model are within."""
    wanted = job(images, tmp_path, steps=10, until_at=time.monotonic() + 6.0, open_ended=True)
    recipe_ = replace(wanted.setting.recipe, validate_last_epochs=1)
    outcome = advance(replace(wanted, setting=replace(wanted.setting, recipe=recipe_)), images)
    assert 0.0 <= wanted.until_at - time.monotonic() <= EXIT_S + 0.5
    assert outcome.steps > 10
    assert (rates[-1], outcome.ended) == (0.0, "complete")
    assert [found["step"] for found in outcome.validations] == [outcome.steps]


def elsewhere(images: Pack, wanted: TrainJob, dies_at: int) -> tuple[int, list[int]]:
    """Run the trial in another process, killed at its ``dies_at``-th checkpoint; its exit code and checkpoints.

    The process is a fork, which spares the import of torch. (Fresh ones are killed in tests/e2e/test_kill.py.)
    """
    written = Path(f"{wanted.folder}-checkpoints")
    written.unlink(missing_ok=True)

    def work() -> None:
        write, steps = trainers.write_checkpoint, list[str]()

        def note(path: Path, learner: Learner, facts: dict[str, Any]) -> None:
            write(path, learner, facts)
            steps.append(str(facts["step"]))
            written.write_text(" ".join(steps))
            if len(steps) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        trainers.write_checkpoint = note
        advance(wanted, images)

    code = os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])
    return code, [int(word) for word in written.read_text().split()]


@pytest.mark.parametrize("canvas_px", [32, 40], ids=["some fit", "all fit"])
def test_sizes_follow_each_other_on_canvases_too(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canvas_px: int
) -> None:
    """The device resizes to each stage's size: but for rounding the images that would have come resized."""
    seen: dict[str, list[torch.Tensor]] = {"loaded": [], "resized": []}
    take, resized = Learner.step, learners.augment.resized

    def step(self: Learner, x_bhwc: torch.Tensor, *arguments: Any) -> torch.Tensor:
        seen["loaded"].append(x_bhwc.float())
        return take(self, x_bhwc, *arguments)

    def note(*arguments: Any) -> torch.Tensor:
        found = resized(*arguments)
        seen["resized"].append(found.clone())  # what is found may be normalised in place
        return found

    monkeypatch.setattr(Learner, "step", step)
    advance(job(images, tmp_path / "loaders", stages=STAGES), images)
    assert not seen["resized"]
    monkeypatch.setattr(Learner, "step", take)
    monkeypatch.setattr(learners.augment, "resized", note)
    wanted = job(images, tmp_path / "device", stages=STAGES)
    outcome = advance(replace(wanted, setting=replace(wanted.setting, canvas_px=canvas_px)), images)
    assert outcome.ended == "complete"
    assert (outcome.best or 0) > N_VAL // 2
    for found, expected in zip(seen["resized"], seen["loaded"], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1.1)
    assert [found.shape[1] for found in seen["resized"]] == [16] * 12 + [24] * 12 + [32] * 12


@pytest.mark.parametrize(
    ("stages", "augmented", "canvas_px"),
    [
        ((), {}, None),
        (STAGES, {}, None),
        (STAGES, {}, 32),
        ((), {"color_jitter": 0.2, "cutmix": 0.3, "optimizer": "muon", "lr": 1e-3}, None),
    ],
    ids=["one size", "three sizes", "three sizes on canvases", "augmented, with Muon"],
)
def test_killed_twice_and_carried_on_gives_the_bytes_of_an_uninterrupted_trial(
    images: Pack, tmp_path: Path, stages: tuple[Stage, ...], augmented: dict[str, Any], canvas_px: int | None
) -> None:
    """The model has dropout and batch norm: generator and running statistics must be carried on too."""
    calm = job(images, tmp_path / "whole", frozen=True, stages=stages)
    recipe_ = replace(calm.setting.recipe, **augmented)
    calm = replace(calm, setting=replace(calm.setting, recipe=recipe_, canvas_px=canvas_px))
    whole = advance(calm, images)
    # A checkpoint after every step (none where a validation takes its place).
    often = replace(calm, folder=str(tmp_path / "killed"), save_s=0.0, checkpoint_every_s=1e-9)
    code, first = elsewhere(images, often, dies_at=5)
    assert (code, first) == (-9, [1, 2, 3, 4, 5])
    code, second = elsewhere(images, often, dies_at=24)  # after the first validation, at step 28
    assert (code, second[0], second[-1]) == (-9, 6, 30)
    assert 28 not in second
    outcome = advance(often, images)
    assert (outcome.steps, outcome.best, outcome.ended) == (whole.steps, whole.best, "complete")
    assert outcome.validations == whole.validations
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert (tmp_path / "killed" / CARD).read_bytes() == (tmp_path / "whole" / CARD).read_bytes()
    last = [
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True)["facts"]["step"] for name in ("whole", "killed")
    ]
    assert last == [1, 35]


class TornOff(TrainBatches):
    """No batch after the tenth is ever made."""

    def prepare(self, number: int) -> Any:
        if number == 10:
            time.sleep(3600)
        return super().prepare(number)


def test_a_loader_that_hangs_shortens_the_trial(images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TrainBatches", TornOff)
    until_at = time.monotonic() + 4.0
    outcome = advance(job(images, tmp_path, until_at=until_at), images)
    assert time.monotonic() <= until_at
    assert (outcome.ended, outcome.steps, outcome.best) == ("cut", 10, None)
    assert load(tmp_path, torch.device("cpu"))[1].model == CANDIDATE.model


def test_a_loader_that_hangs_early_lets_another_process_go_on(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = job(images, tmp_path / "hung", frozen=True, loader_timeout_s=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "TrainBatches", TornOff)
        with pytest.raises(LoaderTimeout, match="no batch came within 1 s after step 10"):
            advance(wanted, images)
    outcome = advance(wanted, images)
    assert (outcome.ended, outcome.steps) == ("complete", STEPS)
    advance(replace(wanted, folder=str(tmp_path / "calm")), images)
    assert (tmp_path / "hung" / WEIGHTS).read_bytes() == (tmp_path / "calm" / WEIGHTS).read_bytes()


def test_a_loader_that_hangs_late_is_not_waited_for(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TrainBatches", TornOff)
    monkeypatch.setattr(trainers, "RESTARTS", 10**6)
    begun_at = time.monotonic()
    outcome = advance(job(images, tmp_path, loader_timeout_s=1.0), images)
    assert time.monotonic() - begun_at < 20.0
    assert (outcome.ended, outcome.steps) == ("cut", 10)


class Stuck(EvalBatches):
    """No batch is ever made."""

    def prepare(self, number: int) -> Any:
        time.sleep(3600)
        return super().prepare(number)


def test_a_loader_that_hangs_in_a_validation_leaves_the_last_model(
    images: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "EvalBatches", Stuck)
    until_at = time.monotonic() + 6.0
    outcome = advance(job(images, tmp_path, until_at=until_at, steps=4), images)
    assert time.monotonic() <= until_at + 0.5
    assert outcome.validations == ()
    assert load(tmp_path, torch.device("cpu"))[1].model == CANDIDATE.model
