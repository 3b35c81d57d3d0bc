"""The ensemble: views (size x flip) of the winner, and of other members, and which of them to average.

Shape suffixes: N images, K classes, V views.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fitwithin.candidate import View
from fitwithin.errors import RunFolderError
from fitwithin.files import read_json, to_json, write_text_atomic
from fitwithin.inference import calibration
from fitwithin.inference.calibration import adjusted, fit_temperature, log_likelihoods, tempered

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats


#: The folder of a run's model, what says there how it is used, and where other members are.
MODEL, ENSEMBLE, MEMBERS = "model", "ensemble.json", "members"

#: Views are compared on images of so many probabilities at the most, those of other members on fewer, since there are
#: more comparisons: both take less than half a second.
MOST_COMPARED, MOST_WITH_OTHERS = 300_000, 100_000

#: A gain in log-likelihood that is rounding.
NO_GAIN = 1e-6

#: Views are taken up to so many times beyond those of the winner where there are other members.
MOST_ADDED = 8


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How a model is used: the views to average, the temperature of their mean probabilities, and the images in a
    forward pass.

    A view that occurs several times counts as often. ``candidate`` is the winner's name, ``trial`` the folder within
    the run where it was trained, ``members`` the folders of the models that look beside it, from view.member 1 on. A
    picture that is farther than ``novelty`` from the training images is unlike all of them; None if that is not known.
    Probabilities are multiplied by ``class_weights``, if there are any, before the temperature.
    """

    candidate: str
    trial: str
    views: tuple[View, ...]
    batch: int
    temperature: float = 1.0
    novelty: float | None = None
    class_weights: tuple[float, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def joined(self) -> tuple[int, ...]:
        """The members that look, in the numbers of their views; the winner first."""
        return tuple(sorted({0, *(view.member for view in self.views)}))

    def trial_of(self, member: int) -> str:
        """The folder within the run where a member was trained."""
        return self.members[member - 1] if member else self.trial

    def folder_of(self, member: int, folder: Path) -> Path:
        """The folder of a member in the ``folder`` of the model."""
        return folder / MEMBERS / str(member) if member else folder

    def probabilities(self, logits: Mapping[View, Floats]) -> Floats:
        """The probabilities [N, K] by the logits of the views."""
        return tempered(adjusted(average(logits, self.views), self.class_weights), self.temperature)


def model_folder(folder: Path) -> Path:
    """The folder of the model: that of a run's, or the ``folder`` itself."""
    return folder / MODEL if (folder / MODEL / ENSEMBLE).is_file() else folder


def write_ensemble(ensemble: Ensemble, folder: Path) -> None:
    """Keep the ensemble in the folder of its model."""
    write_text_atomic(folder / ENSEMBLE, to_json(ensemble, indent=1))


def read_ensemble(folder: Path) -> Ensemble:
    """The ensemble of the model in a folder, a run's or its own; RunFolderError if there is none (yet)."""
    ensemble = read_json(Ensemble, model_folder(folder) / ENSEMBLE)
    if ensemble is None:
        hint = f"; `fitwithin resume {folder}` finishes the run" if (folder / "run.db").is_file() else ""
        raise RunFolderError(f"{folder} holds no finished model (no {MODEL}/{ENSEMBLE}){hint}")
    return ensemble


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The views to average, in order of choosing, and why each was taken or left; the weights of classes."""

    views: tuple[View, ...]
    why: str
    reasons: dict[View, str]
    class_weights: tuple[float, ...] = ()
    balance_why: str = ""

    def probabilities(self, logits: Mapping[View, Floats]) -> Floats:
        """The probabilities [N, K] by the logits of the views, before any temperature."""
        return adjusted(average(logits, self.views), self.class_weights)


def softmax(logits_NK: Floats) -> Floats:
    """Probabilities of logits, row by row."""
    return np.asarray(calibration.softmax(logits_NK), dtype=np.float32)


def average(logits: Mapping[View, Floats], views: Sequence[View]) -> Floats:
    """Mean probability over the views (the paper's average of outputs), shape [N, K]."""
    return _mean({view: softmax(logits[view]) for view in views}, views)


def _mean(probabilities: Mapping[View, Floats], views: Sequence[View]) -> Floats:
    return np.asarray(np.mean([probabilities[view] for view in sorted(views)], axis=0), dtype=np.float32)


def correct(probabilities_NK: Floats, labels_N: npt.NDArray[np.int64]) -> int:
    """How many rows have their largest entry at the label."""
    return int((probabilities_NK.argmax(axis=1) == labels_N).sum())


def choose(
    logits: Mapping[View, Floats],
    labels_N: npt.NDArray[np.int64],
    ms_per_image: Mapping[View, float],
    limit_ms: float | None,
) -> Choice:
    """The views to average, chosen on validation data: ``labels_N`` must never be test labels.

    Sets of views are compared by the log-likelihood of the right classes, each at the temperature that is best for it:
    an average is less sure of itself than its views, which a temperature mends.

    Without a limit: all views (the paper's ensemble), less those that harm it. A view is left out if the gain is beyond
    one standard error of the paired difference. (Starting from one view, and adding what gains, is worse on few images:
    docs/log.md.) With a limit in milliseconds per image: the best affordable single view, then, while one fits and
    helps, the one with the largest gain per millisecond. The cost of a set is the sum of its views: each is one forward
    pass. What other members add is decided after that (:func:`_with_others`).
    """
    step = -(-labels_N.size * next(iter(logits.values())).shape[1] // MOST_COMPARED)
    labels_N = labels_N[::step]
    found = {view: softmax(rows[::step]) for view, rows in logits.items()}  # once: each is averaged again and again
    own = {view: rows for view, rows in found.items() if not view.member}
    choice = _without_harm(own, labels_N) if limit_ms is None else _greedily(own, labels_N, ms_per_image, limit_ms)
    return choice if len(own) == len(found) else _with_others(choice, found, labels_N, ms_per_image, limit_ms)


def _with_others(
    choice: Choice,
    probabilities: Mapping[View, Floats],
    labels_N: npt.NDArray[np.int64],
    ms_per_image: Mapping[View, float],
    limit_ms: float | None,
) -> Choice:
    """The choice with views of other members, where these help.

    On every second image views are added one by one, each time the one that helps the most; one may be added again
    (Caruana et al., ICML 2004). The other images, which had no part in that, decide whether all of it is kept: if the
    gain there is beyond one standard error of the paired difference.
    """
    added_on, kept_on = slice(0, None, 2), slice(1, None, 2)

    def likelihoods(views: Sequence[View], half: slice) -> npt.NDArray[np.float64]:
        return _likelihoods({view: probabilities[view][half] for view in set(views)}, views, labels_N[half])

    def within(views: Iterable[View]) -> bool:
        return limit_ms is None or math.fsum(ms_per_image[view] for view in set(views)) <= limit_ms

    step = -(-labels_N.size * next(iter(probabilities.values())).shape[1] // MOST_WITH_OTHERS)
    labels_N, probabilities = labels_N[::step], {view: rows[::step] for view, rows in probabilities.items()}
    others = sorted(view for view in probabilities if view.member)
    views, best = list(choice.views), float(likelihoods(choice.views, added_on).mean())
    for _ in range(MOST_ADDED):
        offers = [[*views, view] for view in (*dict.fromkeys(choice.views), *others) if within([*views, view])]
        score = [float(likelihoods(offer, added_on).mean()) for offer in offers]
        if not score or max(score) - best <= NO_GAIN:
            break
        best, views = max(zip(score, offers, strict=True), key=lambda pair: pair[0])
    gain_N = likelihoods(views, kept_on) - likelihoods(choice.views, kept_on)
    gain, error = float(gain_N.mean()), float(gain_N.std()) / math.sqrt(max(1, len(gain_N)))
    joined = {view.member for view in views if view.member}
    said = (
        f"the log-likelihood of images that had no part in choosing changes by {gain:+.2g} (standard error {error:.1g})"
    )
    if not joined or gain <= max(error, NO_GAIN):
        tried = f"other models are left out: {said}" if joined else "other models add nothing"
        return replace(choice, reasons={**choice.reasons, **dict.fromkeys(others, tried)})
    counts = Counter(views)
    reasons = {view: f"a member: counts {counts[view]} of {len(views)}" for view in others if counts[view]}
    reasons |= {view: "adds nothing to the other members" for view in others if not counts[view]}
    models = f"{len(joined)} other model{'s' * (len(joined) > 1)}"
    why = f"{choice.why}; and {models}: {said}"
    return replace(choice, views=tuple(views), why=why, reasons={**choice.reasons, **reasons})


def _likelihoods(
    probabilities: Mapping[View, Floats], views: Sequence[View], labels_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The log-likelihood of each image's class by the views' average at its best temperature."""
    mean_NK = _mean(probabilities, views)
    return log_likelihoods(tempered(mean_NK, fit_temperature(mean_NK, labels_N)), labels_N)


def _without_harm(probabilities: Mapping[View, Floats], labels_N: npt.NDArray[np.int64]) -> Choice:
    chosen = sorted(probabilities)
    reasons = dict.fromkeys(chosen, "part of the ensemble")
    while len(chosen) > 1:
        whole_N = _likelihoods(probabilities, chosen, labels_N)
        trials = []
        for view in chosen:
            gain_N = _likelihoods(probabilities, [other for other in chosen if other != view], labels_N) - whole_N
            gain = float(gain_N.mean())
            trials.append((gain - float(gain_N.std()) / math.sqrt(len(gain_N)), gain, view))
        beyond, gain, view = max(trials)
        if beyond <= NO_GAIN:
            break
        chosen.remove(view)
        reasons[view] = f"left out: the log-likelihood on validation data is {gain:.2g} larger without it"
    count = len(probabilities)
    why = f"no inference limit: the average of all {count} views" if count > 1 else "the only view"
    if len(chosen) < count:
        number = f"the average of the {len(chosen)}" if len(chosen) > 1 else "the one"
        why = f"no inference limit: {number} of {count} views that {'do' if len(chosen) > 1 else 'does'} not harm it"
    return Choice(views=tuple(chosen), why=why, reasons=reasons)


def _greedily(
    probabilities: Mapping[View, Floats],
    labels_N: npt.NDArray[np.int64],
    ms_per_image: Mapping[View, float],
    limit_ms: float,
) -> Choice:
    reasons: dict[View, str] = {}
    chosen: list[View] = []
    best, left_ms = -math.inf, limit_ms
    while affordable := [view for view in probabilities if view not in chosen and ms_per_image[view] <= left_ms]:
        score = {view: float(_likelihoods(probabilities, [*chosen, view], labels_N).mean()) for view in affordable}
        worth = {view: (value - best) / ms_per_image[view] if chosen else value for view, value in score.items()}
        view = max(affordable, key=lambda view: (worth[view], -ms_per_image[view]))
        if chosen and score[view] - best <= NO_GAIN:
            break
        said = f"adds {score[view] - best:.2g} to the log-likelihood" if chosen else "the best one alone"
        reasons[view] = f"{said}, for {ms_per_image[view]:.3g} ms"
        chosen.append(view)
        best, left_ms = score[view], left_ms - ms_per_image[view]
    if not chosen:  # nothing fits: the receipt will say that the limit was not kept
        view = min(ms_per_image, key=lambda view: (ms_per_image[view], view))
        why = f"the cheapest view takes {ms_per_image[view]:.3g} ms per image, more than the {limit_ms:.3g} ms allowed"
        return Choice(views=(view,), why=why, reasons={view: why})
    for view in (view for view in probabilities if view not in chosen):
        cost = ms_per_image[view]
        fits = cost <= left_ms
        reasons[view] = "no gain on validation data" if fits else f"needs {cost:.3g} ms, {left_ms:.3g} ms are left"
    spent = limit_ms - left_ms
    why = f"{len(chosen)} of {len(probabilities)} views fit and help: {spent:.3g} of {limit_ms:.3g} ms per image"
    return Choice(views=tuple(chosen), why=why, reasons=reasons)
