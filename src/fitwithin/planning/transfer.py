"""A start from pretrained weights: which of them are probed at which sizes, and what is fine-tuned. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.results import LinearProbe
from fitwithin.planning.prior import Backbone, Table
from fitwithin.recipe import Recipe
from fitwithin.weights.find import Weights

#: The time of an image's features, as a share of that in a training step in float32: a forward pass alone, on a CPU
#: often in bfloat16. (tf_efficientnet_lite0, two cores with AVX512-BF16: 0.06 to 0.15.)
FORWARD_SHARE = {"cuda": 0.3, "cpu": 0.15}

#: Seconds of fitting a head and writing the model.
HEAD_S = {"cuda": 1.5, "cpu": 5.0}

#: Linear probes take this share of the time where fine-tuning can follow, and where nothing can; the first of several
#: at most FIRST_SHARE.
PROBING_SHARE, ALONE_SHARE, FIRST_SHARE = 0.25, 0.7, 0.45

#: The share of a linear probe's time for features.
FEATURES_SHARE = 0.7

#: Weights are compared on so many training images if there is no time for the features of all.
SAMPLE = 1000

#: Heads are fitted to no more training images: their features must fit into memory, and more tell little.
MOST_FITTED = 100_000

#: Sizes in pixels that are taken on a CPU where there is no time for the weights' own.
SMALLER_PX = (224, 192, 160, 128, 96)

#: About so many steps a quick profile takes, evaluations included. One of SHORT_PROFILE_S seconds is always worth it.
PROFILE_STEPS, SHORT_PROFILE_S = {"cuda": 14, "cpu": 8}, 10.0

#: Fine-tuning for fewer epochs is not begun.
LEAST_EPOCHS = 3.0

#: One backbone is fine-tuned for each of these seconds that are left, MOST_TUNED at the most.
TUNED_EVERY_S, MOST_TUNED = 120.0, 4

#: A batch seems to fit if it takes no more than FIT_SHARE of the memory that the process itself leaves free, which has
#: some PROCESS_MIB on a GPU. It is a multiple of GRAIN images.
FIT_SHARE, PROCESS_MIB, GRAIN = 0.85, 700, 8

#: Features tell nothing of the data if nearest neighbours are right less often than KNOWN times by chance. Then weights
#: are drawn if there are MANY training images.
KNOWN, MANY = 2.0, 20_000


#: Ways to frame pictures are compared where the median picture is so many times as long as wide: a centre crop leaves
#: out two fifths of it. Of ordinary photos (4:3, 3:2) it shows what matters, and larger (docs/log.md).
ELONGATED = 1.7


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """Pretrained weights: the candidates, of which a linear probe takes one by its pace, and the seconds at the largest
    size that an image's features and an epoch of fine-tuning are expected to take on the table's machine."""

    candidates: tuple[Candidate, ...]
    image_s: float
    epoch_s: float

    @property
    def name(self) -> str:
        """The weights' name."""
        return self.candidates[0].init


def prospects(
    weights: Sequence[Weights],
    table: Table,
    kind: str,
    data: DataFacts,
    *,
    precisions: Sequence[str],
    layouts: Sequence[str],
    sizes: Sequence[int],
) -> list[Prospect]:
    """What may be probed on a device of that ``kind``, the cheapest first, at the weights' own size or at the largest
    of the ``sizes`` that the user named, in the first precision. A CPU may take a smaller size, and either precision.
    """
    found = []
    for each in weights:
        backbone, px = table.of(each.model), max(sizes, default=each.px)
        layout = "channels_last" if "channels_last" in layouts and not backbone.depthwise else layouts[0]
        likely = Candidate(model=each.model, train_px=px, precision=precisions[0], layout=layout, init=each.name)
        candidates = [likely]
        if kind == "cpu":
            smaller = () if sizes else (one for one in SMALLER_PX if one < px)
            both = [px, *smaller]
            candidates = [replace(likely, train_px=one, precision=word) for one in both for word in precisions]
        image_s = 1e-6 * backbone.image_us(kind, px)
        found.append(
            Prospect(
                candidates=tuple(candidates),
                image_s=FORWARD_SHARE[kind] * image_s,
                epoch_s=data.train * image_s,
            )
        )
    return sorted(found, key=lambda one: (one.image_s, one.name))


def foreign(probes: Sequence[LinearProbe], data: DataFacts) -> str:
    """Why weights are better drawn, in a sentence; nothing if the features of some probe know the data.

    Features that tell images apart no better than plain pixels do are of no use: such images, as scans of symbols, are
    also learnt quickly from drawn weights.
    """
    if not probes:
        return ""
    best = max(probes, key=lambda one: one.neighbours_correct)
    share, by_pixels = best.neighbours_correct / data.val, max(one.pixels_correct for one in probes) / data.val
    if share < by_pixels:
        return (
            f"these images are foreign to pretrained features, by which the nearest training image is of the right "
            f"class for {100 * share:.1f} % of the validation images, and for {100 * by_pixels:.1f} % by plain pixels"
        )
    if share < KNOWN / data.classes and data.train >= MANY:
        return (
            f"these images are foreign to pretrained features (the nearest training image is of the right class for "
            f"{100 * share:.1f} %), and {data.train:,} training images are many"
        )
    return ""


def best_first(probes: Sequence[LinearProbe]) -> list[LinearProbe]:
    """The linear probes, those first that are right the most often."""
    return sorted(probes, key=lambda one: (-one.correct, -one.neighbours_correct, one.candidate))


def best_fit(correct: Mapping[str, int], total: int) -> str:
    """The fit under which the most validation images are right; ``crop`` unless that is more than the standard error
    better."""
    best = max(correct, key=lambda fit: (correct[fit], fit == "crop"))
    gain = correct[best] - correct["crop"]
    spread = math.sqrt(sum(correct[fit] * (1 - correct[fit] / total) for fit in (best, "crop")))
    return best if gain > spread else "crop"


def quick_to_use(probes: Sequence[LinearProbe], image_ms: float | None) -> list[LinearProbe]:
    """The linear probes whose features took no longer than an image may take, or the one that comes nearest; those
    whose pace is not known count as quick."""
    if image_ms is None or not probes:
        return list(probes)
    most_s = max(1e-3 * image_ms, min(one.image_s for one in probes))
    return [one for one in probes if one.image_s <= most_s]


def quick_to_profile(
    epochs_s: Sequence[float], train: int, recipe: Recipe, seconds: float, kind: str
) -> Sequence[bool]:
    """For each candidate, by its seconds of an epoch of ``train`` images, whether a profile takes no more than so many
    seconds, or than SHORT_PROFILE_S."""
    images = PROFILE_STEPS[kind] * min(train, recipe.max_batch or train)
    return [images / train * epoch_s <= max(seconds, SHORT_PROFILE_S) for epoch_s in epochs_s]


def num_tuned(epochs_s: Sequence[float], seconds: float) -> int:
    """How many of the candidates, the best first, are fine-tuned in so many seconds; ``epochs_s`` are theirs of an
    epoch."""
    most = min(MOST_TUNED, max(1, math.floor(seconds / TUNED_EVERY_S)), len(epochs_s))
    counts = (count for count in range(most, 0, -1) if LEAST_EPOCHS * max(epochs_s[:count]) <= seconds / count)
    return next(counts, 0)


def likely_batch(backbone: Backbone, px: int, memory_bytes: int, most: int) -> int:
    """A batch of ``most`` images or fewer that seems to fit into a GPU's memory, so that its first probe passes."""
    room_mib = FIT_SHARE * (memory_bytes / 2**20 - PROCESS_MIB)
    fits = int(room_mib / (backbone.image_mib * (px / 128) ** 2)) // GRAIN * GRAIN
    return min(most, max(GRAIN, fits))


def recipe_for(transfer: Recipe, asked: Recipe) -> Recipe:
    """The recipe of fine-tuning. Where the run's own recipe does not mirror images, it keeps them as whole as that."""
    transfer = replace(transfer, fit=asked.fit)
    if asked.flips:
        return transfer
    return replace(transfer, flip=0.0, cutmix=0.0, crop_scale=asked.crop_scale, crop_ratio=asked.crop_ratio)


def epoch_s_at(prospect: Prospect, candidate: Candidate) -> float:
    """The expected seconds of an epoch of fine-tuning at the candidate's size."""
    return prospect.epoch_s * (candidate.train_px / max(one.train_px for one in prospect.candidates)) ** 2
