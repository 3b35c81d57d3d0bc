"""What an engine is asked to do in a fresh process, and what it answers. Plain data: it crosses process borders."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.inference.ensemble import View
from fitwithin.planning.cost import EXIT_S, HANDOVER_S, MEANWHILE_S, REHEARSED_MARGIN
from fitwithin.profiling.profile import Probe
from fitwithin.profiling.variants import Pace
from fitwithin.recipe import Recipe
from fitwithin.training.schedule import Schedule, Stage

#: The files of a turn's folder: what a later process goes on from, how the turn ended, how it stood at its last
#: checkpoint, the model's weights and what is needed to use them, how far its evaluation got.
CHECKPOINT, OUTCOME, SALVAGE = "checkpoint.pt", "outcome.json", "salvage.json"
WEIGHTS, CARD, EVALUATED = "model.safetensors", "card.json", "evaluated.json"

#: Seconds between readings of a turn's loss: reading waits for the device. A long turn has CURVE_POINTS of them.
READING_S, CURVE_POINTS = 1.0, 1000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every job of a run shares: the device, its cap, the packed images and the recipe.

    ``workers`` is the number of loader processes; ``view_sizes`` the sizes in pixels that evaluation uses.
    ``data_parallel`` processes train a candidate together, on devices that follow each other; each has its loaders. The
    ``sharers``, so many jobs at a time, have the machine's cores. With ``canvas_px`` the device resizes training
    images, which travel on canvases of that side; else the loaders do.
    """

    device: str
    memory_bytes: int
    accounting: str
    pack: str
    classes: int
    recipe: Recipe
    view_sizes: tuple[int, ...]
    seed: int
    workers: int
    data_parallel: int = 1
    sharers: int = 1
    canvas_px: int | None = None


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Which of the ``of`` processes that do a job together this one is, and the file at which they meet."""

    rank: int = 0
    of: int = 1
    meeting: str = ""

    @property
    def leads(self) -> bool:
        """Whether this is the first of them: it decides, validates and saves."""
        return self.rank == 0

    def device(self, first: str) -> str:
        """The device of this one, where the first has ``first``; there is only one CPU."""
        kind, _, index = first.partition(":")
        return first if kind == "cpu" else f"{kind}:{int(index or 0) + self.rank}"


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """Run the real step at ``batch`` under the cap; with ``timed`` also measure everything a plan needs.

    ``batch`` is what each process takes, where several train together. A ``scout`` goes on in the same process to about
    two thirds of what seems to fit, so that one start gives two points of memory against batch; never beyond ``limit``.
    ``outside_bytes`` is what earlier probes held outside the allocator. ``captured``: on CUDA the step is recorded as a
    graph. An update takes ``batch`` images in ``chunks`` parts; with ``rates`` smaller batches are timed too. A
    ``brief`` timing takes a fraction of the time, and is less certain.
    """

    setting: Setting
    candidate: Candidate
    batch: int
    timed: bool = False
    scout: bool = False
    limit: int = 0
    outside_bytes: int = 0
    captured: bool = True
    chunks: int = 1
    rates: bool = False
    brief: bool = False

    @property
    def share(self) -> int:
        """The images of an update that each process takes."""
        return self.batch


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train for ``steps`` and leave a model in ``folder`` before ``until_at``; goes on from a checkpoint found there.

    ``step_s``, ``validation_s`` and ``save_s`` are the profile's; between checkpoints are ``checkpoint_every_s``. Where
    a batch is not there within ``patience_s``, or nothing is heard of the process for ``silence_s``, it hangs and the
    turn goes on in another one. An ``open_ended`` job goes beyond its steps while time lasts, a ``frozen`` one keeps
    them. ``outside_bytes`` is what the profile held outside the allocator; ``captured``: its step was recorded as a
    CUDA graph; ``chunks``: an update takes ``batch`` images in so many parts. Processes that train together take equal
    shares of them, each in so many parts. ``stages``: the sizes of images and the pace at each; without any all have
    the candidate's, at ``step_s``. ``start``: the folder of a model whose weights it begins with; without one they are
    drawn. ``evaluation_s`` is kept behind the turn for evaluating its model; a turn on a machine that has become slower
    ends the earlier for it. With an ``evaluation`` the process stays for it instead: it tries it out at its start, and
    the turn ends in time for what that will take, ``evaluation_s`` at most. From ``anxious_at`` on, when only just time
    is left for another process to evaluate what there is, a silence of ``lively_s`` tells that it hangs.
    """

    setting: Setting
    candidate: Candidate
    batch: int
    steps: int
    folder: str
    until_at: float
    step_s: float
    validation_s: float
    save_s: float
    checkpoint_every_s: float
    patience_s: float = math.inf
    silence_s: float = math.inf
    open_ended: bool = False
    frozen: bool = False
    outside_bytes: int = 0
    captured: bool = True
    chunks: int = 1
    stages: tuple[Stage, ...] = ()
    start: str = ""
    evaluation_s: float = 0.0
    evaluation: EvaluateJob | None = None
    anxious_at: float = math.inf
    lively_s: float = math.inf

    @property
    def share(self) -> int:
        """The images of an update that each process takes."""
        return self.batch // self.setting.data_parallel

    def schedule(self) -> Schedule:
        """The course of the turn; its last model must be saved and its process end by ``until_at``."""
        whole = Stage(since=0.0, px=self.candidate.train_px, step_s=self.step_s)
        return Schedule(
            planned=self.steps,
            training_ends_at=self.ends_at(self.save_s),
            planned_step_s=self.step_s,
            frozen=self.frozen,
            shape=self.setting.recipe.schedule,
            warmup=self.setting.recipe.warmup,
            stages=self.stages or (whole,),
            open_ended=self.open_ended,
        )

    def ends_at(self, model_s: float, evaluation_s: float = 0.0) -> float:
        """By when steps and validations must have ended, where writing the last model takes so long, and the evaluation
        for which the process stays."""
        if self.evaluation is None:
            return self.until_at - EXIT_S - 1.2 * model_s
        least_s = MEANWHILE_S if self.setting.device.startswith("cuda") else 0.0
        return self.until_at - 1.2 * model_s - HANDOVER_S - max(least_s, (1 + REHEARSED_MARGIN) * evaluation_s)

    def overhead_s(
        self,
        schedule: Schedule,
        marks: list[int],
        *,
        validation_s: float,
        on_s: float,
        evaluation_s: float,
        saved_at: float,
        checkpoint_s: float,
    ) -> float:
        """What the turn still needs beside steps: validations at ``marks``, between them ``on_s`` for writing a model
        and going on, the checkpoints that follow the one at ``saved_at``, and what its evaluation will take longer than
        the ``evaluation_s`` that are kept for it, all as much slower as the steps have become. Where the process stays
        for its evaluation, no other time is kept for a last step that lasts; up to as much is as another process would
        need."""
        slow = max(1.0, schedule.slowness)
        ahead = sum(mark > schedule.step for mark in marks)
        saves = int(max(0.0, schedule.training_ends_at - saved_at) / self.checkpoint_every_s)
        beside_s = 1.2 * (ahead * validation_s + max(0, ahead - 1) * on_s) + saves * checkpoint_s
        jolt_s = min(schedule.jolt_s, max(0.0, schedule.training_ends_at - self.anxious_at))
        return slow * beside_s + (slow - 1) * evaluation_s + jolt_s


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Compute the logits of the model in ``folder`` for all views on the splits, as far as ``until_at`` allows, but for
    what an earlier process was done with, as its EVALUATED says. ``captured``: on CUDA its passes are recorded."""

    setting: Setting
    candidate: Candidate
    batch: int
    folder: str
    views: tuple[View, ...]
    splits: tuple[str, ...]
    until_at: float
    captured: bool = True


@dataclass(frozen=True, kw_only=True)
class ScreenJob:
    """Time the step of ``candidates`` (backbones' precisions and layouts at one size) at one small batch; a ``brief``
    job leaves those out that would take long."""

    setting: Setting
    candidates: tuple[Candidate, ...]
    brief: bool = False


@dataclass(frozen=True, kw_only=True)
class Screened:
    """The paces by the candidates' names."""

    paces: dict[str, Pace]


@dataclass(frozen=True, kw_only=True)
class HoldJob:
    """Hold so much of a GPU's memory that ``free_bytes`` are left, until nobody listens any more."""

    device: str
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """What is free now."""

    free_bytes: int


Job = ProbeJob | TrainJob | EvaluateJob | ScreenJob


def processes(job: Job) -> int:
    """How many processes do the job together: training is what several share."""
    return job.setting.data_parallel if isinstance(job, ProbeJob | TrainJob) else 1


def hangs_at(job: Job, heard_at: float) -> float:
    """The instant at which a job hangs whose process was last heard at ``heard_at``."""
    if not isinstance(job, TrainJob):
        return math.inf
    return min(heard_at + job.silence_s, max(heard_at, job.anxious_at) + job.lively_s)


def stays(job: Job) -> bool:
    """Whether the job's process stays for an evaluation."""
    return isinstance(job, TrainJob) and job.evaluation is not None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a turn ended: ``ended`` is ``complete`` (the planned steps or more), ``shortened`` (fewer, annealed) or
    ``cut`` (time was over).

    ``validations`` and ``curve`` hold plain values ready for the report; ``best`` is ``correct`` images of the best
    validation, whose weights are in the folder (None if none took place: then the weights are the last ones).
    ``training_s`` is the time of the steps alone, the loader's start included; ``rescues`` how often the loss was no
    number and the turn went back to its checkpoint, at a lower rate; ``evaluation_s`` what a process that stays expects
    its evaluation to take.
    """

    steps: int
    planned_steps: int
    epochs: float
    ended: str
    best: int | None
    validations: tuple[dict[str, Any], ...]
    curve: tuple[dict[str, Any], ...]
    peak_bytes: int
    startup_s: float
    training_s: float = 0.0
    rescues: int = 0
    evaluation_s: float | None = None


def trained_to_json(trained: Trained) -> str:
    """The outcome of a turn as JSON text; :func:`trained_from_dict` reads it."""
    return json.dumps(asdict(trained), allow_nan=False)


def trained_from_dict(value: dict[str, Any]) -> Trained:
    """The outcome that was written as JSON."""
    return Trained(**{**value, "validations": tuple(value["validations"]), "curve": tuple(value["curve"])})


def read_trained(path: Path) -> Trained | None:
    """The outcome in that file; None without one."""
    return trained_from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Where the logits are (one .npy per split and view under ``folder``), what was complete, and what each view costs.

    ``done`` lists (split, view name) pairs in the order they were completed; ``ms_per_image`` is per view at
    ``batch`` images a forward pass, on the device, without loading.
    """

    done: tuple[tuple[str, str], ...]
    ms_per_image: dict[str, float]
    batch: int
    peak_bytes: int


def evaluated_from_dict(value: dict[str, Any]) -> Evaluated:
    """The evaluation that was written as JSON."""
    return Evaluated(**{**value, "done": tuple((split, view) for split, view in value["done"])})


def read_evaluated(path: Path) -> Evaluated | None:
    """How far the evaluation that wrote this file got; None without one."""
    return evaluated_from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that gave no result: ``kind`` is ``memory``, ``deadline``, ``died``, ``hung``, ``error``, or ``deserted``
    where of several processes another one is gone, whose own end tells more."""

    kind: str
    reason: str
    trace: str = ""
    peak_bytes: int | None = None


Outcome = Probe | Trained | Evaluated | Screened | Failure


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life from a running job, for progress bars."""

    step: int
    total: int
    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
