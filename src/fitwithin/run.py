"""The whole story of a run: scan and pack the data, profile, plan, train, choose the ensemble, write the report.

Everything that happens is an event in the run's store; a run that was interrupted is carried on by telling the same
story again and skipping what has happened already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fitwithin import assemble, gather, instantiate, page, profiling
from fitwithin import plan as plans
from fitwithin.accountant import Accountant
from fitwithin.assemble import Ensemble, Member, read_logits
from fitwithin.candidate import Candidate
from fitwithin.engine import Engine
from fitwithin.ensemble import View
from fitwithin.errors import TrainingError, UsageError
from fitwithin.jobs import Evaluated, EvaluateJob, Failure, Progress, Setting
from fitwithin.pack import cache_root
from fitwithin.plan import FIXED_MARGIN, WATCHDOG_S, DataFacts, Plan, Turn
from fitwithin.profile import Profile, Rejection
from fitwithin.profile import to_dict as profile_to_dict
from fitwithin.progress import Reporter
from fitwithin.report import Report
from fitwithin.request import Request
from fitwithin.store import Store, latest
from fitwithin.units import format_count, format_duration, format_size

#: Kept for closing the books and drawing the report: its charts take 2 to 4 seconds on two cores.
CLOSING_S = 6.0

#: Under scope ``total``, profiling may take this share of the budget; the first candidate is measured in any case, so
#: that a refusal can say what would do.
PROFILE_SHARE = 0.4
REFUSAL_S = 60.0


class Images(Protocol):
    """What a run needs to know of packed images (:class:`fitwithin.pack.Pack` is one)."""

    folder: Path
    classes: tuple[str, ...]
    fingerprint: str
    paths: tuple[str, ...]
    labels: Any

    def indices(self, split: str) -> Any:
        """Positions of the images of a split."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run works with. ``candidates`` is the grid that was asked for, ``images`` the packed data."""

    request: Request
    folder: Path
    engine: Engine
    store: Store
    accountant: Accountant
    reporter: Reporter
    candidates: Sequence[Candidate]
    images: Images
    workers: int

    @property
    def setting(self) -> Setting:
        """What every job shares."""
        request = self.request
        return Setting(
            device=request.device,
            memory_bytes=request.budget.memory_bytes,
            accounting=request.budget.accounting,
            pack=str(self.images.folder),
            classes=len(self.images.classes),
            recipe=request.recipe,
            view_sizes=request.view_sizes,
            seed=request.seed,
            workers=self.workers,
        )

    @property
    def data(self) -> DataFacts:
        """The sizes of the splits."""
        counts = {split: len(self.images.indices(split)) for split in ("train", "val", "test")}
        return DataFacts(**counts, classes=len(self.images.classes))

    def progress(self, progress: Progress) -> None:
        """Hand a worker's sign of life on."""
        self.reporter.advance(progress.step, progress.total or None, progress.text)


def tell(run: Run, frozen: Plan | None = None) -> Report:
    """Carry a run from where it stands to its report."""
    plan = draw_up(run, frozen)
    train(run, plan)
    members, winner, why = evaluate(run, plan)
    return close(run, plan, members, winner, why)


def draw_up(run: Run, frozen: Plan | None = None) -> Plan:
    """The plan: the stored one, the frozen one, or one drawn up from a profile of every candidate."""
    stored = latest(run.store.events("plan"), "plan")
    if stored is not None:
        return plans.from_json(json.dumps(stored))
    plan = frozen if frozen is not None else _planned(run)
    run.store.append("plan", json.loads(plan.to_json()))
    return plan


def _planned(run: Run) -> Plan:
    known = profile(run)
    budget = run.request.budget
    left_s = budget.limit_s if budget.scope == "candidate" else run.accountant.remaining().usable_s
    return plans.draw_up(
        [found for found in known if isinstance(found, Profile)],
        [found for found in known if isinstance(found, Rejection)],
        available_s=left_s - (0.0 if budget.scope == "candidate" else CLOSING_S),
        limit_s=budget.limit_s,
        scope=budget.scope,
        data=run.data,
        recipe=run.request.recipe,
        view_sizes=run.request.view_sizes,
        request=run.request.to_dict(),
        fingerprint=run.images.fingerprint,
    )


def profile(run: Run) -> list[Profile | Rejection]:
    """The profile phase: every candidate of the grid, from the cache where it is known."""
    budget, events = run.request.budget, run.store.events("profiled", "rejected")
    known: dict[str, Profile | Rejection] = {**gather.profiled(events), **gather.rejected(events)}
    cache = profiling.Cache(cache_root() / "profiles", run.engine.describe(), run.setting, run.images.fingerprint)
    run.reporter.begin("profiling", len(run.candidates))
    for number, candidate in enumerate(run.candidates):
        if candidate.name in known:
            continue
        found: Profile | Rejection | None = cache.get(candidate)
        left_s = budget.limit_s
        if budget.scope == "total":
            share_s = PROFILE_SHARE * budget.limit_s - run.accountant.books().spent_s()
            left_s = share_s if known else max(share_s, REFUSAL_S)
        if found is None and left_s <= 0:
            found = Rejection(candidate=candidate, reason=profiling.OUT_OF_TIME)
        if found is None:
            with run.accountant.entry("profile", candidate.name, gpu=True, reserved_s=left_s) as opened:
                found = profiling.measure(
                    candidate,
                    run.setting,
                    run.engine,
                    n_train=run.data.train,
                    until_at=run.engine.now() + left_s,
                    on_progress=lambda progress, done=number: run.reporter.advance(
                        done, len(run.candidates), progress.text
                    ),
                )
                if isinstance(found, Profile):
                    opened.peak(found.peak_bytes)
                    cache.put(found)
        known[candidate.name] = found
        run.reporter.say(_told(found))
        if isinstance(found, Profile):
            run.store.append("profiled", profile_to_dict(found))
        else:
            run.store.append("rejected", {"candidate": asdict(candidate), "reason": found.reason})
    return [known[candidate.name] for candidate in run.candidates]


def _told(found: Profile | Rejection) -> str:
    if isinstance(found, Rejection):
        return f"  {found.candidate.name}: rejected, {found.reason}"
    origin = "from the cache" if found.cached else f"{len(found.probes)} probes in {format_duration(found.wall_s)}"
    return (
        f"  {found.candidate.name}: batch {found.batch}, {format_count(found.images_per_s)} images/s, "
        f"{format_size(found.peak_bytes)} ({origin})"
    )


def train(run: Run, plan: Plan) -> None:
    """The instantiation phase: every turn of the plan that has not ended yet."""
    trained, failed = gather.outcomes(run.store.events("turn"))
    kept_s = _kept_s(plan, run.request.budget.scope)
    for number, turn in enumerate(plan.turns):
        name = turn.candidate.name
        if name in trained or name in failed:
            continue
        run.reporter.begin(f"training {name} ({number + 1} of {len(plan.turns)})", turn.steps)
        now = run.engine.now()
        ends_at = instantiate.turn_ends_at(turn, run.request.budget, run.accountant, now, kept_s=kept_s)
        with run.accountant.entry("train", name, gpu=True, reserved_s=ends_at - now) as opened:
            outcome = instantiate.train(
                turn,
                run.setting,
                run.engine,
                instantiate.turn_folder(run.folder, turn),
                opened,
                ends_at=ends_at,
                frozen=plan.frozen,
                on_progress=run.progress,
            )
        body: dict[str, Any] = {"name": name, "trained": None, "reason": ""}
        if isinstance(outcome, Failure):
            body["reason"] = outcome.reason
            run.reporter.say(f"  {name}: failed, {outcome.reason}")
        else:
            body["trained"] = asdict(outcome)
            share = "no validation" if outcome.best is None else f"{outcome.best / run.data.val:.1%} on validation data"
            run.reporter.say(f"  {name}: {share} after {outcome.epochs:.1f} epochs ({outcome.ended})")
        run.store.append("turn", body)
        instantiate.clean(instantiate.turn_folder(run.folder, turn))


def _kept_s(plan: Plan, scope: str) -> float:
    """Under scope ``total``, what no turn may touch: evaluating the winner and its twin, and closing."""
    if scope == "candidate":
        return 0.0
    twins = 2 if len({turn.candidate.precision for turn in plan.turns}) > 1 else 1
    return max(turn.evaluation_s for turn in plan.turns) * twins * (1 + FIXED_MARGIN) + CLOSING_S


def evaluate(run: Run, plan: Plan) -> tuple[list[Member], Candidate, str]:
    """Evaluate the winner, and its twin in the other precision, under all views: validation first, then test, once.

    Raises:
        TrainingError: no turn left a model.
    """
    trained, failed = gather.outcomes(run.store.events("turn"))
    if not trained:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise TrainingError(f"no candidate left a model ({reasons}); `fitwithin plan` shows what would fit")
    name, why = assemble.pick(trained)
    turns = {turn.candidate.name: turn for turn in plan.turns}
    winner = turns[name].candidate
    other = assemble.twin(winner, [turns[key].candidate for key in trained])
    members = []
    for candidate in [winner, *([other] if other is not None else [])]:
        members.append(_member(run, turns[candidate.name], trained[candidate.name].best is not None))
    return members, winner, why


def _member(run: Run, turn: Turn, validated: bool) -> Member:
    name, folder = turn.candidate.name, instantiate.turn_folder(run.folder, turn)
    done = next((body for e in run.store.events("evaluated") if (body := e.body)["name"] == name), None)
    if done is None:
        run.reporter.begin(f"evaluating {name}")
        done = {"name": name, "evaluated": asdict(_evaluate(run, turn, folder)), "validated": validated}
        run.store.append("evaluated", done)
    value = done["evaluated"]
    evaluated = Evaluated(**{**value, "done": tuple((split, view) for split, view in value["done"])})
    logits: dict[str, dict[View, Any]] = {}
    for view in run.request.views:
        for split in ("val", "test"):
            if (split, view.name) in evaluated.done:
                logits.setdefault(split, {})[view] = read_logits(folder, split, view)
    return Member(candidate=turn.candidate, evaluated=evaluated, logits=logits)


def _evaluate(run: Run, turn: Turn, folder: Path) -> Evaluated:
    now, budget = run.engine.now(), run.request.budget
    if budget.scope == "candidate":
        books = run.accountant.books()
        name = turn.candidate.name
        charged_s = sum(e.charged_s or 0.0 for e in books.entries if e.key == name and e.phase != "profile")
        left_s = turn.allotted_s - charged_s
    else:
        left_s = run.accountant.remaining().usable_s - CLOSING_S
    with run.accountant.entry("evaluate", turn.candidate.name, gpu=True, reserved_s=left_s) as opened:
        outcome: Any = Failure(kind="deadline", reason="no time was left")
        if left_s > WATCHDOG_S:
            job = EvaluateJob(
                setting=run.setting,
                candidate=turn.candidate,
                batch=turn.batch,
                folder=str(folder),
                views=run.request.views,
                splits=("val", "test") if run.data.test else ("val",),
                until_at=now + left_s - WATCHDOG_S,
            )
            outcome = run.engine.do(job, until_at=now + left_s, on_progress=run.progress)
        opened.peak(outcome.peak_bytes)
    if isinstance(outcome, Failure):
        run.reporter.say(f"  evaluating {turn.candidate.name} failed: {outcome.reason}")
        return Evaluated(done=(), ms_per_image={}, batch=turn.batch, peak_bytes=outcome.peak_bytes or 0)
    assert isinstance(outcome, Evaluated)
    return outcome


def close(run: Run, plan: Plan, members: Sequence[Member], winner: Candidate, why: str) -> Report:
    """Choose the views on validation data, hand the ensemble over, close the books and write the report."""
    labels = {split: np.asarray(run.images.labels[run.images.indices(split)]) for split in ("val", "test")}
    chief = members[0]
    choice = assemble.choose_views(chief, labels, run.request.budget.inference_ms)
    rows = [row for member in reversed(members) for row in assemble.methods(member, labels, run.request.views)]
    rows.append(assemble.handed_over(chief, labels, choice))
    folder = instantiate.turn_folder(Path(), next(t for t in plan.turns if t.candidate == winner))
    batch = chief.evaluated.batch
    assemble.write(Ensemble(candidate=winner.name, folder=str(folder), views=choice.views, batch=batch), run.folder)
    tested = [run.images.paths[int(i)] for i in run.images.indices("test")]
    (run.folder / "test-paths.json").write_text(json.dumps(tested), encoding="utf-8")

    def gathered(finished: bool) -> Report:
        return gather.report(
            run.request,
            plan,
            run.store.events(),
            winner=winner.name,
            winner_why=why,
            methods=rows,
            views=assemble.view_rows(chief, labels, choice),
            ensemble_why=choice.why,
            notes=_notes(run, members),
            finished=finished,
        )

    run.reporter.begin("writing the report")
    with run.accountant.entry("report", reserved_s=CLOSING_S) as opened:
        begun_at = run.engine.now()
        write_report(gathered(False), run.folder)
        opened.charge_ahead(run.engine.now() - begun_at)
    report = gathered(True)
    write_report(report, run.folder)
    run.store.append("finished", {"winner": winner.name})
    return report


def _notes(run: Run, members: Sequence[Member]) -> list[str]:
    notes = []
    expected = len(run.request.views)
    for member in members:
        for split in ("val", "test"):
            there = len(member.logits.get(split, {}))
            if there < expected and (split == "val" or run.data.test):
                notes.append(f"{member.candidate.name}: {there} of {expected} views were evaluated on {split}; time was over")
    if not run.data.test:
        notes.append("There is no test split: no figure here was measured on images that played no part in choosing.")
    return notes


def write_report(report: Report, folder: Path) -> None:
    """report.json, report.md, report.html and receipt.json in ``folder``."""
    texts: dict[str, Callable[[], str]] = {
        "report.json": report.to_json,
        "receipt.json": lambda: json.dumps(asdict(report.receipt), indent=1, allow_nan=False),
        "report.md": lambda: page.markdown(report),
        "report.html": lambda: page.html(report),
    }
    for name, text in texts.items():
        temporary = folder / (name + ".new")
        temporary.write_text(text(), encoding="utf-8")
        temporary.replace(folder / name)


def check_plan(plan: Plan, fingerprint: str) -> None:
    """UsageError unless the plan was drawn up for this data."""
    if plan.fingerprint != fingerprint:
        raise UsageError(
            f"the plan was drawn up for other data (fingerprint {plan.fingerprint[:12]}, this folder has "
            f"{fingerprint[:12]}); draw up a new one with `fitwithin plan`"
        )
    if not plan.turns:
        raise UsageError("the plan trains nothing; draw up a new one with `fitwithin plan`")
