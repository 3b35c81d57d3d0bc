"""One turn by a law: the loop of training/loop.py with a clock that jumps, and tokens for models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fitwithin.candidate import by_size
from fitwithin.engine.jobs import CURVE_POINTS, READING_S, TrainJob
from fitwithin.engine.results import (
    CARD,
    CHECKPOINT,
    OUTCOME,
    SALVAGE,
    WEIGHTS,
    Ended,
    Progress,
    TrainResult,
)
from fitwithin.engine.simulated.law import SimulatedMachine
from fitwithin.files import put, put_text, read_json, to_json
from fitwithin.training.schedule import make_schedule, overhead_s, rate_factor, steps_end_at

if TYPE_CHECKING:
    from fitwithin.data.dataset import Images

#: Far from its end a turn is simulated in strides of this share of its steps left; at the end, step by step.
STRIDES = 64


class Machine(Protocol):
    """What a turn needs of the engine that carries it out (:class:`fitwithin.engine.simulated.engine.Simulated`)."""

    law: SimulatedMachine
    images: Images
    started_at: float

    @property
    def number(self) -> int:
        """Which of the engine's jobs this is."""

    def now(self) -> float:
        """The simulated present."""

    def spend(self, seconds: float, until_at: float) -> None:
        """Work for what are ``seconds`` on a machine at rest."""

    def claim(self, job: TrainJob) -> int:
        """The peak of the job, in bytes; it ends there if that is above the cap."""


class SimulatedTrainer:
    """One turn by the law: the loop of training/loop.py with a clock that jumps."""

    def __init__(self, engine: Machine, job: TrainJob, until_at: float) -> None:
        self.engine, self.job, self.until_at, self.law = engine, job, until_at, engine.law
        self.folder = Path(job.folder)
        self.n_val = len(engine.images.indices("val"))
        self.steps_per_epoch = len(engine.images.indices("train")) / job.batch
        self.began_at = engine.now()
        self.schedule = make_schedule(job)
        # Everything that a checkpoint keeps beside the step.
        self.best: int | None = None
        self.validations: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self.earlier_s = 0.0
        self.factor = 1.0
        self.peak_bytes, self.startup_s, self.training_s = 0, 0.0, 0.0
        self.validation_s, self.evaluation_s = job.validation_s, job.evaluation_s
        self.least_s, self.checkpoint_s = 0.0, job.save_s
        self.reading_s = max(READING_S, (job.until_at - self.began_at) / CURVE_POINTS)
        self.saved_at, self.saved_step, self.read_at = self.began_at, -1, self.began_at

    def train(self, on_progress: Callable[[Progress], None]) -> TrainResult:
        """Mirrors ``train.advance``."""
        if (finished := read_json(TrainResult, self.folder / OUTCOME)) is not None:
            return finished
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spend(self.law.startup_s)
        self.startup_s = self.engine.now() - self.began_at
        self.peak_bytes = self.engine.claim(self.job)
        self.go_on()
        self.rehearse()
        schedule, first, changed = self.schedule, True, False
        while not schedule.done:
            steps = 1 if first else self.stride()
            noise = self.law.pace_noise * (2 * self.law.draw("step", self.engine.number, schedule.step) - 1)
            stage = schedule.stage
            sized = replace(self.job.candidate, train_px=stage.px)
            pace_s = self.law.step_s(sized, self.job.share) * (1 + noise)
            begun_at = self.engine.now()
            self.spend(steps * pace_s + (self.law.warmup_s if first else changed * self.law.change_s))
            changed = False
            self.training_s += self.engine.now() - begun_at
            last = schedule.step + steps - 1
            self.factor = rate_factor(last, schedule.total, schedule.shape, schedule.warmup)
            schedule.step += steps
            first = False
            self.read(on_progress)
            schedule.observe(self.engine.now(), self.overhead_s())
            changed = schedule.stage is not stage
            if schedule.reach(self.steps_per_epoch, self.job.setting.recipe.validate_last_epochs):
                self.validate()
                schedule.pause()
            elif not schedule.done and (
                self.saved_step < 0 or self.engine.now() - self.saved_at >= self.job.checkpoint_every_s
            ):
                self.checkpoint()
                schedule.pause()
        return self.finish()

    def spend(self, seconds: float) -> None:
        """Work for so many seconds at rest, no further than the engine allows."""
        self.engine.spend(seconds, self.until_at)

    def rehearse(self) -> None:
        """Find out what the evaluation for which the process stays will take: the first batch of each size, and then
        as the law says."""
        if (evaluation := self.job.evaluation) is None:
            return
        began_at, law = self.engine.now(), self.law
        self.spend(law.eval_first_s * len({view.px for view in evaluation.views}))
        slow = law.slowness(began_at - self.engine.started_at)
        images = sum(len(self.engine.images.indices(split)) for split in evaluation.splits)
        sizes_s = [
            slow * images * sum(law.eval_image_s(self.job.candidate, view.px) for view in views)
            for views in by_size(evaluation.views, self.job.candidate.train_px)
        ]
        self.evaluation_s = min(sum(sizes_s), self.job.evaluation_s)
        self.least_s = min(sizes_s[0], self.evaluation_s)
        self.schedule.training_ends_at = steps_end_at(self.job, self.job.save_s, self.evaluation_s)

    def stride(self) -> int:
        """Steps to take at once: many in the middle, single ones before a validation and at the end."""
        step, total = self.schedule.step, self.schedule.total
        ends = [*self.marks(), *(math.ceil(stage.since * total) for stage in self.schedule.stages)]
        to_mark = min((mark - step for mark in ends if mark > step), default=total - step)
        return max(1, min(to_mark, (total - step) // STRIDES))

    def marks(self) -> list[int]:
        """The steps after which validation is due, as the end stands now."""
        return self.schedule.marks(self.steps_per_epoch, self.job.setting.recipe.validate_last_epochs)

    def overhead_s(self) -> float:
        """What must still happen beside steps."""
        return overhead_s(
            self.job,
            self.schedule,
            self.marks(),
            validation_s=self.validation_s,
            on_s=self.law.save_s,
            evaluation_s=self.evaluation_s,
            saved_at=self.saved_at,
            checkpoint_s=self.checkpoint_s,
        )

    def elapsed_s(self) -> float:
        """Seconds of this turn, those of earlier processes included."""
        return self.earlier_s + self.engine.now() - self.began_at

    def read(self, on_progress: Callable[[Progress], None]) -> None:
        """Note how it stands; ``lr`` is the rate of the last step that was taken."""
        now, step = self.engine.now(), self.schedule.step
        if now - self.read_at < self.reading_s and not self.schedule.done:
            return
        self.read_at, epoch = now, step / self.steps_per_epoch
        lr = self.job.setting.recipe.learning_rate(self.job.batch) * self.factor
        point = {"step": step, "epoch": epoch, "elapsed_s": self.elapsed_s(), "loss": 1 / (1 + epoch), "lr": lr}
        self.curve.append(point)
        facts = {"loss": point["loss"], "peak_bytes": self.peak_bytes}
        on_progress(Progress(step=step, total=self.schedule.total, text=f"epoch {epoch:.1f}", facts=facts))

    def skill(self) -> float:
        """How good the model is now, by the law."""
        epochs = self.schedule.step / self.steps_per_epoch
        return self.law.accuracy(self.job.candidate, epochs, self.factor, self.job.setting.classes)

    def validate(self) -> None:
        """Validate if that still fits; keep the model if it is the best so far."""
        begun_at, last_chance = self.engine.now(), self.schedule.done and self.best is None
        kept_s = self.least_s if last_chance else self.evaluation_s
        if begun_at + self.validation_s > steps_end_at(self.job, 0.0, kept_s):
            return
        self.spend(
            self.law.eval_first_s + self.n_val * self.law.eval_image_s(self.job.candidate, self.job.candidate.train_px)
        )
        self.validation_s = self.engine.now() - begun_at
        correct, step = round(self.skill() * self.n_val), self.schedule.step
        accuracy = {"correct": correct, "total": self.n_val}
        self.validations.append({"step": step, "epoch": step / self.steps_per_epoch, "accuracy": accuracy})
        if self.best is None or correct >= self.best:
            self.best = correct
            self.save_model()
        put_text(self.folder / SALVAGE, to_json(self.outcome("cut")))

    def save_model(self) -> None:
        """Leave tokens where a model and its card would be."""
        self.spend(self.law.save_s)
        candidate = asdict(self.job.candidate)
        card = {
            **candidate,
            "classes": self.engine.images.classes,
            "crop": self.job.setting.recipe.crop_pct,
            "arguments": {},
        }
        put_text(self.folder / CARD, json.dumps(card))
        put(self.folder / WEIGHTS, lambda new: new.write_bytes(_token(self.skill())))

    def checkpoint(self) -> None:
        """Write everything needed to go on."""
        begun_at = self.engine.now()
        if self.best is None:
            self.save_model()
        self.spend(self.law.save_s)
        kept = ("best", "validations", "curve", "factor", "training_s")
        facts = {
            "step": self.schedule.step,
            "planned": max(self.schedule.planned, self.schedule.total),
            "reached": self.schedule.reached,
            "earlier_s": self.elapsed_s(),
            **{name: getattr(self, name) for name in kept},
        }
        put_text(self.folder / CHECKPOINT, json.dumps(facts))
        put_text(self.folder / SALVAGE, to_json(self.outcome("cut")))
        self.saved_at, self.saved_step = self.engine.now(), self.schedule.step
        self.checkpoint_s = self.saved_at - begun_at

    def go_on(self) -> None:
        """Take up what an interrupted process left."""
        if not (self.folder / CHECKPOINT).is_file():
            return
        facts: Mapping[str, Any] = json.loads((self.folder / CHECKPOINT).read_text(encoding="utf-8"))
        self.schedule.go_on(facts["step"], facts["planned"], facts["reached"])
        self.saved_step = facts["step"]
        self.best, self.validations, self.curve = facts["best"], facts["validations"], facts["curve"]
        self.earlier_s, self.factor, self.training_s = facts["earlier_s"], facts["factor"], facts["training_s"]

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
            peak_bytes=self.peak_bytes,
            startup_s=self.startup_s,
            training_s=self.training_s,
            evaluation_s=None if self.job.evaluation is None else self.evaluation_s,
        )

    def finish(self) -> TrainResult:
        """Leave the model and the outcome."""
        if self.best is None:
            self.save_model()
        whole: Ended = "complete" if self.schedule.step >= self.job.steps else "shortened"
        outcome = self.outcome("cut" if self.schedule.cut else whole)
        put_text(self.folder / OUTCOME, to_json(outcome))
        return outcome


def _token(skill: float) -> bytes:
    """A safetensors file without tensors whose metadata tell how good the model would be."""
    header = json.dumps({"__metadata__": {"skill": repr(skill)}}).encode()
    return len(header).to_bytes(8, "little") + header


def read_skill(folder: Path) -> float:
    """How good the model in ``folder`` was when its token was written."""
    return float(json.loads((folder / WEIGHTS).read_bytes()[8:])["__metadata__"]["skill"])
