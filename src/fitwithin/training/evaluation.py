"""Logits of a saved model under all views, written to disk, and what each view costs per image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from fitwithin.candidate import Candidate, View, by_size
from fitwithin.data.batches import EvalBatches
from fitwithin.data.dataset import num_familiar
from fitwithin.data.framing import Frame
from fitwithin.data.pack import Pack
from fitwithin.data.prefetch import PrefetchLoader, Stream, ring_bytes
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import EvaluateJob, JobSettings
from fitwithin.engine.margins import REHEARSED_BATCHES, VIEW_PASSES, VIEW_S
from fitwithin.engine.results import EVALUATED, NOVELTY, EvalResult, Progress, logits_path, write_logits
from fitwithin.files import read_json, to_json, write_atomic, write_text_atomic
from fitwithin.training import model as models
from fitwithin.training.learner import Learner
from fitwithin.training.progress import EvalEstimate, first_and_pace

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

#: Evaluation needs no gradients: this many images at once keep a GPU busy, and the peak below training's.
EVAL_BATCH = 256

#: Seconds between messages about how far an evaluation is.
EMIT_S = 0.1

#: A picture is novel if it is farther from the training images than this share of the validation images.
FAMILIAR_SHARE = 0.99

#: Smaller cosine distances are rounding.
LEAST_DISTANCE = 1e-5

#: How many times writing a view's logits is timed: the disk may be busy once.
WRITES = 3


class Usage(NamedTuple):
    """How a model is used: the images of a pass, the bytes of the weights, and those of each image in a pass."""

    batch: int
    weight_bytes: int
    image_bytes: int


class Evaluator:
    """Writes the logits of a saved model, with the ``learner`` of its trial, or else with one of its own.

    ``saved_dir`` is the folder of the model whose weights the learner has, if any; ``ms_per_image`` holds the
    milliseconds of each timed view, by its name, with as many images a pass as ``usage`` has.
    """

    def __init__(self, device: Cpu | Cuda, feeder: PrefetchLoader) -> None:
        self._device = device
        self._feeder = feeder
        self.learner: Learner | None = None
        self.saved_dir = ""
        self.ms_per_image: dict[str, float] = {}
        self.usage: Usage | None = None

    def estimate_time(self, learner: Learner, job: EvaluateJob, most_s: float) -> EvalEstimate:
        """Try the evaluation out with that learner, whatever its weights; the seconds that it will take in this
        process, writing included.

        Every view is timed first: that loads its kernels and raises an idle GPU's clocks. One batch, not counted, wakes
        the loaders. Then REHEARSED_BATCHES of validation are evaluated at each size, fewer where that takes more than
        ``most_s``.
        """
        self.learner = learner
        size, frame = eval_batch(job.batch), Frame.of(job.setting.recipe)
        groups = by_size(job.views, job.candidate.train_px)
        usage = self._measure(learner, job)
        for view in job.views:
            self.ms_per_image[view.name] = ms_per_image(learner, view, usage.batch)

        def timed(views: list[View], batches: int, until_at: float) -> list[float]:
            """When it began, and when each batch was done."""
            marks = [time.monotonic()]

            def note() -> bool:
                marks.append(time.monotonic())
                return len(marks) <= batches and marks[-1] < until_at

            split_logits(learner, self._feeder, "val", views, frame=frame, batch=size, on_batch=note)
            self._device.empty_cache()
            return marks

        timed(groups[0], 1, 0.0)
        begun_at, sizes_s, validation_s, novelty_s = time.monotonic(), list[float](), 0.0, 0.0
        writing_s = self._write_s(job)
        for number, views in enumerate(groups):
            marks = timed(views, REHEARSED_BATCHES, begun_at + most_s * (number + 1) / len(groups))
            # With a single batch the pace is the device's alone.
            alone_s = min(marks[1] - marks[0], sum(self.ms_per_image[view.name] for view in views) * size / 1e3)
            first_s, batch_s = max(0.0, marks[1] - marks[0] - alone_s), alone_s
            if len(marks) > 2:
                first_s, batch_s = first_and_pace(marks, Stream.prefetch)
            split_s = {split: first_s + self._batches(split, size) * batch_s for split in job.splits}
            sizes_s.append(sum(split_s.values()) + len(job.splits) * (len(views) + 1) * writing_s)
            if views[0].px == job.candidate.train_px:
                validation_s = split_s["val"]
                novelty_s = first_s + batch_s * sum(_num_familiar(self._feeder.pack, job)) / size
        again_s = sum(_again_s(taken_ms, usage.batch) for taken_ms in self.ms_per_image.values())
        return EvalEstimate(whole_s=sum(sizes_s) + novelty_s + again_s, first_s=sizes_s[0], validation_s=validation_s)

    def evaluate(self, job: EvaluateJob, emit: Callable[[Progress], None]) -> EvalResult:
        """Write the logits of every split and view, size by size and split by split, while time lasts; time each view.

        With less time there are fewer views, but each on every split. EVALUATED is written after every split of a size:
        nothing is lost with the process.
        """
        folder, device = Path(job.folder), self._device
        learner = self.learner or Learner(job.setting, job.candidate, device, cuda_graph=job.cuda_graph)
        if self.saved_dir != job.folder:
            models.adopt(learner.net, job.folder)
        size = eval_batch(job.batch)
        sizes = [(split, views) for views in by_size(job.views, job.candidate.train_px) for split in job.splits]
        total = sum(self._batches(split, size) for split, _ in sizes)
        usage = self._measure(learner, job)
        there = read_json(EvalResult, folder / EVALUATED)
        found = there or EvalResult(done=(), ms_per_image={}, batch=usage.batch, peak_bytes=0)
        found = replace(found, weight_bytes=usage.weight_bytes, image_bytes=usage.image_bytes)
        self.ms_per_image.update(found.ms_per_image)
        seen, seen_at, emitted_at = 0, 0.0, -math.inf

        def in_time() -> bool:
            """Whether this batch ends a split of a size, or the next batch, if it takes as long, ends in time."""
            nonlocal seen, seen_at, emitted_at
            now = time.monotonic()
            seen, batch_s, seen_at = seen + 1, now - seen_at, now
            if now >= emitted_at + EMIT_S:
                emitted_at = now
                emit(Progress(step=seen, total=total, text=f"{split} split", facts={"peak_bytes": device.peak_bytes()}))
            return seen == ends_after or now + batch_s < job.until_at

        ends_after = 0
        for split, views in sizes:
            ends_after += self._batches(split, size)
            if all((split, view.name) in found.done for view in views):
                seen = ends_after
                continue
            seen_at = time.monotonic()
            logits = split_logits(
                learner,
                self._feeder,
                split,
                views,
                frame=Frame.of(job.setting.recipe),
                batch=size,
                on_batch=in_time,
                until_at=job.until_at,
            )
            if logits is None:
                break
            for view, rows in logits.items():
                write_logits(logits_path(folder, split, view), rows)
                if view.name not in self.ms_per_image:
                    self.ms_per_image[view.name] = ms_per_image(learner, view, found.batch)
            found = replace(
                found,
                done=(*found.done, *((split, view.name) for view in views)),
                ms_per_image={**found.ms_per_image, **{view.name: self.ms_per_image[view.name] for view in views}},
                peak_bytes=max(found.peak_bytes, device.peak_bytes()),
            )
            write_text_atomic(folder / EVALUATED, to_json(found), fsync=True)
            device.empty_cache()
        if len(found.done) == len(job.splits) * len(job.views):
            if job.learns_novelty and found.novelty is None:
                found = replace(found, novelty=self._learn_novelty(learner, job))
            found = replace(found, ms_per_image=self._timed_alone(learner, job, found))
            write_text_atomic(folder / EVALUATED, to_json(found), fsync=True)
        return replace(found, peak_bytes=max(found.peak_bytes, device.peak_bytes()))

    def _timed_alone(self, learner: Learner, job: EvaluateJob, found: EvalResult) -> dict[str, float]:
        """The milliseconds of the views now that no loader works beside them, as far as there is time."""
        taken = dict(found.ms_per_image)
        for view in job.views:
            again_s = _again_s(taken[view.name], found.batch)
            if again_s and time.monotonic() + again_s < job.until_at:
                taken[view.name] = ms_per_image(learner, view, found.batch)
        return taken

    def _learn_novelty(self, learner: Learner, job: EvaluateJob) -> float | None:
        """Write features of training images, and the distance from them that few validation images exceed; None where
        there is no time, the model has no single linear layer at its end, validation images are too few, or features
        tell none of them apart."""
        n_train, n_val = _num_familiar(self._feeder.pack, job)
        train = _spread(self._feeder.pack.indices("train"), n_train)
        val = _spread(self._feeder.pack.indices("val"), n_val)
        if not len(val):
            return None
        features = models.LastFeatures(learner.net)
        batches = {"frame": Frame.of(job.setting.recipe), "px": job.candidate.train_px, "batch": eval_batch(job.batch)}
        parts: list[torch.Tensor] = []
        wanted = np.concatenate([train, val])
        with features, self._feeder.stream(EvalBatches, **batches, indices=wanted, until_at=job.until_at) as loaded:
            begun_at = time.monotonic()
            for x_bhwc, _ in loaded:
                learner.logits(x_bhwc, eager=True)
                now = time.monotonic()
                if features.seen is None or now + (now - begun_at) / (len(parts) + 1) >= job.until_at:
                    return None
                parts.append(features.seen.float().cpu())
        if self._feeder.stalled:
            return None
        values = torch.cat(parts)[: len(wanted)]
        known = F.normalize(values[: len(train)], dim=1).to(torch.float16)
        write_atomic(Path(job.folder) / NOVELTY, lambda new: save_file({"features": known}, new), fsync=True)
        distance = float(models.nearest_distance(values[len(train) :], known.float()).quantile(FAMILIAR_SHARE))
        return distance if distance >= LEAST_DISTANCE else None

    def _measure(self, learner: Learner, job: EvaluateJob) -> Usage:
        """What a pass takes, measured once."""
        if self.usage is None:
            weight_bytes = models.weight_bytes(learner.net)
            batch = eval_batch(job.batch)
            image_bytes = _image_bytes(learner, max(job.views), batch)
            if job.inference_bytes is not None:
                batch = min(batch, max(1, (job.inference_bytes - weight_bytes) // image_bytes))
            self.usage = Usage(batch, weight_bytes, image_bytes)
        return self.usage

    def _write_s(self, job: EvaluateJob) -> float:
        """Seconds of writing the logits of the larger split: the median of WRITES."""
        path = Path(job.folder) / "timed.npy"
        most = max(len(self._feeder.pack.indices(split)) for split in job.splits)
        rows = np.zeros((most, job.setting.classes), dtype=np.float32)
        marks = [time.monotonic()]
        for _ in range(WRITES):
            write_logits(path, rows)
            marks.append(time.monotonic())
        path.unlink()
        return median(np.diff(marks).tolist())

    def _batches(self, split: str, size: int) -> int:
        return -(-len(self._feeder.pack.indices(split)) // size)


def _num_familiar(pack: Pack, job: EvaluateJob) -> tuple[int, int]:
    """The images of train and of val that familiar pictures are learnt from."""
    passes = len(job.views) * sum(len(pack.indices(split)) for split in job.splits)
    return num_familiar(len(pack.indices("train")), len(pack.indices("val")), passes)


def _spread(positions: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """So many of the positions at the most, evenly spread over them."""
    return positions[np.linspace(0, len(positions) - 1, most).astype(np.int64)]


def ms_per_image(learner: Learner, view: View, batch: int, *, eager: bool = True) -> float:
    """Median milliseconds per image of one forward pass of ``batch`` images that are on the device already; ``eager``
    is kernel by kernel, as where the model is used, else as in an evaluation."""
    x_bhwc = torch.zeros((batch, view.px, view.px, 3), dtype=torch.uint8, device=learner.device.torch_device)
    taken: list[float] = []
    if learner.device.kind == "cuda":  # the first pass at a size loads and chooses its kernels, which takes 0.3 s
        learner.logits(x_bhwc, flip=view.flip, eager=eager)
    while len(taken) < VIEW_PASSES and sum(taken) < VIEW_S:
        learner.device.synchronize()
        begun_at = time.monotonic()
        learner.logits(x_bhwc, flip=view.flip, eager=eager)
        learner.device.synchronize()
        taken.append(time.monotonic() - begun_at)
    return 1e3 * median(taken) / batch


def _again_s(taken_ms: float, batch: int) -> float:
    """The seconds of another :func:`ms_per_image` where an image takes ``taken_ms``; 0 where that took one pass, and
    would say no more."""
    pass_s = taken_ms * batch / 1e3
    return 0.0 if pass_s > VIEW_S else min((VIEW_PASSES + 1) * pass_s, VIEW_S + 2 * pass_s)


def _image_bytes(learner: Learner, view: View, batch: int) -> int:
    """The bytes of an image in a forward pass of ``batch`` images: a shape that the evaluation has too, since a new one
    may cost a GPU seconds of building kernels."""
    x_bhwc = torch.zeros((batch, view.px, view.px, 3), dtype=torch.uint8, device=learner.device.torch_device)
    return -(-models.bytes_made(learner.net, lambda: learner.logits(x_bhwc, flip=view.flip, eager=True)) // batch)


def eval_batch(batch: int) -> int:
    """Images per forward pass in evaluation, for a candidate certified at ``batch``."""
    return min(batch, EVAL_BATCH)


def feeder_rings(candidate: Candidate, setting: JobSettings, batch: int, *, trains: bool = True) -> tuple[int, ...]:
    """Bytes of the rings: for training at ``batch``, if it ``trains``, and for evaluation at every size."""
    views = ring_bytes([(eval_batch(batch), px) for px in (candidate.train_px, *setting.view_sizes)])
    return (ring_bytes([(batch, setting.canvas_px or candidate.train_px)]), views) if trains else (views,)


def split_logits(
    learner: Learner,
    feeder: PrefetchLoader,
    split: str,
    views: list[View],
    *,
    frame: Frame,
    batch: int,
    on_batch: Callable[[], bool] | None = None,
    until_at: float = math.inf,
) -> dict[View, Floats] | None:
    """Logits [N, K] of every image of a split under views of one size, in stored order.

    ``on_batch`` says after every batch whether to go on; None if it says no, or if a batch came after ``until_at``.
    """
    px = views[0].px
    parts: dict[View, list[torch.Tensor]] = {view: [] for view in views}
    with feeder.stream(EvalBatches, split=split, frame=frame, px=px, batch=batch, until_at=until_at) as loaded:
        for x_bhwc, _ in loaded:
            for view in views:
                parts[view].append(learner.logits(x_bhwc, flip=view.flip).cpu())
            if on_batch is not None and not on_batch():
                return None
    if feeder.stalled:
        return None
    n = len(feeder.pack.indices(split))
    return {view: np.asarray(torch.cat(found)[:n].numpy(), dtype=np.float32) for view, found in parts.items()}


def count_correct(
    learner: Learner, feeder: PrefetchLoader, *, px: int, frame: Frame, batch: int, until_at: float
) -> int | None:
    """How many validation images the model gets right, one plain view at ``px``; None after ``until_at``."""
    view = View(px=px, flip=False)
    found = split_logits(learner, feeder, "val", [view], frame=frame, batch=batch, until_at=until_at)
    if found is None:
        return None
    labels = feeder.pack.labels[feeder.pack.indices("val")]
    return int((found[view].argmax(axis=1) == labels).sum())
