"""The events of a run, one class for each kind; those of the ledger are in ledger.py.

An interrupted run goes on from these: what they say has happened is not done again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fitwithin.candidate import Candidate
from fitwithin.data.dataset import Broken
from fitwithin.engine.results import EvalResult, LinearProbe, TrainResult
from fitwithin.ledger import EntryAbandoned, EntryOpened, EntrySettled
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.planning.pool import Pool
from fitwithin.planning.search import Trial
from fitwithin.planning.search_plan import AskEvent, TellEvent
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.request import Request
from fitwithin.store import Event, Store
from fitwithin.weights.find import Refused, Weights


@dataclass(frozen=True, kw_only=True)
class RunRequested(Event):
    """What was asked for: the first event of a run."""

    kind: ClassVar[str] = "request"
    request: Request


@dataclass(frozen=True, kw_only=True)
class PlanGiven(Event):
    """The plan that the run was given, to be carried out step by step as it stands."""

    kind: ClassVar[str] = "fixed_plan"
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class ProcessStarted(Event):
    """A process began to work on the run. ``boot`` names the boot of its machine; empty where that is not known."""

    kind: ClassVar[str] = "start"
    pid: int
    boot: str = ""


@dataclass(frozen=True, kw_only=True)
class DataPacked(Event):
    """The images of the data at ``path`` were read and packed."""

    kind: ClassVar[str] = "data"
    path: str
    fingerprint: str
    #: Their names, in the order of the labels.
    classes: tuple[str, ...]
    #: The images of each split, without the broken ones.
    counts: dict[str, int]
    #: Where the split comes from, in a sentence.
    split: str = ""
    #: The files that cannot be decoded.
    broken: tuple[Broken, ...] = ()
    #: How many files were left out.
    ignored: int = 0
    #: What a user should know of the images.
    notes: tuple[str, ...] = ()
    #: How many images of val and test are copies of training images.
    copies: dict[str, int] = field(default_factory=dict)
    #: What a list left out, in a sentence.
    excluded: str = ""
    #: How many images there are, where time allowed to decode some of them only; else 0.
    partial: int = 0


@dataclass(frozen=True, kw_only=True)
class MachineDescribed(Event):
    """Device, driver and versions, as the engine describes where its workers run."""

    kind: ClassVar[str] = "machine"
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PoolChosen(Event):
    """The backbones or sizes that no one named were chosen."""

    kind: ClassVar[str] = "pool"
    pool: Pool
    #: The largest size in pixels that could have been chosen: images are stored for it.
    most_px: int


@dataclass(frozen=True, kw_only=True)
class WeightsFound(Event):
    """The pretrained weights on this machine: those that may be used, and those that are refused."""

    kind: ClassVar[str] = "weights"
    weights: tuple[Weights, ...]
    refused: tuple[Refused, ...]
    #: Whether these are of the models that the user named.
    named: bool


@dataclass(frozen=True, kw_only=True)
class LinearProbed(Event):
    """A linear head was fitted to the features of pretrained weights of that name, on as many training images as were
    ``wanted`` or fewer: its trial and result, or the ``reason`` why there are none."""

    kind: ClassVar[str] = "linear_probe"
    name: str
    wanted: int
    trial: TrialPlan | None = None
    probe: LinearProbe | None = None
    reason: str = ""
    #: What an input showed of a picture (recipe.FITS).
    fit: str = "crop"


@dataclass(frozen=True, kw_only=True)
class StartChosen(Event):
    """Whether the run starts from pretrained weights, and why; ``tuned`` are fine-tuned, the best first."""

    kind: ClassVar[str] = "start_from"
    pretrained: bool
    why: str
    tuned: tuple[Candidate, ...] = ()
    #: The training sizes in pixels of these; without any that of the best linear head.
    sizes: tuple[int, ...] = ()
    #: What inputs show of a picture (recipe.FITS).
    fit: str = "crop"


@dataclass(frozen=True, kw_only=True)
class CandidateProfiled(Event):
    """A candidate's largest batch and pace are known."""

    kind: ClassVar[str] = "profiled"
    profile: Profile


@dataclass(frozen=True, kw_only=True)
class CandidateRejected(Event):
    """A candidate will not be trained."""

    kind: ClassVar[str] = "rejected"
    rejection: Rejection


@dataclass(frozen=True, kw_only=True)
class PlanMade(Event):
    """The plan that is carried out."""

    kind: ClassVar[str] = "plan"
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class TrialAsked(Event):
    """A search was asked what to try, and answered ``trial``."""

    kind: ClassVar[str] = "trial"
    #: GPU-seconds that no trial had been promised.
    left_s: float
    #: Seconds by the clock until all must be over; None without such a limit.
    time_left_s: float | None = None
    trial: Trial
    #: The training that its seconds pay for; None where they pay for none.
    plan: TrialPlan | None


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    """A training ended: ``trained``, or None and the ``reason``."""

    kind: ClassVar[str] = "trial_ended"
    name: str
    trained: TrainResult | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelEvaluated(Event):
    """The model of the training of that name was evaluated; ``validated`` if a validation had chosen its weights."""

    kind: ClassVar[str] = "evaluated"
    name: str
    result: EvalResult
    validated: bool


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run handed over the model of the candidate ``winner``."""

    kind: ClassVar[str] = "finished"
    winner: str


#: All that a run's store holds, beside heartbeats.
EVENTS: tuple[type[Event], ...] = (
    RunRequested,
    PlanGiven,
    ProcessStarted,
    DataPacked,
    MachineDescribed,
    WeightsFound,
    LinearProbed,
    StartChosen,
    PoolChosen,
    CandidateProfiled,
    CandidateRejected,
    PlanMade,
    TrialAsked,
    TrialEnded,
    ModelEvaluated,
    RunFinished,
    EntryOpened,
    EntrySettled,
    EntryAbandoned,
)


def read_all(store: Store) -> list[Event]:
    """Every event in order; RunFolderError if one is damaged, or of a kind that is not known here."""
    return [record.event(*EVENTS) for record in store.all()]


def profiled(store: Store) -> dict[str, Profile]:
    """The profiles that the store holds, by candidate name."""
    return {event.profile.candidate.name: event.profile for event in store.read(CandidateProfiled)}


def rejected(store: Store) -> dict[str, Rejection]:
    """The rejections of the profile phase, by candidate name."""
    return {event.rejection.candidate.name: event.rejection for event in store.read(CandidateRejected)}


def history(store: Store) -> list[AskEvent | TellEvent]:
    """The trials that a search proposed and their results, in the order of events."""
    found: list[AskEvent | TellEvent] = []
    both: list[TrialAsked | TrialEnded] = store.read(TrialAsked, TrialEnded)
    for event in both:
        if isinstance(event, TrialEnded):
            found.append(TellEvent(name=event.name, outcome=event.trained or event.reason))
        else:
            time_left_s = math.inf if event.time_left_s is None else event.time_left_s
            found.append(AskEvent(left_s=event.left_s, trial=event.trial, time_left_s=time_left_s))
    return found


def planned_trials(plan: Plan, store: Store) -> dict[str, TrialPlan]:
    """All planned trials by name, in order: linear probes, the plan's, and those of its search."""
    probed = [event.trial for event in store.read(LinearProbed) if event.trial is not None]
    later = [event.plan for event in store.read(TrialAsked) if event.plan is not None]
    return {trial.name: trial for trial in (*probed, *plan.trials, *later)}


def outcomes(store: Store) -> tuple[dict[str, TrainResult], dict[str, str]]:
    """How the trainings ended: trained by name, and the reasons of those that failed."""
    ended = store.read(TrialEnded)
    trained = {
        event.trial.name: event.probe.as_training()
        for event in store.read(LinearProbed)
        if event.trial is not None and event.probe is not None
    }
    trained |= {event.name: event.trained for event in ended if event.trained is not None}
    return trained, {event.name: event.reason for event in ended if event.trained is None}
