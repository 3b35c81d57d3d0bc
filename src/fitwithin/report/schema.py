"""The facts of a run's report, as frozen dataclasses that become JSON and come back.

Rendering lives in report/render.py (terminal, Markdown, HTML). report/build.py folds the facts out of a run's store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from fitwithin import files
from fitwithin.errors import RunFolderError
from fitwithin.inference.quality import Assessment
from fitwithin.planning.forecast import Forecast
from fitwithin.planning.stats import Accuracy
from fitwithin.report.search_report import SearchReport

SCHEMA = 2

#: How far a candidate came.
CandidateStatus = Literal["trained", "planned", "rejected", "failed"]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One reading of a trial: mean training loss since the last one, learning rate, seconds since the trial began."""

    step: int
    epoch: float
    elapsed_s: float
    loss: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One validation: at which step and epoch, and what it found."""

    step: int
    epoch: float
    accuracy: Accuracy


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """One candidate from profile to validation. Fields that were never reached are None.

    A search trains a candidate several times: ``predicted_s``, ``actual_s`` and ``allotted_s`` are of all its trials
    together, the rest is of the one that is delivered, else of the last that left a model.

    ``reason`` says why it was rejected or failed, or how its training ended. ``predicted_s`` is for the steps that were
    taken. ``inference_ms`` is what the profile measured for an image at the training size. ``front`` says whether it is
    on the Pareto front (report/candidate_row.py); if not, ``dominated_by`` names one that is. None where it was not
    tried.
    """

    name: str
    model: str
    precision: str
    train_px: int
    status: CandidateStatus
    reason: str
    parameters: int | None = None
    batch: int | None = None
    batch_why: str | None = None
    epochs: float | None = None
    steps: int | None = None
    images_per_s: float | None = None
    dummy_images_per_s: float | None = None
    predicted_s: float | None = None
    predicted_low_s: float | None = None
    predicted_high_s: float | None = None
    actual_s: float | None = None
    allotted_s: float | None = None
    predicted_startup_s: float | None = None
    actual_startup_s: float | None = None
    predicted_training_s: float | None = None
    actual_training_s: float | None = None
    profile_s: float | None = None
    profile_cached: bool = False
    peak_bytes: int | None = None
    inference_ms: float | None = None
    front: bool | None = None
    dominated_by: str | None = None
    validation: Accuracy | None = None
    validations: tuple[Validation, ...] = ()
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A way of using the winner, as in the paper's Table 1. ``test`` is None without a labelled test split.

    ``delivered`` marks the row that is the result of the run.
    """

    method: str
    candidate: str
    train_px: int
    test_px: str
    validation: Accuracy | None
    test: Accuracy | None
    note: str = ""
    delivered: bool = False


@dataclass(frozen=True, kw_only=True)
class ViewRow:
    """One view of the winner: what it reaches on validation data and what it costs per image."""

    name: str
    px: int
    flip: bool
    validation: Accuracy
    ms_per_image: float
    chosen: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What is delivered at work: ``batch`` images a pass, which take ``used_bytes`` with the weights. A picture farther
    than ``novelty`` from the training images is called unlike them; None if that is not known."""

    batch: int
    used_bytes: int
    novelty: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """How what is delivered does on a class: its training images, and the accuracy on each split that has images."""

    name: str
    train: int
    validation: Accuracy | None
    test: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """One line of the receipt: a phase, what it took and the most memory it held."""

    phase: str
    spent_s: float
    gpu_s: float
    peak_bytes: int | None
    entries: int


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One promise and how it was kept: at most ``limit`` was ``spent``, or for a throughput at least that. ``unit`` is
    "bytes", "s", "ms/image" or "images/s"."""

    name: str
    limit: float
    spent: float
    unit: str
    kept: bool
    note: str = ""

    @property
    def used_pct(self) -> float:
        """The percentage of the limit that was used."""
        most, spent = (self.spent, self.limit) if self.unit == "images/s" else (self.limit, self.spent)
        return 100 * spent / most if most else 0.0


@dataclass(frozen=True, kw_only=True)
class PretrainedRow:
    """Pretrained weights that were probed: where they come from, and what a linear head on their features reached on
    validation data at ``px``, fitted to ``images`` training images; ``tuned``: they were fine-tuned, too."""

    name: str
    licence: str
    sha256: str
    source: str
    trained_on: str
    px: int | None
    images: int
    linear: Accuracy | None
    neighbours: Accuracy | None
    tuned: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The proof: limits against what was spent, by phase, on which machine, with which versions, on which data.

    ``weights`` are the pretrained ones that what is delivered starts from, ``member_weights`` those of the ensemble's
    other members. ``data_excluded`` says which images a list left out; the fingerprint is of the others.
    """

    limits: tuple[Limit, ...]
    phases: tuple[PhaseRow, ...]
    balanced: bool
    starts: int
    device: dict[str, Any]
    versions: dict[str, str]
    data_fingerprint: str
    finished: bool
    weights: PretrainedRow | None = None
    member_weights: tuple[PretrainedRow, ...] = ()
    data_excluded: str = ""


@dataclass(frozen=True, kw_only=True)
class PoolRow:
    """A backbone that nobody named: ``expected`` is the share of validation images that it was expected to get right if
    it had all the time, before anything was measured on the data. ``taken``: it was tried; ``reason`` says why."""

    model: str
    px: int
    expected: float
    taken: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything about a run, each choice with its reason.

    ``request`` holds what was asked for (limits in bytes and seconds, recipe, sizes, seed, ...); ``data`` the
    folder's facts: ``path``, ``fingerprint``, ``classes`` (list), ``counts`` {"train", "val", "test"},
    ``split`` (one sentence: where the split came from), ``broken`` ([{"path", "reason"}]), ``notes`` (sentences),
    ``copies`` ({"val", "test"}: images that are copies of training images).
    ``winner`` names a row of ``candidates``; None when nothing was trained (a plan). ``search`` is None without one,
    ``forecast`` (what more time would buy) without a winner. ``pool`` are the backbones that were chosen from, the best
    expected first, and ``pool_why`` says how; none where the user named them. ``assessments`` are of what is delivered
    on validation and test images, and ``temperature_why`` says how its temperature was found. ``pretrained`` are the
    weights that were probed, and ``pretrained_why`` says whether the run starts from some. ``usage`` is that of what is
    delivered, where it was measured; ``balance_why`` says how classes of different size were treated. ``members`` name
    the candidates of the other models whose answers are averaged with the winner's.
    """

    title: str
    created_at: str
    request: dict[str, Any]
    data: dict[str, Any]
    candidates: tuple[CandidateRow, ...]
    winner: str | None
    winner_why: str
    methods: tuple[MethodRow, ...]
    views: tuple[ViewRow, ...]
    ensemble_why: str
    receipt: Receipt
    notes: tuple[str, ...] = ()
    search: SearchReport | None = None
    forecast: Forecast | None = None
    classes: tuple[ClassRow, ...] = ()
    assessments: tuple[Assessment, ...] = ()
    temperature_why: str = ""
    pool: tuple[PoolRow, ...] = ()
    pool_why: str = ""
    pretrained: tuple[PretrainedRow, ...] = ()
    pretrained_why: str = ""
    balance_why: str = ""
    usage: Usage | None = None
    members: tuple[str, ...] = ()
    schema: int = SCHEMA

    def row(self, name: str) -> CandidateRow:
        """The candidate called ``name``; KeyError if there is none."""
        return {row.name: row for row in self.candidates}[name]

    def to_json(self, *, indent: int | None = 1) -> str:
        """The report as JSON text; :func:`from_json` is its inverse. Without ``indent`` it is on one line."""
        return files.to_json(self, indent=indent)


def from_json(text: str) -> Report:
    """The report that :meth:`Report.to_json` wrote.

    Raises:
        RunFolderError: another version of fitwithin wrote it.
        ValueError: the text is not a report.
    """
    value = json.loads(text)
    if value.get("schema") != SCHEMA:
        raise RunFolderError(
            f"the report has schema {value.get('schema')}, this version of fitwithin reads {SCHEMA}; use the version "
            f"that wrote it"
        )
    return files.decode(Report, value)
