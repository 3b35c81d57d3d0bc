"""Processes that train together: their update is one process's of all their images, and they stay in step whatever
happens to one of them. Each test's processes meet through gloo, on the CPU.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fitwithin.data.batches import TrainBatches
from fitwithin.data.pack import Pack
from fitwithin.data.prefetch import PrefetchLoader, _fork
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import Seat, Stage, TrainJob
from fitwithin.engine.results import CARD, CHECKPOINT, WEIGHTS
from fitwithin.errors import LoaderTimeout, PeerLost
from fitwithin.machine import DeviceName
from fitwithin.training import loop
from fitwithin.training import trainer as trainers
from fitwithin.training.distributed import SINGLE_PROCESS, ProcessGroup, init_process_group
from fitwithin.training.evaluation import feeder_rings
from fitwithin.training.learner import Learner
from training.test_learner import CANDIDATE as NORMLESS
from training.test_learner import batch, setting
from training.test_loop import BATCH, STAGES, STEPS, images, job, one_thread

__all__ = ["images", "one_thread"]


def together(folder: Path, work: Callable[[ProcessGroup], Any], size: int = 2) -> list[Any]:
    """What the work gives in each of so many processes that have met; the exit code (below 0: the signal) where one
    gave nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("seat-*"):
        left.unlink()

    def one(rank: int) -> None:
        team = init_process_group(Seat(rank=rank, world_size=size, rendezvous=str(folder / "seat-meeting")))
        torch.save(work(team), folder / f"seat-{rank}")

    children = [_fork(partial(one, rank)) for rank in range(size)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    found = [folder / f"seat-{rank}" for rank in range(size)]
    return [
        torch.load(path, weights_only=False) if path.is_file() else code
        for path, code in zip(found, codes, strict=True)
    ]


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.net.state_dict().items()}


# --- one update ------------------------------------------------------------------------------------------------------


def updated(
    team: ProcessGroup, *, accum_steps: int = 1, clip: float | None = None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights after three updates of 12 images, of which each process takes its slice."""
    base = setting()
    clipped = replace(base, recipe=replace(base.recipe, clip_grad=clip))
    learner = Learner(clipped, NORMLESS, Cpu(), accum_steps=accum_steps, team=team)
    learner.optimizer = torch.optim.SGD(learner.net.parameters(), lr=0.0)  # type: ignore[assignment]
    x_bhwc, y_b = (whole.chunk(team.size)[team.rank] for whole in batch(12))
    return [float(learner.step(x_bhwc, y_b, 0.05)) for _ in range(3)], state_of(learner)


@pytest.mark.parametrize(("size", "accum_steps", "clip"), [(2, 1, None), (2, 2, None), (3, 1, None), (2, 1, 0.5)])
def test_the_update_is_that_of_one_process_with_all_the_images(
    tmp_path: Path, size: int, accum_steps: int, clip: float | None
) -> None:
    losses, weights = updated(SINGLE_PROCESS, clip=clip)
    found = together(tmp_path, partial(updated, accum_steps=accum_steps, clip=clip), size)
    for found_losses, found_weights in found:
        assert found_losses == pytest.approx(losses, rel=1e-4), "the loss is the whole update's, in all of them"
        for name, value in weights.items():
            torch.testing.assert_close(found_weights[name], value, rtol=1e-4, atol=1e-6)
            assert torch.equal(found_weights[name], found[0][1][name]), "all have the same weights, bit for bit"


def test_all_begin_with_the_firsts_weights_and_draw_numbers_of_their_own(tmp_path: Path) -> None:
    def begun(team: ProcessGroup) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        learner = Learner(replace(setting(), seed=5 + team.rank), NORMLESS, Cpu(), team=team)
        return state_of(learner), torch.rand(4)

    (first, draws), (second, other_draws) = together(tmp_path, begun)
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert not torch.equal(draws, other_draws)
    learner = Learner(replace(setting(), seed=5), NORMLESS, Cpu())
    assert all(torch.equal(state_of(learner)[name], value) for name, value in first.items())
    assert torch.equal(torch.rand(4), draws), "the first one draws as one that is alone"


def test_a_gradient_too_large_for_one_is_left_out_by_all(tmp_path: Path) -> None:
    """float16's scaler looks at the mean of the gradients, so all find the same."""

    def scaled(team: ProcessGroup) -> tuple[list[float], list[bool]]:
        learner, scales, changed = Learner(setting(), NORMLESS, Cpu(), team=team), [], []
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        spoil = [False]
        next(learner.net.parameters()).register_hook(lambda grad: grad * math.inf if spoil[0] else grad)
        x_bhwc, y_b = (whole.chunk(2)[team.rank] for whole in batch(12))
        for step in range(3):
            before, spoil[0] = state_of(learner), step == 1 and team.rank == 1
            learner.step(x_bhwc, y_b, 1e-3)
            scales.append(float(learner.scaler.get_scale()))
            changed.append(any(not torch.equal(before[name], value) for name, value in state_of(learner).items()))
        return scales, changed

    assert together(tmp_path, scaled) == [([8.0, 4.0, 8.0], [True, False, True])] * 2


# --- the loader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas_px", [None, 32])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_slices_of_an_update_are_the_batch_of_one_process(
    images: Pack, tmp_path: Path, ranks: int, canvas_px: int | None
) -> None:
    usual = job(images, tmp_path)
    described = {"recipe": usual.setting.recipe, "px": 24, "seed": 1, "first_step": 3, "steps": 20}
    described["canvas_px"] = canvas_px

    def pixels(batches: TrainBatches, number: int) -> tuple[np.ndarray, np.ndarray]:
        labels, fill = batches.prepare(number)
        out = np.zeros((batches.size, batches.px, batches.px, 3), np.uint8)
        fill(out, range(batches.size))
        return labels, out

    whole = TrainBatches(images, batch=5 * ranks, **described)
    parts = [TrainBatches(images, batch=5, rank=rank, ranks=ranks, **described) for rank in range(ranks)]
    for number in (0, 4, 11):  # across the border of an epoch too
        slices = [pixels(part, number) for part in parts]
        for found, expected in zip(zip(*slices, strict=True), pixels(whole, number), strict=True):
            assert np.array_equal(np.concatenate(found), expected)


# --- a trial ---------------------------------------------------------------------------------------------------------


def trial(images: Pack, folder: Path, **changed: Any) -> TrainJob:
    """A trial of two processes: nine epochs of updates of BATCH images."""
    usual = job(images, folder, **changed)
    return replace(usual, setting=replace(usual.setting, data_parallel=2))


def advanced(
    images: Pack, wanted: TrainJob, folder: Path, prepare: Callable[[ProcessGroup], None] = lambda team: None
) -> list[Any]:
    """What comes of it in each process, each with the numbers of its steps and its rates; or the error's words."""

    def work(team: ProcessGroup) -> Any:
        prepare(team)
        take, rates = Learner.step, []

        def step(self: Learner, x_bhwc: torch.Tensor, y_b: torch.Tensor, lr: float) -> torch.Tensor:
            rates.append((len(x_bhwc), lr))
            return take(self, x_bhwc, y_b, lr)

        Learner.step = step  # type: ignore[method-assign]
        rings = feeder_rings(wanted.candidate, wanted.setting, wanted.share)
        told: list[int] = []
        with PrefetchLoader(images, 1, rings, pin=False) as feeder:
            try:
                note = lambda progress: told.append(progress.step)  # noqa: E731
                outcome = loop.train(wanted, Cpu(), feeder, time.monotonic(), note, team)
                (folder / f"ended-{team.rank}").write_text(str(time.monotonic()))
                return outcome, rates
            except (PeerLost, LoaderTimeout) as error:
                return str(error), rates

    return together(folder, work)


def ended_at(folder: Path) -> float:
    """The instant at which the later of both trials came to its end. (Leaving a process takes time besides.)"""
    return max(float(path.read_text()) for path in folder.glob("ended-*"))


def test_a_trial_of_two_takes_the_same_steps_in_both(images: Pack, tmp_path: Path) -> None:
    wanted = trial(images, tmp_path / "trial")
    (first, steps), (second, other_steps) = advanced(images, wanted, tmp_path / "meet")
    assert (first.ended, first.steps, first.epochs) == ("complete", STEPS, 9.0)
    assert second.steps == first.steps
    assert steps == other_steps
    peak = wanted.setting.recipe.learning_rate(BATCH)
    assert steps[0] == (BATCH // 2, peak), "half the images each, at the rate of all"
    assert steps[-1][1] == 0.0
    assert [found["step"] for found in first.validations] == [28, 32, 36]
    assert second.validations == (), "the first one alone validates"
    assert first.best is not None


def test_a_deadline_ends_both_at_the_same_step(images: Pack, tmp_path: Path) -> None:
    until_at = time.monotonic() + 5.0
    wanted = trial(images, tmp_path / "trial", steps=100_000, until_at=until_at)
    (first, steps), (second, other_steps) = advanced(images, wanted, tmp_path / "meet")
    assert ended_at(tmp_path / "meet") <= until_at
    assert (first.ended, first.steps) == ("shortened", second.steps)
    assert steps == other_steps
    assert steps[-1][1] == 0.0


def test_an_open_ended_trial_of_two_uses_its_time_up(images: Pack, tmp_path: Path) -> None:
    wanted = trial(images, tmp_path / "trial", steps=10, until_at=time.monotonic() + 8.0, stages=STAGES)
    # A second is kept for the validation: a busy machine stops a process for tenths of one.
    wanted = replace(wanted, open_ended=True, validation_s=1.0)
    recipe = replace(wanted.setting.recipe, validate_last_epochs=1)
    wanted = replace(wanted, setting=replace(wanted.setting, recipe=recipe))
    (first, steps), (second, other_steps) = advanced(images, wanted, tmp_path / "meet")
    assert ended_at(tmp_path / "meet") <= wanted.until_at
    assert (first.ended, first.steps) == ("complete", second.steps)
    assert first.steps > 10
    assert steps == other_steps
    assert steps[-1][1] == 0.0
    assert [found["step"] for found in first.validations] == [first.steps]


@pytest.mark.parametrize(
    ("stages", "augmented"),
    [((), {"color_jitter": 0.2, "cutmix": 0.3, "optimizer": "muon", "lr": 1e-3}), (STAGES, {})],
    ids=["augmented, with Muon", "three sizes"],
)
def test_killed_and_carried_on_gives_the_bytes_of_an_uninterrupted_trial(
    images: Pack, tmp_path: Path, stages: tuple[Stage, ...], augmented: dict[str, Any]
) -> None:
    """The model has dropout and batch norm; each process draws its own augmentation, and goes on drawing it."""
    calm = trial(images, tmp_path / "whole", frozen=True, stages=stages)
    calm = replace(calm, setting=replace(calm.setting, recipe=replace(calm.setting.recipe, **augmented)))
    (whole, _), _ = advanced(images, calm, tmp_path / "meet")
    often = replace(calm, folder=str(tmp_path / "killed"), save_s=0.0, checkpoint_every_s=1e-9)

    def dies_at(step: int, rank: int, team: ProcessGroup) -> None:
        write = trainers.write_checkpoint

        def note(path: Path, learner: Learner, facts: dict[str, Any]) -> None:
            write(path, learner, facts)
            if facts["step"] == step and team.rank == rank:
                os.kill(os.getpid(), signal.SIGKILL)

        trainers.write_checkpoint = note

    killed, left = advanced(images, often, tmp_path / "meet", partial(dies_at, 5, 0))
    assert killed == -signal.SIGKILL
    assert left[0] == "another process of the same job is gone"
    left, killed = advanced(images, often, tmp_path / "meet", partial(dies_at, 30, 1))
    assert killed == -signal.SIGKILL
    assert left[0] == "another process of the same job is gone"
    (outcome, steps), _ = advanced(images, often, tmp_path / "meet")
    assert len(steps) == STEPS - 30
    assert (outcome.steps, outcome.best, outcome.ended) == (whole.steps, whole.best, "complete")
    assert outcome.validations == whole.validations
    for name in (WEIGHTS, CARD):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    saved = torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)
    states = [state["cpu"] for state in saved["learner"]["rng"]]
    assert len(states) == 2
    assert not torch.equal(*states)


def test_weights_that_are_no_numbers_in_one_send_both_back(images: Pack, tmp_path: Path) -> None:
    def spoil(team: ProcessGroup) -> None:
        take, taken = Learner.step, []

        def step(self: Learner, *arguments: Any) -> torch.Tensor:
            taken.append(1)
            if len(taken) == 9 and team.rank == 1:
                with torch.no_grad():
                    next(self.net.parameters())[0] = math.nan
            return take(self, *arguments)

        Learner.step = step  # type: ignore[method-assign]

    (first, steps), (second, other_steps) = advanced(
        images, trial(images, tmp_path / "trial"), tmp_path / "meet", spoil
    )
    assert (first.ended, first.steps, first.nan_restarts, second.nan_restarts) == ("complete", STEPS, 1, 1)
    assert steps == other_steps


class TornOff(TrainBatches):
    """No batch after the tenth is ever made for the second process."""

    def prepare(self, number: int) -> Any:
        if number == 10 and self._rank == 1:
            time.sleep(3600)
        return super().prepare(number)


def torn_off(team: ProcessGroup) -> None:
    loop.TrainBatches = TornOff  # type: ignore[misc]


def test_a_loader_that_hangs_early_lets_other_processes_go_on(images: Pack, tmp_path: Path) -> None:
    wanted = trial(images, tmp_path / "hung", frozen=True, loader_timeout_s=1.0)
    for told, steps in advanced(images, wanted, tmp_path / "meet", torn_off):
        assert (told, len(steps)) == ("no batch came within 1 s after step 10", 10)
    (outcome, steps), _ = advanced(images, wanted, tmp_path / "meet")
    assert (outcome.ended, len(steps)) == ("complete", STEPS - 10)
    advanced(images, replace(wanted, folder=str(tmp_path / "calm")), tmp_path / "meet")
    assert (tmp_path / "hung" / WEIGHTS).read_bytes() == (tmp_path / "calm" / WEIGHTS).read_bytes()


def test_a_loader_that_hangs_late_ends_the_trial_with_what_there_is(images: Pack, tmp_path: Path) -> None:
    def late(team: ProcessGroup) -> None:
        torn_off(team)
        trainers.RESTARTS = 10**6

    wanted = trial(images, tmp_path / "trial", loader_timeout_s=1.0)
    (first, _), (second, _) = advanced(images, wanted, tmp_path / "meet", late)
    assert (first.ended, first.steps, second.ended, second.steps) == ("cut", 10, "cut", 10)
    assert (tmp_path / "trial" / WEIGHTS).is_file()


# --- who is alone ----------------------------------------------------------------------------------------------------


def test_one_that_is_alone_says_what_it_was_told() -> None:
    assert list(SINGLE_PROCESS.lockstep(iter([1, 2]))) == [1, 2]
    assert SINGLE_PROCESS.broadcast([3, True]) == [3, True]
    assert SINGLE_PROCESS.max(3) == 3
    assert (SINGLE_PROCESS.any(True), SINGLE_PROCESS.any(False)) == (True, False)
    assert SINGLE_PROCESS.gather("x") == ["x"]
    assert init_process_group(Seat()) is SINGLE_PROCESS


def test_devices_follow_each_other() -> None:
    assert [str(DeviceName.parse("cuda:1").next(rank)) for rank in (0, 1)] == ["cuda:1", "cuda:2"]
    assert DeviceName.parse("cpu").next(1) == DeviceName.parse("cpu")
