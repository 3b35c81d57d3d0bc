"""What workers answer, the files that a trial leaves, and how they are read. Plain data: it crosses process borders."""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fitwithin.candidate import Candidate, View
from fitwithin.files import write_atomic

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

#: The files of a trial's folder: what a later process goes on from, how the trial ended, how it stood at its last
#: checkpoint, the model's weights, what is needed to use them, how far its evaluation got.
CHECKPOINT, OUTCOME, SALVAGE = "checkpoint.pt", "outcome.json", "salvage.json"
WEIGHTS, CARD, EVALUATED = "model.safetensors", "config.json", "evaluated.json"

#: Features of training images, float16 [M, D] of length 1, by which pictures of other kinds are told apart.
NOVELTY = "novelty.safetensors"

#: What the folders and names of linear probes have behind their candidate's name.
LINEAR = "linear"

#: A machine is called busy if other programs take this share of its CPU.
BUSY = 0.1

#: How a training that left a model ended: with the planned steps or more, with fewer that were annealed to 0, or cut
#: off because time was over.
Ended = Literal["complete", "shortened", "cut"]

#: Why a job gave no result: memory, its deadline, its process died or hung, a full disk, an error; ``deserted``:
#: another process of the same job is gone, whose own failure says more.
FailureKind = Literal["memory", "deadline", "died", "hung", "disk", "error", "deserted"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds measured on the real pipeline in a fresh process, at one batch size.

    ``startup_s``: from the request to a model on the device. ``warmup_s``: what the loader's start and the first steps
    cost more than later ones. ``dummy_step_s``: a step with a batch already there (the paper's dummy loader).
    ``step_s``: a step with the real loader, and its 95 % interval. ``loader_step_s``: the loader alone makes a batch.
    ``num_other_processes``: processes of others on the device. ``cpu_taken``: the share of the CPU that other programs
    took, where it trains. By size, ``eval_image_s``: an image of an evaluation;
    ``eval_device_s``: its forward pass alone, the cost of another view of a loaded image; ``eval_first_s``: the extra
    cost of the first batch (less where training has loaded the kernels). ``save_s``: writing a checkpoint.
    ``capture_s``: recording the step anew after an evaluation. ``rates``: images per second with the dummy loader by
    batch. With progressive resizing ``stage_step_s`` is a step at each smaller size, ``stage_change_s`` the extra cost
    of going on to a size.
    """

    startup_s: float
    warmup_s: float
    dummy_step_s: float
    step_s: float
    step_low_s: float
    step_high_s: float
    eval_image_s: dict[int, float]
    eval_first_s: dict[int, float]
    save_s: float
    loader_step_s: float = 0.0
    num_other_processes: int = 0
    cpu_taken: float = 0.0
    capture_s: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    stage_step_s: dict[int, float] = field(default_factory=dict)
    stage_change_s: dict[int, float] = field(default_factory=dict)
    eval_device_s: dict[int, float] = field(default_factory=dict)

    def views_s(self, px: int, count: int) -> float:
        """Seconds per image for so many views of one size."""
        return self.eval_image_s[px] + (count - 1) * self.eval_device_s.get(px, self.eval_image_s[px])


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One fresh process that ran the real step at ``batch``: whether it stayed within the cap, and its peak.

    The batch was split into ``accum_steps`` parts. ``scouted`` are further batches of the same process with the memory
    they needed: they place later probes and prove nothing. ``needed_bytes`` is the least cap under which the run would
    have passed (the peak, where that is unknown), a line in the batch; ``usable_bytes`` is its limit,
    ``non_allocator_bytes`` its part outside the allocator. ``memory_taken_by_others``: others held the memory;
    ``graph_capture_failed``: the step or the pass cannot be recorded as a CUDA graph.
    """

    batch: int
    passed: bool
    peak_bytes: int | None = None
    reason: str = ""
    fatal: bool = False  # no smaller batch would help: the model cannot be built, or fails at this size
    accum_steps: int = 1
    memory_taken_by_others: bool = False
    graph_capture_failed: bool = False
    parameters: int = 0
    wall_s: float = 0.0
    timing: Timing | None = None
    scouted: tuple[tuple[int, int], ...] = ()
    needed_bytes: int | None = None
    usable_bytes: int | None = None
    non_allocator_bytes: int = 0

    @property
    def memory_points(self) -> list[tuple[int, int]]:
        """Every batch that ran in this process, with the memory it needed."""
        own = self.needed_bytes if self.needed_bytes is not None else self.peak_bytes
        return [(self.batch // self.accum_steps, own), *self.scouted] if self.passed and own is not None else []


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """Seconds of a training step with a batch that lies ready, and half of its 95 % interval; ``first_s`` is what the
    first steps at a size take beyond that: kernels are chosen or built, the step recorded."""

    batch: int
    step_s: float
    error_s: float
    first_s: float = 0.0

    def amortised_s(self, trial_s: float, sizes: int, error_s: float) -> float:
        """Seconds of a step, ``error_s`` more than measured, with its share of the first steps at so many ``sizes`` in
        a trial of ``trial_s``; infinity where those take the whole trial."""
        share = max(0.0, 1 - sizes * self.first_s / trial_s)
        return (self.step_s + error_s) / share if share else math.inf


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """The seconds of a step by the candidates' names, the largest memory that the process had, and the share of the CPU
    that other programs took meanwhile."""

    paces: dict[str, StepTiming]
    peak_bytes: int | None = None
    cpu_taken: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a trial ended.

    ``validations`` and ``curve`` hold plain values for the report; ``best`` is the number of correct images in the best
    validation, whose weights are in the folder (None without one: then the weights are the last ones). ``training_s``
    are the seconds of the steps, the loader's start included; ``nan_restarts`` how often the loss was not finite and
    the trial went back to its checkpoint, at a lower rate; ``evaluation_s`` the expected seconds of an evaluation by
    the same process; ``cpu_taken`` the share of the CPU that other programs took, where it trains; ``averaged``: the
    weights in the folder are the mean of the first and the last ones.
    """

    steps: int
    planned_steps: int
    epochs: float
    ended: Ended
    best: int | None
    validations: tuple[dict[str, Any], ...]
    curve: tuple[dict[str, Any], ...]
    peak_bytes: int
    startup_s: float
    training_s: float = 0.0
    nan_restarts: int = 0
    evaluation_s: float | None = None
    cpu_taken: float = 0.0
    averaged: bool = False


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """What an evaluation has written (:func:`logits_path`), and what each view costs.

    ``done`` lists (split, view name) in the order of completion; ``ms_per_image`` is the device's time of each view at
    ``batch`` images a forward pass, without loading. Where the model is used it takes ``weight_bytes``, and
    ``image_bytes`` for each image of a pass of the largest view. ``novelty`` is the distance from the training images
    in NOVELTY that 1 % of the validation images exceed; None if it was not measured.
    """

    done: tuple[tuple[str, str], ...]
    ms_per_image: dict[str, float]
    batch: int
    peak_bytes: int
    weight_bytes: int = 0
    image_bytes: int = 0
    novelty: float | None = None

    @property
    def used_bytes(self) -> int:
        """The bytes that a pass of ``batch`` images takes with the weights."""
        return self.weight_bytes + self.batch * self.image_bytes


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A pretrained model, the ``candidate``, with a linear head for this data; how well it does on validation images.

    ``correct`` are right by the head, ``neighbours_correct`` by the nearest of the ``images`` training images that the
    head was fitted to, ``pixels_correct`` by the nearest one in plain pixels. ``strength`` is the penalty's C.
    ``features_s`` are the seconds of all features, of which ``cached`` images had theirs already, and ``image_s`` those
    of an image once the first ones are through, 0 if it is not known; ``head_s`` are those of the head.
    """

    candidate: Candidate
    correct: int
    neighbours_correct: int
    pixels_correct: int
    images: int
    strength: float
    parameters: int
    startup_s: float
    features_s: float
    image_s: float
    head_s: float
    cached: int
    peak_bytes: int

    @property
    def took_s(self) -> float:
        """The seconds of all of it."""
        return self.startup_s + self.features_s + self.head_s

    def as_training(self) -> TrainResult:
        """The same as a training without steps."""
        return TrainResult(
            steps=0,
            planned_steps=0,
            epochs=0.0,
            ended="complete",
            best=self.correct,
            validations=(),
            curve=(),
            peak_bytes=self.peak_bytes,
            startup_s=self.startup_s,
            training_s=self.features_s + self.head_s,
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that gave no result, and why."""

    kind: FailureKind
    reason: str
    trace: str = ""
    peak_bytes: int | None = None


def check_disk(outcome: Outcome) -> Outcome:
    """The outcome; OSError (ENOSPC) if a disk was full: no other job would do better."""
    if isinstance(outcome, Failure) and outcome.kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    return outcome


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life from a running job, for progress bars."""

    step: int
    total: int
    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def logits_path(folder: Path, split: str, view: View) -> Path:
    """The file of the logits [N, K] of a split under a view."""
    return folder / f"logits-{split}-{view.px}{'-flipped' if view.flip else ''}.npy"


def write_logits(path: Path, rows: Floats) -> None:
    """Keep the logits [N, K] of a split under a view; they survive a power cut."""
    import numpy as np  # not at the top: most users of this module need none

    def write(new: Path) -> None:
        with new.open("wb") as file:
            np.save(file, rows, allow_pickle=False)

    write_atomic(path, write, fsync=True)


def read_logits(folder: Path, split: str, view: View) -> Floats:
    """The logits that an evaluation wrote."""
    import numpy as np

    return np.asarray(np.load(logits_path(folder, split, view), allow_pickle=False), dtype=np.float32)


Outcome = Probe | TrainResult | EvalResult | LinearProbe | CompareResult | Failure
