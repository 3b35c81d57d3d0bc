"""The state of one turn between its steps: validate, keep the best model, write checkpoints, go on from one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fitwithin.data.prefetch import PrefetchLoader
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import CURVE_POINTS, READING_S, EvaluateJob, TrainJob
from fitwithin.engine.margins import REHEARSAL_SHARE
from fitwithin.engine.results import CHECKPOINT, OUTCOME, SALVAGE, Ended, Progress, TrainResult
from fitwithin.errors import LoaderTimeout, TrainingError
from fitwithin.files import put_text, to_json
from fitwithin.training import model as models
from fitwithin.training.distributed import ProcessGroup
from fitwithin.training.evaluation import Evaluator, count_correct, eval_batch
from fitwithin.training.learner import Learner, read_checkpoint, write_checkpoint
from fitwithin.training.loss_meter import LossMeter
from fitwithin.training.schedule import make_schedule, overhead_s, steps_end_at

#: Starting anew must be worth its while: so many times what a start takes must be left.
RESTARTS = 3

#: A loss that is no number sends a turn back to its checkpoint, at most so often, each time at this share of the rate.
RESCUES, RESCUE_RATE = 3, 0.5

#: Told of progress.
Emit = Callable[[Progress], None]


class Trainer:
    """The state of one turn between its steps."""

    def __init__(
        self, job: TrainJob, device: Cpu | Cuda, feeder: PrefetchLoader, asked_at: float, team: ProcessGroup, emit: Emit
    ) -> None:
        self.job, self.device, self.feeder, self.team, self.emit = job, device, feeder, team, emit
        pack = feeder.pack
        self.folder = Path(job.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.began_at = asked_at
        self.learner = Learner(
            job.setting, job.candidate, device, captured=job.captured, accum_steps=job.accum_steps, team=team
        )
        self.startup_s = time.monotonic() - asked_at
        self.n_train, self.n_val = len(pack.indices("train")), len(pack.indices("val"))
        self.steps_per_epoch = self.n_train / job.batch
        self.schedule = make_schedule(job)
        self.best: int | None = None
        self.validations: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.validation_s, self.again_s = job.validation_s, 0.0  # together in the former until one was made
        self.model_s = job.save_s  # as long as a checkpoint until one was written
        self.checkpoint_s = job.save_s  # likewise
        self.evaluation_s = job.evaluation_s
        self.least_s = 0.0  # of which its first size takes so many
        self._model_step = -1  # after which the model was written
        self.earlier_s = self.training_s = 0.0  # the former of processes before this one
        self._stepping_from = 0.0
        self._losses = LossMeter(device, max(READING_S, (job.until_at - asked_at) / CURVE_POINTS))
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._settled = False
        self.spoiled = False  # whether a loss or a weight was seen that is no number
        self._said = ""  # what was last told of it
        self.nan_restarts = self.peak_bytes = 0  # the latter of all processes of the team, the last time they met

    @property
    def peak_lr(self) -> float:
        """The recipe's, lowered by every rescue."""
        return self.job.setting.recipe.learning_rate(self.job.batch) * RESCUE_RATE**self.nan_restarts

    def go_on(self) -> None:
        """Take up the checkpoint that an interrupted process left, or else the weights that the job begins with."""
        saved = read_checkpoint(self.folder / CHECKPOINT)
        if saved is None:
            models.adopt(self.learner.net, self.job.start)
            return
        facts = saved["facts"]
        self.learner.load_state(saved["learner"])
        self.schedule.go_on(facts["step"], facts["planned"], facts["reached"])
        self._saved_step = facts["step"]
        self.best, self.validations, self.curve = facts["best"], facts["validations"], facts["curve"]
        self.earlier_s, self.training_s = facts["elapsed_s"], facts["training_s"]
        self.nan_restarts = facts["nan_restarts"]

    def rehearse(self, evaluator: Evaluator, evaluation: EvaluateJob) -> None:
        """Find out what validation and the evaluation will take in this process: the turn ends in time for them.

        Where that took longer than the plan has for a process that must start first, others were at work just then.
        """
        most_s = REHEARSAL_SHARE * (self.job.until_at - time.monotonic())
        found = evaluator.rehearse(self.learner, evaluation, most_s)
        self.evaluation_s = min(found.whole_s, self.job.evaluation_s)
        self.least_s = min(found.first_s, self.evaluation_s)
        self.validation_s = max(self.validation_s, min(found.validation_s, self.evaluation_s))
        self.schedule.training_ends_at = steps_end_at(self.job, self.model_s, self.evaluation_s)

    @property
    def holds(self) -> str:
        """The folder of the saved model, if the learner's weights are its own still; else nothing."""
        return str(self.folder) if self._model_step == self.schedule.step else ""

    def rescue(self) -> None:
        """Go back to the last checkpoint, whose weights are numbers, and on from there at a lower rate.

        Raises:
            TrainingError: that did not help.
        """
        saved = read_checkpoint(self.folder / CHECKPOINT)
        if saved is None or self.nan_restarts == RESCUES:
            raise TrainingError(
                f"the loss or a weight was no longer finite at step {self.schedule.step}, in attempt "
                f"{self.nan_restarts + 1} of {RESCUES + 1}; a lower learning rate or fp32 may help"
            )
        self.nan_restarts += 1
        self.spoiled, self._model_step = False, -1
        self.curve = [point for point in self.curve if point["step"] <= saved["facts"]["step"]]
        self._losses.clear()
        self.learner.load_state(saved["learner"])
        furthest = max(self.schedule.planned, self.schedule.total)
        self.schedule.go_on(saved["facts"]["step"], furthest, saved["facts"]["reached"])
        self.observe()
        if self.schedule.done:
            self.keep()

    def observe(self) -> Callable[[], None] | None:
        """Draw the end anew; what is due beside steps now. In a team the first one's word counts."""
        self.alive()
        self.schedule.observe(time.monotonic(), self.overhead_s())
        reached = self.schedule.reach(self.steps_per_epoch, self.job.setting.recipe.validate_last_epochs)
        due = 1 if reached else 2 if self.checkpoint_due() else 0
        due, self.spoiled = self.team.follow(self.schedule, due, self.spoiled)
        return (None, self.validate, self.checkpoint)[due]

    def stepping(self) -> None:
        """From here on time is spent on steps."""
        self._stepping_from = time.monotonic()

    def starve(self) -> None:
        """There will be no more batches here: let another process go on, or end with what there is.

        Raises:
            Hanging: there is time for another one.
        """
        again_at = time.monotonic() + RESTARTS * (self.startup_s + self.job.save_s)
        if self.team.led([again_at < self.schedule.training_ends_at])[0]:
            self.aside(self.checkpoint)
            raise LoaderTimeout(
                f"no batch came within {self.job.loader_timeout_s:.0f} s after step {self.schedule.step}"
            )
        self.schedule.stop()

    def aside(self, other: Callable[[], None]) -> None:
        """Do something other than steps, once the device has finished those behind; not with weights that are NaN."""
        self.device.synchronize()
        self.training_s += time.monotonic() - self._stepping_from
        self.spoiled = self.team.any(self.spoiled or not self.learner.finite())
        (self.peak_bytes,) = self.team.largest(self.device.peak_bytes())
        if not self.spoiled:
            other()
        self.schedule.pause()
        self.stepping()

    def elapsed_s(self) -> float:
        """Seconds of the turn, those of earlier processes included."""
        return self.earlier_s + time.monotonic() - self.began_at

    def overhead_s(self) -> float:
        """What must still happen beside steps."""
        marks = self.schedule.marks(self.steps_per_epoch, self.job.setting.recipe.validate_last_epochs)
        on_s = self.model_s + self.again_s
        return overhead_s(
            self.job,
            self.schedule,
            marks,
            validation_s=self.validation_s,
            on_s=on_s,
            evaluation_s=self.evaluation_s,
            saved_at=self._saved_at,
            checkpoint_s=self.checkpoint_s,
        )

    def alive(self) -> bool:
        """Say so where a silence would be taken for the end; always true."""
        if time.monotonic() >= self.job.anxious_at - self.job.lively_s:
            self.emit(Progress(step=self.schedule.step, total=self.schedule.total, text=self._said))
        return True

    def read(self, loss: torch.Tensor) -> None:
        """Keep the loss; take note of the mean of losses, once a second and after the last step."""
        for step, mean in self._losses.read(self.schedule.step, loss, done=self.schedule.done):
            if not math.isfinite(mean):
                self.spoiled = True
                return
            self._tell(step, mean)

    def _tell(self, step: int, mean: float) -> None:
        epoch = step / self.steps_per_epoch
        lr = self.peak_lr * self.schedule.lr_factor
        self.curve.append({"step": step, "epoch": epoch, "elapsed_s": self.elapsed_s(), "loss": mean, "lr": lr})
        self._said = f"epoch {epoch:.1f}  loss {mean:.3f}"
        self.emit(
            Progress(
                step=step,
                total=self.schedule.total,
                text=self._said,
                facts={"loss": mean, "peak_bytes": max(self.peak_bytes, self.device.peak_bytes())},
            )
        )
        if not self._settled and step >= 3:
            self.device.settle()
            self._settled = True

    def validate(self) -> None:
        """Validate at the training size; keep the model if it is the best so far (on a tie, the later one).

        A turn that was never validated has lost, so its last chance may take the time of all sizes of the evaluation
        but the first. (A final training of 48 s was not validated in time, and a model of 7 s was handed over.)
        """
        last_chance = self.schedule.done and self.best is None
        until_at = steps_end_at(self.job, 0.0, self.least_s if last_chance else self.evaluation_s)
        if self.team.led([time.monotonic() + self.validation_s > until_at])[0]:
            return
        begun_at = time.monotonic()
        self.learner.release()  # in all processes, so that they record the step anew side by side
        if not self.team.leads:
            return
        self.device.empty_cache()
        correct = count_correct(
            self.learner,
            self.feeder,
            "val",
            px=self.job.candidate.train_px,
            crop=self.job.setting.recipe.crop_pct,
            batch=eval_batch(self.job.share // self.job.accum_steps),
            on_batch=self.alive,
            until_at=until_at,
        )
        if correct is None:
            return
        self.device.empty_cache()
        # The next step is recorded anew, if there is one.
        self.validation_s, self.again_s = time.monotonic() - begun_at, self.learner.capture_s
        step = self.schedule.step
        accuracy = {"correct": correct, "total": self.n_val}
        self.validations.append({"step": step, "epoch": step / self.steps_per_epoch, "accuracy": accuracy})
        if self.best is None or correct >= self.best:
            self.best = correct
            self.save_model()
        self._note(SALVAGE, self.outcome("cut"))

    def save_model(self) -> None:
        """Write the model as it is, with its card."""
        if not self.team.leads:
            return
        card = models.Card(
            model=self.job.candidate.model,
            classes=self.feeder.pack.classes,
            train_px=self.job.candidate.train_px,
            precision=self.job.candidate.precision,
            crop=self.job.setting.recipe.crop_pct,
            arguments=self.learner.arguments,
        )
        begun_at = time.monotonic()
        models.save(self.learner.net, card, self.folder)
        self._model_step, self.model_s = self.schedule.step, time.monotonic() - begun_at
        self.schedule.training_ends_at = steps_end_at(self.job, self.model_s, self.evaluation_s)

    def checkpoint_due(self) -> bool:
        """After the first step of a turn, then every so often; not when it is about to end."""
        if self.schedule.done:
            return False
        return self._saved_step < 0 or time.monotonic() - self._saved_at >= self.job.checkpoint_every_s

    def checkpoint(self) -> None:
        """Write the checkpoint, and the model as it is while no validation has chosen one: there always is a model."""
        begun_at = time.monotonic()
        self.keep()
        facts = {
            "step": self.schedule.step,
            "planned": max(self.schedule.planned, self.schedule.total),
            "reached": self.schedule.reached,
            "best": self.best,
            "validations": self.validations,
            "curve": self.curve,
            "elapsed_s": self.elapsed_s(),
            "training_s": self.training_s,
            "nan_restarts": self.nan_restarts,
        }
        write_checkpoint(self.folder / CHECKPOINT, self.learner, facts)
        self._note(SALVAGE, self.outcome("cut"))
        self._saved_at, self._saved_step = time.monotonic(), self.schedule.step
        self.checkpoint_s = self._saved_at - begun_at

    def outcome(self, ended: Ended) -> TrainResult:
        """How the turn stands."""
        return TrainResult(
            steps=self.schedule.step,
            planned_steps=self.job.steps,
            epochs=self.schedule.step / self.steps_per_epoch,
            ended=ended,
            best=self.best,
            validations=tuple(self.validations),
            curve=tuple(self.curve),
            peak_bytes=max(self.peak_bytes, self.device.peak_bytes()),
            startup_s=self.startup_s,
            training_s=self.training_s,
            nan_restarts=self.nan_restarts,
            evaluation_s=None if self.job.evaluation is None else self.evaluation_s,
        )

    def _note(self, name: str, outcome: TrainResult) -> None:
        if self.team.leads:
            put_text(self.folder / name, to_json(outcome), lasting=True)

    def keep(self) -> None:
        """If no validation chose a model, the last weights are it."""
        if self.best is None:
            self.save_model()

    def finish(self) -> TrainResult:
        """The outcome, written where a resumed run looks."""
        schedule = self.schedule
        outcome = self.outcome(
            "cut" if schedule.cut else "complete" if schedule.step >= self.job.steps else "shortened"
        )
        self._note(OUTCOME, outcome)
        return outcome
