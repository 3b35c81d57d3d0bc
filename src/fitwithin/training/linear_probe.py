"""A linear probe: frozen features of a pretrained model, and a linear head fitted to them, which make a usable model.

Shape suffixes: N images, D features, K classes, B batch, C channels, H W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from fitwithin.candidate import View
from fitwithin.data import features as store
from fitwithin.data.batches import EvalBatches, resize
from fitwithin.data.features import Features
from fitwithin.data.framing import Frame
from fitwithin.data.pack import Pack
from fitwithin.data.prefetch import PrefetchLoader
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import LinearProbeJob
from fitwithin.engine.margins import VIEW_PASSES
from fitwithin.engine.results import EVALUATED, LINEAR, EvalResult, LinearProbe, Progress, logits_path, write_logits
from fitwithin.errors import TrainingError, UsageError
from fitwithin.files import to_json, write_text_atomic
from fitwithin.training import linear_head, pretrained
from fitwithin.training import model as models
from fitwithin.training.evaluation import eval_batch
from fitwithin.weights.find import Weights

#: The share of the time that is kept for fitting the head and writing the model.
HEAD_SHARE = 0.25

#: Batches by which sizes and precisions are timed, where there are several.
TIMED = 2

#: Training images among which the nearest neighbour is looked for: more take time and tell little.
NEIGHBOURS_AMONG = 10_000

#: Images whose nearest neighbours are looked for at once: the distances must fit into memory.
AT_ONCE = 1024

#: The side at which images are compared by their plain pixels.
PIXELS_PX = 16

Ints = npt.NDArray[np.int64]


def probe_linearly(
    job: LinearProbeJob,
    device: Cpu | Cuda,
    feeder: PrefetchLoader,
    asked_at: float,
    emit: Callable[[Progress], None],
) -> LinearProbe:
    """Compute features while time lasts, fit the head, and leave the model in its folder.

    Raises:
        OutOfMemory: the cap was reached.
        WeightsError, UsageError: the weights do not fit the backbone, or its head is not a linear layer.
        TrainingError: time was over before there were features of every class.
    """
    extractor = _Extractor(job, device, feeder)
    pack, setting = feeder.pack, job.setting
    val, train = pack.indices("val"), pack.indices("train")
    train = np.random.default_rng(setting.seed).permutation(train)[: job.most_images]
    startup_s, now = time.monotonic() - asked_at, time.monotonic()
    features_until_at = job.until_at - HEAD_SHARE * (job.until_at - now)
    extractor.choose(len(val) + len(pack.indices("train")))
    path = store.path_of(
        Path(job.features),
        pack,
        weights=extractor.weights.sha256,
        px=extractor.candidate.train_px,
        frame=Frame.of(setting.recipe),
        precision=extractor.candidate.precision,
    )
    known = store.read(path)
    missing = [known.missing(val), known.missing(train)]
    cached = len(val) + len(train) - sum(map(len, missing))
    for positions in missing:
        known = extractor.extend(known, positions, features_until_at, emit)
    if sum(map(len, missing)):
        store.write(path, known)
    train = train[np.isin(train, known.positions)]
    if len(known.missing(val)) or len(np.unique(pack.labels[train])) < len(pack.classes):
        raise TrainingError("the time was over before there were features of images of every class")
    features_s = time.monotonic() - now
    to = device.torch_device
    train_xy = torch.from_numpy(known.of(train)).to(to), torch.from_numpy(pack.labels[train]).to(to)
    val_xy = torch.from_numpy(known.of(val)).to(to), torch.from_numpy(pack.labels[val]).to(to)
    heads_until_at = 0.5 * (features_until_at + job.until_at)
    weights_K = torch.tensor(setting.class_weights, device=to) if setting.class_weights else None
    head = linear_head.fit(train_xy, val_xy, setting.classes, until_at=heads_until_at, class_weights=weights_K)
    correct = int((head.logits(val_xy[0]).argmax(1) == val_xy[1]).sum())
    folder = extractor.save(head)
    head_s = time.monotonic() - now - features_s
    if job.evaluates:
        half_s = 0.5 * (job.until_at - time.monotonic())  # the rest is for the end: without it the head would be lost
        known = extractor.extend(known, known.missing(pack.indices("test")), time.monotonic() + half_s, emit)
        store.write(path, known)
        extractor.evaluate(head, known, folder)
    return LinearProbe(
        candidate=extractor.candidate,
        correct=correct,
        neighbours_correct=_neighbours_correct(train_xy, val_xy),
        pixels_correct=_neighbours_correct(_pixels(pack, train[:NEIGHBOURS_AMONG], to), _pixels(pack, val, to)),
        images=len(train),
        strength=head.strength,
        parameters=models.parameters(extractor.net),
        startup_s=startup_s,
        features_s=features_s,
        image_s=extractor.image_s,
        head_s=head_s,
        cached=cached,
        peak_bytes=device.peak_bytes(),
    )


class _Extractor:
    """A pretrained net on a device: what goes into its last linear layer are the features."""

    def __init__(self, job: LinearProbeJob, device: Cpu | Cuda, feeder: PrefetchLoader) -> None:
        self.job, self._device, self._feeder = job, device, feeder
        setting = job.setting
        #: What is computed with.
        self.candidate = candidate = job.candidate
        weights = setting.weights_of(candidate)
        assert weights is not None
        self.weights: Weights = weights
        self._format = torch.channels_last if candidate.layout == "channels_last" else device.memory_format
        net, self._arguments = models.build(candidate, setting.classes, tuple(one.train_px for one in job.candidates))
        pretrained.load(weights, net, head=False)
        self.net = net.to(device.torch_device, memory_format=self._format).eval()  # type: ignore[call-overload]
        self._head = linear_layer_of(net, candidate.model)
        self._normalise = models.Normalise(weights.mean, weights.std, device.torch_device, self._format)
        #: The seconds of each batch after the first ones of a stream, which wait for the loaders and for kernels.
        self._batches_s: list[float] = []
        self._last = models.LastFeatures(net)

    def choose(self, images: int) -> None:
        """Take the candidate of the largest size at which there is time for so many images, by the pace at the smallest
        size; it grows with the pixels."""
        candidates = self.job.candidates
        if len(candidates) == 1:
            return
        least_px = min(one.train_px for one in candidates)
        batch = eval_batch(self.job.batch)
        x_bhwc = torch.zeros((batch, least_px, least_px, 3), dtype=torch.uint8)
        image_s: dict[str, float] = {}
        for self.candidate in [one for one in candidates if one.train_px == least_px]:
            self._features(x_bhwc)
            self._device.synchronize()
            begun_at = time.monotonic()
            for _ in range(TIMED):
                self._features(x_bhwc)
            self._device.synchronize()
            image_s[self.candidate.precision] = (time.monotonic() - begun_at) / (TIMED * batch)
        fastest = min(image_s, key=lambda word: image_s[word])

        def affords(px: int) -> bool:
            return images * image_s[fastest] * (px / least_px) ** 2 <= self.job.all_within_s

        usable = sorted((one for one in candidates if one.precision == fastest), key=lambda one: -one.train_px)
        self.candidate = next((one for one in usable if affords(one.train_px)), usable[-1])

    def extend(self, known: Features, positions: Ints, until_at: float, emit: Callable[[Progress], None]) -> Features:
        """The ``known`` features and those at the ``positions``, as far as time lasts."""
        batch = eval_batch(self.job.batch)
        parts: list[npt.NDArray[np.float16]] = []
        batches = {"frame": Frame.of(self.job.setting.recipe), "px": self.candidate.train_px, "batch": batch}
        now = time.monotonic()
        with self._feeder.stream(EvalBatches, **batches, indices=positions, until_at=until_at) as loaded:
            for x_bhwc, _ in loaded:
                parts.append(self._features(x_bhwc))
                begun_at, now = now, time.monotonic()
                self._batches_s += [now - begun_at] if len(parts) > 1 else []
                done = min(len(parts) * batch, len(positions))
                facts = {"peak_bytes": self._device.peak_bytes()}  # a process that is ended reports no other
                emit(Progress(step=done, total=len(positions), text="features", facts=facts))
                if now >= until_at:
                    break
        values = np.concatenate(parts)[: len(positions)] if parts else np.zeros((0, 0), np.float16)
        return known.plus(positions[: len(values)], values) if len(values) else known

    @property
    def image_s(self) -> float:
        """The seconds of an image's features by the median batch; 0 if there were too few."""
        return statistics.median(self._batches_s) / eval_batch(self.job.batch) if self._batches_s else 0.0

    def _features(self, x_bhwc: torch.Tensor) -> npt.NDArray[np.float16]:
        dtype = models.amp_dtype(self.candidate.precision, self._device.amp_dtype)
        amp = torch.autocast(self._device.kind, dtype=dtype, enabled=dtype is not None)
        with torch.inference_mode(), amp, self._last:
            self.net(self._normalise(self._normalise.floats(x_bhwc)))
        return self._last.as_half()

    def save(self, head: linear_head.LinearHead) -> Path:
        """Write the model with that head, and its card; its folder."""
        with torch.no_grad():
            self._head.weight.copy_(head.weight_KD)
            self._head.bias.copy_(head.bias_K)
        folder = Path(self.job.folder) / f"{self.candidate.name}-{LINEAR}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EVALUATED).unlink(missing_ok=True)  # that of an earlier head
        card = models.Card(
            model=self.candidate.model,
            classes=self._feeder.pack.classes,
            train_px=self.candidate.train_px,
            precision=self.candidate.precision,
            layout=self.candidate.layout,
            frame=Frame.of(self.job.setting.recipe),
            arguments=self._arguments,
            mean=self.weights.mean,
            std=self.weights.std,
        )
        models.save(self.net, card, folder)
        return folder

    def evaluate(self, head: linear_head.LinearHead, known: Features, folder: Path) -> None:
        """Write the head's logits of the splits whose features are known, and what a pass takes."""
        pack, view = self._feeder.pack, View(px=self.candidate.train_px, flip=False)
        batch, done = eval_batch(self.job.batch), []
        for split in ("val", "test"):
            positions = pack.indices(split)
            if len(positions) and not len(known.missing(positions)):
                logits = head.logits(torch.from_numpy(known.of(positions)).to(self._device.torch_device))
                write_logits(logits_path(folder, split, view), logits.cpu().numpy())
                done.append((split, view.name))
        x_bhwc = torch.zeros((batch, view.px, view.px, 3), dtype=torch.uint8)
        taken: list[float] = []
        for _ in range(1 + VIEW_PASSES):
            self._device.synchronize()
            begun_at = time.monotonic()
            self._features(x_bhwc)
            taken.append(time.monotonic() - begun_at)
        found = EvalResult(
            done=tuple(done),
            ms_per_image={view.name: 1e3 * statistics.median(taken[1:]) / batch},
            batch=batch,
            peak_bytes=self._device.peak_bytes(),
            weight_bytes=models.weight_bytes(self.net),
            image_bytes=-(-models.bytes_made(self.net, lambda: self._features(x_bhwc)) // batch),
        )
        write_text_atomic(folder / EVALUATED, to_json(found), fsync=True)


def linear_layer_of(net: nn.Module, model: str) -> nn.Linear:
    """The linear layer that gives the logits; UsageError if there is not exactly one, with a bias."""
    head = net.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise UsageError(f"{model} does not end in one linear layer, which a start from pretrained weights needs")
    return head


def _pixels(pack: Pack, positions: Ints, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """These images at PIXELS_PX as rows of numbers, and their labels."""
    out = np.empty((len(positions), PIXELS_PX, PIXELS_PX, 3), dtype=np.uint8)
    for place, position in zip(out, positions, strict=True):
        image = pack.image(int(position))
        resize(image, Frame(1.0).box(image.shape[0], image.shape[1]), place)
    x_ND = torch.from_numpy(out.reshape(len(out), -1)).to(device, torch.float32)
    return x_ND, torch.from_numpy(pack.labels[positions]).to(device)


def _neighbours_correct(train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor]) -> int:
    """How many images of ``val`` have the class of their nearest neighbour in ``train``, by cosine."""
    x_ND, y_N = (part[:NEIGHBOURS_AMONG] for part in train)
    mean_D = x_ND.mean(0)
    x_ND = F.normalize(x_ND - mean_D)
    correct = 0
    for since in range(0, len(val[1]), AT_ONCE):
        x_BD, y_B = (part[since : since + AT_ONCE] for part in val)
        nearest_B = (F.normalize(x_BD - mean_D) @ x_ND.T).argmax(1)
        correct += int((y_N[nearest_B] == y_B).sum())
    return correct
