"""A trial on a simulated machine: the loop of training/loop.py on a clock that jumps, with tokens for models.

What is due, and what came of it, :class:`~fitwithin.training.progress.TrialProgress` decides, as in a real trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fitwithin.candidate import by_size
from fitwithin.engine.jobs import TrainJob
from fitwithin.engine.results import (
    CARD,
    CHECKPOINT,
    OUTCOME,
    SALVAGE,
    WEIGHTS,
    Progress,
    TrainResult,
)
from fitwithin.files import read_json, to_json, write_atomic, write_text_atomic
from fitwithin.training.progress import CheckpointState, Due, EvalEstimate, TrialProgress

if TYPE_CHECKING:
    from simulated.engine import Simulated

#: Far from its end a trial is simulated in strides of this share of its steps left; at the end, step by step.
STRIDES = 64


def train(engine: Simulated, job: TrainJob, until_at: float, on_progress: Callable[[Progress], None]) -> TrainResult:
    """Train until the end or until ``until_at``, where the engine ends the job."""
    if (finished := read_json(TrainResult, Path(job.folder) / OUTCOME)) is not None:
        return finished
    trainer = SimulatedTrainer(engine, job, until_at)
    trainer.resume()
    trainer.estimate_evaluation()
    progress, schedule = trainer.progress, trainer.progress.schedule
    extra_s, steps, read_at = engine.law.warmup_s, 1, engine.now()
    while not schedule.done:
        stage = schedule.stage
        trainer.step(steps, extra_s)
        now = engine.now()
        if schedule.done or now - read_at >= progress.reading_s:
            read_at = now
            on_progress(progress.record_loss(schedule.step, 1 / (1 + schedule.step / progress.steps_per_epoch), now))
        due = progress.observe(now)
        if due is Due.VALIDATION:
            trainer.validate()
        elif due is Due.CHECKPOINT:
            trainer.checkpoint()
        if due:
            schedule.pause()
        extra_s = engine.law.change_s if schedule.stage is not stage else 0.0
        steps = trainer.stride()
    trainer.save_last_if_no_best()
    return trainer.write_result(OUTCOME, finished=True)


class SimulatedTrainer:
    """Does as :class:`fitwithin.training.trainer.Trainer`, by the law."""

    def __init__(self, engine: Simulated, job: TrainJob, until_at: float) -> None:
        self.engine = engine
        self.law = engine.law
        self.job = job
        self.until_at = until_at
        self.folder = Path(job.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.n_val = len(engine.images.indices("val"))
        began_at = engine.now()
        self.spend(self.law.startup_s)
        self.progress = TrialProgress(
            job, n_train=len(engine.images.indices("train")), n_val=self.n_val, began_at=began_at, now=engine.now()
        )
        self.progress.peak_bytes = engine.check_memory(job)

    def spend(self, seconds: float) -> None:
        """Work for so many seconds at rest, no further than the engine allows."""
        self.engine.spend(seconds, self.until_at)

    def resume(self) -> None:
        """Go on from what an interrupted process left."""
        path = self.folder / CHECKPOINT
        if path.is_file():
            self.progress.resume(CheckpointState(**json.loads(path.read_text(encoding="utf-8"))))

    def estimate_evaluation(self) -> None:
        """Try out the evaluation by this process: the first batch of each size, and then as the law says."""
        if (evaluation := self.job.evaluation) is None:
            return
        law, images, candidate = self.law, self.engine.images, self.job.candidate
        slow = law.slowdown(self.engine.now() - self.engine.started_at)
        self.spend(law.eval_first_s * len({view.px for view in evaluation.views}))
        count = sum(len(images.indices(split)) for split in evaluation.splits)
        sizes_s = [
            slow * count * sum(law.eval_image_s(candidate, view.px) for view in views)
            for views in by_size(evaluation.views, candidate.train_px)
        ]
        validation_s = slow * self.n_val * law.eval_image_s(candidate, candidate.train_px)
        estimate = EvalEstimate(whole_s=sum(sizes_s), first_s=sizes_s[0], validation_s=validation_s)
        self.progress.expect_evaluation(estimate)

    def stride(self) -> int:
        """Steps to take at once: many in the middle, single ones before a validation and at the end."""
        schedule = self.progress.schedule
        step, total = schedule.step, schedule.total
        ends = [*self.progress.validation_steps(), *(math.ceil(stage.since * total) for stage in schedule.stages)]
        to_end = min((end - step for end in ends if end > step), default=total - step)
        return max(1, min(to_end, (total - step) // STRIDES))

    def step(self, steps: int, extra_s: float) -> None:
        """Take so many steps, which take ``extra_s`` more than usual."""
        schedule, begun_at = self.progress.schedule, self.engine.now()
        noise = self.law.pace_noise * (2 * self.law.draw("step", self.engine.number, schedule.step) - 1)
        sized = replace(self.job.candidate, train_px=schedule.stage.px)
        self.spend(steps * self.law.step_s(sized, self.job.share) * (1 + noise) + extra_s)
        self.progress.training_s += self.engine.now() - begun_at
        self.progress.take(steps)

    def accuracy(self) -> float:
        """The share of images that the model gets right now, by the law."""
        epochs = self.progress.schedule.step / self.progress.steps_per_epoch
        return self.law.accuracy(self.job.candidate, epochs, self.progress.lr_factor, self.job.setting.classes)

    def validate(self) -> None:
        """Validate, if there is time; save the model if it is the best so far."""
        begun_at, candidate = self.engine.now(), self.job.candidate
        if not self.progress.can_validate(begun_at):
            return
        self.spend(self.law.eval_first_s + self.n_val * self.law.eval_image_s(candidate, candidate.train_px))
        if self.progress.validated(round(self.accuracy() * self.n_val), self.engine.now() - begun_at):
            self.save_model()
        self.write_result(SALVAGE)

    def save_model(self) -> None:
        """Leave tokens where a model and its card would be."""
        begun_at = self.engine.now()
        self.spend(self.law.save_s)
        card = {"classes": self.engine.images.classes, "crop": self.job.setting.recipe.crop_pct, "arguments": {}}
        write_text_atomic(self.folder / CARD, json.dumps({**asdict(self.job.candidate), **card}))
        write_atomic(self.folder / WEIGHTS, lambda new: new.write_bytes(_token(self.accuracy())))
        self.progress.model_saved(self.engine.now() - begun_at)

    def save_last_if_no_best(self) -> None:
        """Leave the model as it is, unless a validation has chosen one."""
        if self.progress.best is None:
            self.save_model()

    def checkpoint(self) -> None:
        """Write everything needed to go on."""
        begun_at = self.engine.now()
        self.save_last_if_no_best()
        self.spend(self.law.save_s)
        write_text_atomic(self.folder / CHECKPOINT, json.dumps(vars(self.progress.state(self.engine.now()))))
        self.write_result(SALVAGE)
        self.progress.checkpoint_saved(begun_at, self.engine.now())

    def write_result(self, name: str, *, finished: bool = False) -> TrainResult:
        """How the trial stands, written into its folder too."""
        result = self.progress.result(finished=finished)
        write_text_atomic(self.folder / name, to_json(result))
        return result


def _token(accuracy: float) -> bytes:
    """A safetensors file without tensors; its metadata hold the model's accuracy."""
    header = json.dumps({"__metadata__": {"accuracy": repr(accuracy)}}).encode()
    return len(header).to_bytes(8, "little") + header


def write_accuracy(folder: Path, accuracy: float) -> None:
    """Leave tokens where a model of that accuracy and its card would be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / CARD, "{}")
    write_atomic(folder / WEIGHTS, lambda new: new.write_bytes(_token(accuracy)))


def read_accuracy(folder: Path) -> float:
    """The accuracy of the model in ``folder`` when its token was written."""
    return float(json.loads((folder / WEIGHTS).read_bytes()[8:])["__metadata__"]["accuracy"])
