"""Probabilities of images by models that did not see them: linear heads on features of pretrained weights.

Shape suffixes: N images, D features, K classes, B batch, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fitwithin.candidate import Candidate
from fitwithin.data import features as store
from fitwithin.data.batches import EvalBatches
from fitwithin.data.dataset import DataFacts
from fitwithin.data.framing import Frame, elongation
from fitwithin.data.pack import Pack
from fitwithin.engine.device import open_device
from fitwithin.files import cache_root
from fitwithin.machine import DeviceName
from fitwithin.planning import prior, transfer
from fitwithin.training import linear_head, pretrained
from fitwithin.training import model as models
from fitwithin.training.linear_probe import linear_layer_of
from fitwithin.weights.find import Weights

#: Parts of the images; the probabilities of each are those of a head that was fitted to the others.
FOLDS = 5

#: Heads are fitted to no more images, drawn at random: more take minutes and tell little.
MOST_FITTED = 20_000

#: The penalty's C, which is strong: heads with a weaker one learn wrong labels, and are too sure. With the C of the
#: smallest log loss, 0.01, 3.6 % of the right labels of clothing10 were suspected where 1.6 % are, for 8 points more of
#: those planted. Few images need a larger one: it is LEAST_STRENGTH by their number at the least.
STRENGTH, LEAST_STRENGTH = 1e-3, 3.0

#: Weights whose features are taken side by side, at the most: two are right on clothes for 89 % of images, one for 86.
MOST_WEIGHTS = 3

#: Further weights are taken as long as all features together take no more than this.
FEATURES_S = 600.0

#: Images that features are computed of at once.
BATCH = 64

#: As in candidates (candidate.py).
PRECISION = "amp"

#: Sides in pixels are multiples of this, and images are not enlarged to more than ENLARGED times their own.
GRAIN_PX, ENLARGED = 32, 2.5

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: Gets what is going on, how much is done, and how much there is.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFold:
    """Probabilities [N, K] of the images at the ``positions`` [N] of a pack, by features of these ``weights``.

    ``tested`` says of the splits val and test how many images a head that was fitted to train gets right, True or False
    for each of their positions.
    """

    positions: Ints
    probabilities: Floats
    weights: tuple[str, ...]
    tested: dict[int, bool]


def out_of_fold(
    pack: Pack, families: Ints, weights: Sequence[Weights], device: DeviceName, on_progress: OnProgress
) -> OutOfFold:
    """The probabilities of all labelled images of a pack. Images of one of the ``families`` [N] lie in one fold.

    Raises:
        WeightsError, UsageError: weights do not fit their backbone.
    """
    positions = np.flatnonzero(pack.labels >= 0).astype(np.int64)
    taken, parts = [], []
    for name, values in _features(pack, positions, weights, device, on_progress):
        taken.append(name)
        parts.append((values - values.mean(0)) / np.maximum(values.std(0), 1e-6))
    x_ND = torch.from_numpy(np.concatenate(parts, axis=1))
    y_N = torch.from_numpy(pack.labels[positions])
    classes, fold_N = len(pack.classes), torch.from_numpy(folds(pack.labels[positions], families[positions]))
    probabilities = torch.zeros(len(positions), classes)
    strengths = (max(STRENGTH, LEAST_STRENGTH / len(positions)),)
    for fold in range(FOLDS):
        on_progress("fitting linear heads", fold, FOLDS + 1)
        held = fold_N == fold
        others = _some(~held)
        head = linear_head.fit((x_ND[others], y_N[others]), (x_ND[held], y_N[held]), classes, strengths=strengths)
        probabilities[held] = head.logits(x_ND[held]).softmax(1)
    on_progress("fitting linear heads", FOLDS, FOLDS + 1)
    train_N = torch.from_numpy(np.isin(positions, pack.indices("train")))
    tested: dict[int, bool] = {}
    if bool((~train_N).any()):
        rest = x_ND[~train_N], y_N[~train_N]
        fitted = _some(train_N)
        head = linear_head.fit((x_ND[fitted], y_N[fitted]), rest, classes, strengths=strengths)
        right = (head.logits(rest[0]).argmax(1) == rest[1]).tolist()
        tested = dict(zip(positions[~train_N.numpy()].tolist(), right, strict=True))
    return OutOfFold(
        positions=positions,
        probabilities=np.asarray(probabilities.numpy(), dtype=np.float32),
        weights=tuple(taken),
        tested=tested,
    )


def _some(chosen_N: torch.Tensor) -> torch.Tensor:
    """The positions that are chosen, MOST_FITTED of them at the most."""
    found = chosen_N.nonzero()[:, 0]
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:MOST_FITTED]]


def folds(labels_N: Ints, families_N: Ints) -> Ints:
    """A fold for each image [N]: families stay together, and every fold has as many images of a class, nearly."""
    order = np.random.default_rng(0).permutation(len(labels_N))
    _, first, family_N = np.unique(families_N[order], return_index=True, return_inverse=True)
    # A family counts as of the class of its first image; the classes are dealt out one after the other.
    label_of = labels_N[order][first]
    dealt = np.argsort(label_of, kind="stable")
    fold_of = np.empty(len(first), np.int64)
    fold_of[dealt] = np.arange(len(first)) % FOLDS
    found = np.empty(len(labels_N), np.int64)
    found[order] = fold_of[family_N]
    return found


def _features(
    pack: Pack, positions: Ints, weights: Sequence[Weights], device: DeviceName, on_progress: OnProgress
) -> Iterator[tuple[str, Floats]]:
    """Features by the cheapest weights, and by further ones as far as FEATURES_S goes."""
    facts = DataFacts(train=len(positions), val=0, test=0, classes=len(pack.classes))
    kind = "cuda" if device.is_cuda else "cpu"
    found = transfer.prospects(weights, prior.load(), kind, facts, precisions=(PRECISION,), layouts=("nchw",), sizes=())
    by_name = {each.name: each for each in weights}
    spent_s, slower = 0.0, 1.0
    for number, prospect in enumerate(found[:MOST_WEIGHTS]):
        px = size_for(pack, by_name[prospect.name].px)
        expected_s = slower * prospect.image_s * len(positions) * (px / by_name[prospect.name].px) ** 2
        if number and spent_s + expected_s > FEATURES_S:
            return
        begun_at = time.monotonic()
        net = _Net(prospect.candidates[0], by_name[prospect.name], px, pack, device)
        yield prospect.name, net.features(positions, on_progress)
        spent_s += time.monotonic() - begun_at
        if net.image_s:
            slower = net.image_s / (prospect.image_s * (px / by_name[prospect.name].px) ** 2)


def size_for(pack: Pack, own_px: int) -> int:
    """The side at which features are computed: the weights' own, but not much more than the images have."""
    shorter = float(np.median(np.minimum(pack.heights, pack.widths)))
    return min(own_px, max(2 * GRAIN_PX, -(-int(ENLARGED * shorter) // GRAIN_PX) * GRAIN_PX))


def frame_for(pack: Pack) -> Frame:
    """What features are computed of: the centre of a picture; of long pictures all of it, squashed."""
    return Frame(1.0, "squash" if elongation(pack.heights, pack.widths) >= transfer.ELONGATED else "crop")


class _Net:
    """A pretrained net; what goes into its last linear layer are the features."""

    def __init__(self, candidate: Candidate, weights: Weights, px: int, pack: Pack, device: DeviceName) -> None:
        opened = open_device(device)
        self._device, self._kind, self._amp = opened.torch_device, opened.kind, opened.amp_dtype
        self._pack, self._px, self._frame, self._name = pack, px, frame_for(pack), weights.name
        net, _ = models.build(replace(candidate, train_px=px), len(pack.classes), (px,))
        pretrained.load(weights, net, head=False)
        self._net = net.to(self._device, memory_format=opened.memory_format).eval()  # type: ignore[call-overload]
        self._normalise = models.Normalise(weights.mean, weights.std, self._device, opened.memory_format)
        linear_layer_of(net, candidate.model)  # or it says why not
        self._last = models.LastFeatures(net)
        self._path = store.path_of(
            cache_root() / "features", pack, weights=weights.sha256, px=px, frame=self._frame, precision=PRECISION
        )
        #: The seconds of an image; 0 where all features were there.
        self.image_s = 0.0

    def features(self, positions: Ints, on_progress: OnProgress) -> Floats:
        """Those of the images at the positions, [N, D]; what is computed is kept in the cache."""
        known = store.read(self._path)
        missing = known.missing(positions)
        batches = EvalBatches(self._pack, frame=self._frame, px=self._px, batch=BATCH, indices=missing)
        parts, begun_at = [], time.monotonic()
        with torch.inference_mode(), torch.autocast(self._kind, dtype=self._amp):
            for number in range(len(batches)):
                x_bhwc = np.empty((BATCH, self._px, self._px, 3), np.uint8)
                labels, fill = batches.prepare(number)
                fill(x_bhwc, range(BATCH))
                parts.append(self._compute(torch.from_numpy(x_bhwc))[: len(labels)])
                on_progress(f"features by {self._name}", number * BATCH + len(labels), len(missing))
        if parts:
            self.image_s = (time.monotonic() - begun_at) / len(missing)
            known = known.plus(missing, np.concatenate(parts))
            store.write(self._path, known)
        return known.of(positions)

    def _compute(self, x_bhwc: torch.Tensor) -> npt.NDArray[np.float16]:
        with self._last:
            self._net(self._normalise(self._normalise.floats(x_bhwc)))
        return self._last.as_half()
