"""Builds a report from a run's events and its ledger; nothing is measured here."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitwithin.budget import Budget
from fitwithin.candidate import Candidate
from fitwithin.events import (
    DataPacked,
    MachineDescribed,
    PoolChosen,
    ProcessStarted,
    history,
    outcomes,
    planned_trials,
    profiled,
)
from fitwithin.files import to_json
from fitwithin.inference.quality import Assessment
from fitwithin.ledger import Ledger
from fitwithin.planning import search_plan
from fitwithin.planning.forecast import Forecast, MeasuredPoint, make_forecast
from fitwithin.planning.halving import Halving
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.planning.pool import Prospect
from fitwithin.report import pretrained
from fitwithin.report.candidate_row import candidate_row, with_pareto
from fitwithin.report.schema import (
    CandidateRow,
    CandidateStatus,
    ClassRow,
    Limit,
    MethodRow,
    PhaseRow,
    PoolRow,
    Receipt,
    Report,
    Usage,
    ViewRow,
)
from fitwithin.report.search_report import SearchReport, build_search_report, measured_points
from fitwithin.request import Request
from fitwithin.store import Store
from fitwithin.version import __version__

#: Seconds that are sums of differences are exact to some 1e-13.
ROUNDING = 1e-12

_VERSIONS = ("fitwithin", "torch", "torchvision", "timm", "numpy", "pillow", "python", "cudnn")


def _candidate_rows(
    plan: Plan, store: Store, ledger: Ledger, n_val: int, search: Halving | None
) -> tuple[CandidateRow, ...]:
    """Every candidate: the planned ones in order, then those that were rejected; the tried ones with their front."""
    known = profiled(store)
    trained, failed = outcomes(store)
    entries = ledger.by_phase().get("train", ())
    by_candidate: dict[Candidate, list[TrialPlan]] = {}
    for trial in planned_trials(plan, store).values():
        by_candidate.setdefault(trial.candidate, []).append(trial)
    why_out = {out.candidate: out.reason for out in search.eliminations()} if search is not None else {}
    delivered = search.best.name if search is not None and search.best is not None else ""
    rows = []
    for candidate, trials in by_candidate.items():
        # The trial that is delivered counts, else the last one that left a model, else the last one.
        last = next((trial for trial in reversed(trials) if trial.name in trained), trials[-1])
        trial = next((trial for trial in trials if trial.name == delivered), last)
        name = trial.name
        status: CandidateStatus = "trained" if name in trained else "failed" if name in failed else "planned"
        row = candidate_row(
            candidate,
            known.get(candidate.name),
            status,
            failed.get(name),
            trial=trial,
            trials=trials,
            results=trained,
            entries=[entry for entry in entries if entry.key in {trial.name for trial in trials}],
            n_val=n_val,
        )
        if candidate in why_out and name in trained:
            row = replace(row, reason=f"{why_out[candidate]} ({row.reason})")
        elif candidate in why_out and status == "planned":  # others entered in its place
            row = replace(row, status="rejected", reason=why_out[candidate])
        rows.append(row)
    for rejection in plan.rejections:
        candidate = rejection.candidate
        if candidate not in by_candidate:  # else it was left out, and tried when those that entered had failed
            rows.append(candidate_row(candidate, known.get(candidate.name), "rejected", rejection.reason))
    return with_pareto(rows)


def _forecast(request: Request, winner: CandidateRow, search: SearchReport | None) -> Forecast:
    """What more time would buy, from the winner's trainings: several in a search, else one."""
    if search is not None:
        return make_forecast(measured_points(search.trials, winner.name, warm_start=request.recipe.warm_start))
    if winner.validation is None or not winner.actual_s:
        return make_forecast([])
    gpu_s = winner.actual_s * request.data_parallel
    return make_forecast([MeasuredPoint(gpu_s=gpu_s, accuracy=winner.validation)])


def _phases(ledger: Ledger) -> tuple[PhaseRow, ...]:
    rows = []
    for phase, entries in ledger.by_phase().items():
        peaks = [entry.peak_bytes for entry in entries if entry.peak_bytes is not None]
        rows.append(
            PhaseRow(
                phase=phase,
                spent_s=sum(entry.weighted(entry.charged_s or 0.0, gpu=False) for entry in entries),
                gpu_s=sum(entry.weighted(entry.charged_s or 0.0, gpu=True) for entry in entries),
                peak_bytes=max(peaks, default=None),
                entries=len(entries),
            )
        )
    return tuple(rows)


def _limits(
    request: Request, ledger: Ledger, plan: Plan, views: Sequence[ViewRow], usage: Usage | None
) -> tuple[Limit, ...]:
    budget = request.budget
    limits = []
    peaks = [entry.peak_bytes for entry in ledger.entries if entry.peak_bytes is not None]
    if peaks:
        counted = "by the driver's count of this process" if budget.accounting == "process" else "allocator only"
        if not request.device.is_cuda:
            counted = "growth of the process's own memory"
        if request.data_parallel > 1:
            counted += f"; the largest of the {request.data_parallel} processes that train at once"
        limits.append(_limit("memory", budget.memory_bytes, max(peaks), "bytes", counted))
    if budget.scope == "candidate":
        names = [trial.candidate.name for trial in plan.trials]
        spent = [(sum(ledger.charged_s(name, phase=p) for p in ("train", "evaluate")), name) for name in names]
        longest_s, longest = max(spent)
        note = f"each candidate's training and evaluation; the longest was {longest}"
        limits.append(_limit("time per candidate", request.limit_s, longest_s, "s", note))
    else:
        if budget.time_s is not None:
            limits.append(_limit("time", budget.time_s, ledger.spent_s(), "s", "wall clock from process start"))
        if budget.gpu_time_s is not None:
            held = request.data_parallel
            note = "device held" if held == 1 else f"devices held, {held} by what is profiled and trained"
            if request.slots > 1:
                note = f"devices held, up to {request.num_gpus} at once"
            limits.append(_limit("device time", budget.gpu_time_s, ledger.spent_s(gpu=True), "s", note))
    return (*limits, *_inference_limits(budget, [view.ms_per_image for view in views if view.chosen], usage))


def _inference_limits(budget: Budget, chosen_ms: Sequence[float], usage: Usage | None) -> Iterator[Limit]:
    """The limits of what is delivered, by the milliseconds of its views."""
    batch = "" if usage is None else f", {usage.batch} images a pass"
    if budget.inference_ms is not None and chosen_ms:
        note = f"sum of the chosen views{batch}"
        yield _limit("inference", budget.inference_ms, sum(chosen_ms), "ms/image", note)
    if budget.throughput_per_s is not None and chosen_ms:
        reached = 1e3 / sum(chosen_ms)
        found = _limit("throughput", budget.throughput_per_s, reached, "images/s", f"the chosen views{batch}")
        yield replace(found, kept=reached >= budget.throughput_per_s * (1 - ROUNDING))
    if budget.inference_bytes is not None and usage is not None:
        note = f"weights and what a pass computes{batch}"
        yield _limit("inference memory", budget.inference_bytes, usage.used_bytes, "bytes", note)


def _limit(name: str, limit: float, spent: float, unit: str, note: str) -> Limit:
    return Limit(name=name, limit=limit, spent=spent, unit=unit, kept=spent <= limit * (1 + ROUNDING), note=note)


def report(
    request: Request,
    plan: Plan,
    store: Store,
    ledger: Ledger,
    *,
    winner: str | None = None,
    winner_why: str = "",
    methods: Sequence[MethodRow] = (),
    views: Sequence[ViewRow] = (),
    ensemble_why: str = "",
    notes: Sequence[str] = (),
    classes: Sequence[ClassRow] = (),
    assessments: Sequence[Assessment] = (),
    temperature_why: str = "",
    balance_why: str = "",
    usage: Usage | None = None,
    members: Sequence[str] = (),
) -> Report:
    """The report of a finished run by its store and its ledger; without a ``winner`` that of a plan."""
    packed = store.latest(DataPacked)
    assert packed is not None, "images are packed before there is a plan"
    data = json.loads(to_json(packed))
    n_val = packed.counts["val"]
    standing = None if plan.search is None else search_plan.replay(plan.search, history(store), n_val)
    rows = _candidate_rows(plan, store, ledger, n_val, standing)
    search = None
    if plan.search is not None and standing is not None:
        search = build_search_report(plan.search, standing, ledger)
    won = next((row for row in rows if row.name == winner), None)
    probed = pretrained.rows(store, n_val)
    described, chosen = store.latest(MachineDescribed), store.latest(PoolChosen)
    machine = described.facts if described is not None else {}
    receipt = Receipt(
        limits=() if winner is None else _limits(request, ledger, plan, views, usage),
        phases=_phases(ledger),
        balanced=ledger.balanced,
        starts=len(store.read(ProcessStarted)),
        device={key: value for key, value in machine.items() if key not in _VERSIONS},
        versions={key: str(value) for key, value in machine.items() if key in _VERSIONS},
        data_fingerprint=packed.fingerprint,
        data_excluded=packed.excluded,
        finished=winner is not None,
        weights=pretrained.of(probed, winner),
        member_weights=tuple(row for name in members if (row := pretrained.of(probed, name)) is not None),
    )
    return Report(
        title=f"fitwithin {'run' if winner else 'plan'}: {Path(request.data).name or request.data}",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        request={**_flat(request), "fitwithin": __version__},
        data=data,
        candidates=rows,
        winner=winner,
        winner_why=winner_why,
        methods=tuple(methods),
        views=tuple(views),
        ensemble_why=ensemble_why,
        receipt=receipt,
        notes=tuple(notes),
        search=search,
        forecast=_forecast(request, won, search) if won is not None and won.steps else None,
        classes=tuple(classes),
        assessments=tuple(assessments),
        temperature_why=temperature_why,
        balance_why=balance_why,
        pool=tuple(_pool_row(prospect) for prospect in chosen.pool.prospects) if chosen else (),
        members=tuple(members),
        pool_why=chosen.pool.why if chosen else "",
        pretrained=probed,
        pretrained_why=pretrained.why(store),
        usage=usage,
    )


def _pool_row(prospect: Prospect) -> PoolRow:
    names = ("model", "px", "taken", "reason")
    return PoolRow(expected=prospect.share, **{name: getattr(prospect, name) for name in names})


def _flat(request: Request) -> dict[str, Any]:
    """The request for the report: the budget's fields beside the others, the recipe's under its name."""
    value = json.loads(to_json(request))
    budget, recipe = value.pop("budget"), value.pop("recipe")
    return {**value, "device": str(request.device), **budget, "recipe": recipe.pop("name"), "recipe_values": recipe}
