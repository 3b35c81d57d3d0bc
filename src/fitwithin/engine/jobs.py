"""What an engine is asked to do in a fresh process, and what it answers. Plain data: it crosses process borders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from fitwithin.candidate import Candidate, View
from fitwithin.machine import DeviceName
from fitwithin.recipe import Recipe
from fitwithin.weights.find import Weights

#: Memory comes in pages, and small batches take other algorithms than large ones: two points give a line if one is
#: MIN_RATIO times the other, and of several the largest two.
MIN_RATIO = 1.2

#: Shares of the largest batch that seems to fit, at which a scout runs two further batches. A small batch's workspaces
#: make its images look larger than they are, so the first share comes to 40 to 70 % of the largest batch. A line
#: through it is good to 6 to 11 %; a second point makes it good to an image or two (20 candidates, H100).
SCOUTED = (0.9, 0.93)

#: Seconds between readings of a trial's loss: reading waits for the device. A long trial has CURVE_POINTS of them.
READING_S, CURVE_POINTS = 1.0, 1000


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What every job of a run shares: the device, its cap, the packed images and the recipe.

    ``workers`` is the number of loader processes of each process; ``view_sizes`` are in pixels. ``data_parallel``
    processes train a candidate together, on consecutive devices. ``jobs_per_host`` jobs share the machine's cores. With
    ``canvas_px`` the device resizes training images, which come on canvases of that side; else the loaders do.
    ``weights`` are the pretrained ones that candidates may start from. With ``class_weights`` the loss of an image
    counts by its class; with ``balanced`` classes are drawn equally often instead.
    """

    device: DeviceName
    memory_bytes: int
    accounting: str
    pack: str
    classes: int
    recipe: Recipe
    view_sizes: tuple[int, ...]
    seed: int
    workers: int
    data_parallel: int = 1
    jobs_per_host: int = 1
    canvas_px: int | None = None
    weights: tuple[Weights, ...] = ()
    class_weights: tuple[float, ...] = ()
    balanced: bool = False

    def weights_of(self, candidate: Candidate) -> Weights | None:
        """The pretrained weights that the candidate starts from, if it does."""
        return next((each for each in self.weights if each.name == candidate.init), None)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Which of the ``world_size`` processes of a job this one is, and the file at which they meet."""

    rank: int = 0
    world_size: int = 1
    rendezvous: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is the first of them: it decides, validates and saves."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """Run the real step at ``batch`` images a process under the cap; with ``timed`` measure all that a plan needs.

    A ``scout`` goes on in the same process with larger batches, up to ``limit``, so that one start gives several points
    of memory against batch. ``non_allocator_bytes`` is what earlier probes held outside the allocator. With
    ``cuda_graph`` the step is recorded as a CUDA graph, if the device is a GPU. An update takes the batch in
    ``accum_steps`` parts; with ``rates`` smaller batches are timed too. A ``quick`` timing is less certain.
    """

    setting: JobSettings
    candidate: Candidate
    batch: int
    timed: bool = False
    scout: bool = False
    limit: int = 0
    non_allocator_bytes: int = 0
    cuda_graph: bool = True
    accum_steps: int = 1
    rates: bool = False
    quick: bool = False

    @property
    def share(self) -> int:
        """The images of an update that each process takes."""
        return self.batch


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train for ``steps`` and leave a model in ``folder`` before ``until_at``; goes on from a checkpoint found there.

    ``step_s``, ``validation_s`` and ``save_s`` are the profile's seconds of a step, a validation and a checkpoint; one
    is written every ``checkpoint_every_s``. If a batch takes longer than ``loader_timeout_s``, or the process is silent
    for ``heartbeat_timeout_s``, it hangs and another one goes on. An ``open_ended`` job goes beyond its steps while
    time lasts, a ``frozen`` one keeps them. ``non_allocator_bytes`` is what the profile held outside the allocator.
    ``batch`` images make an update; processes that train together take equal shares, each in ``accum_steps`` parts.
    ``stages`` are the sizes of images; without any all have the candidate's size. ``init_from`` is the folder of a
    model to begin with; without one the weights are drawn. ``evaluation_s`` is kept after the training for evaluating
    the model; on a machine that became slower the training ends earlier for it. With an ``evaluation`` the same process
    does that: it measures at the start how long that takes, at most ``evaluation_s``.
    """

    setting: JobSettings
    candidate: Candidate
    batch: int
    steps: int
    folder: str
    until_at: float
    step_s: float
    validation_s: float
    save_s: float
    checkpoint_every_s: float
    loader_timeout_s: float = math.inf
    heartbeat_timeout_s: float = math.inf
    open_ended: bool = False
    frozen: bool = False
    non_allocator_bytes: int = 0
    cuda_graph: bool = True
    accum_steps: int = 1
    stages: tuple[Stage, ...] = ()
    init_from: str = ""
    evaluation_s: float = 0.0
    evaluation: EvaluateJob | None = None

    @property
    def averages(self) -> bool:
        """Whether the mean of its first and last weights is tried in the end: that of a linear probe and what
        fine-tuning made of it."""
        return bool(self.init_from) and self.setting.recipe.init == "pretrained" and self.setting.data_parallel == 1

    @property
    def share(self) -> int:
        """The images of an update that each process takes."""
        return self.batch // self.setting.data_parallel


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Compute the logits of the model in ``folder`` for all views on the splits until ``until_at``, without those that
    an earlier process has noted in EVALUATED. With ``cuda_graph`` its passes are recorded. Where the model is used, a
    pass may take ``inference_bytes``: views are timed with as many images as that allows."""

    setting: JobSettings
    candidate: Candidate
    batch: int
    folder: str
    views: tuple[View, ...]
    splits: tuple[str, ...]
    until_at: float
    cuda_graph: bool = True
    inference_bytes: int | None = None
    #: Whether it also learns how far from the training images a picture may be.
    learns_novelty: bool = True


@dataclass(frozen=True, kw_only=True)
class LinearProbeJob:
    """Compute the features of a pretrained candidate, and fit a linear head to them: a model in a folder in ``folder``.

    Features of validation images come first, then those of at most ``most_images`` training images in random order,
    while time lasts; at ``until_at`` the model lies there. Features are read from and kept in the folder ``features``.
    Of the ``candidates``, which differ in size and precision alone, one is taken by its measured pace: the largest size
    at which all images of train and val would take no more than ``all_within_s``, in the fastest precision. If it is to
    be evaluated, ``evaluates``, the logits of validation and test images are written as an EvaluateJob does, at the
    training size, as far as time is left.
    """

    setting: JobSettings
    candidates: tuple[Candidate, ...]
    batch: int
    folder: str
    features: str
    most_images: int
    all_within_s: float
    until_at: float
    evaluates: bool = False

    @property
    def candidate(self) -> Candidate:
        """The one of the largest size."""
        return max(self.candidates, key=lambda one: one.train_px)


@dataclass(frozen=True, kw_only=True)
class CompareJob:
    """Time the step of ``candidates`` (backbones' precisions and layouts at one size) at one small batch; a ``quick``
    job leaves those out that would take long."""

    setting: JobSettings
    candidates: tuple[Candidate, ...]
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class ReserveMemoryJob:
    """Hold so much of a GPU's memory that ``free_bytes`` are left, until the other side closes the connection."""

    device: DeviceName
    free_bytes: int


Job = ProbeJob | TrainJob | EvaluateJob | LinearProbeJob | CompareJob


def heartbeat_timeout_s(job: Job) -> float:
    """Seconds of silence after which a process of the job hangs; infinite where silence is usual."""
    return job.heartbeat_timeout_s if isinstance(job, TrainJob) else math.inf


def evaluates_in_process(job: Job) -> TypeGuard[TrainJob]:
    """Whether the process will evaluate its model after the training."""
    return isinstance(job, TrainJob) and job.evaluation is not None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """From the share ``since`` of a trial's steps on, images have ``px`` pixels a side (progressive resizing).

    A step then takes ``step_s``; the change to this size costs ``change_s`` more.
    """

    since: float
    px: int
    step_s: float
    change_s: float = 0.0


def batches_to_compare(largest: int) -> list[int]:
    """The smaller batches whose throughput is compared with the largest one's: its half, and multiples of 8."""
    found = {largest // 8 * 8, largest // 2, largest // 16 * 8}
    return sorted(batch for batch in found if 2 <= batch < largest)
