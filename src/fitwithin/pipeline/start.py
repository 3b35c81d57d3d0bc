"""The start of a run: the books opened, the images packed, the workers ready, and what closing it will take."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path

from fitwithin.accountant import Accountant, left_to
from fitwithin.budget import Budget
from fitwithin.candidate import grid, match
from fitwithin.data import dataset, pack_builder
from fitwithin.data.dataset import without
from fitwithin.engine.base import Engine
from fitwithin.events import DataPacked, MachineDescribed, PlanMade, ProcessStarted, RunRequested, RunStarted
from fitwithin.machine import boot_id, cores
from fitwithin.pipeline.context import RunContext
from fitwithin.pipeline.progress import Reporter
from fitwithin.pipeline.rehearsal import BESIDE_S, rehearse
from fitwithin.report import build, render
from fitwithin.report.render import write_report
from fitwithin.report.schema import from_json
from fitwithin.request import Request
from fitwithin.store import Store
from fitwithin.training import model_names

#: A run that is resumed with less than so many times what starting and closing took before does without charts: what
#: draws them took 2 of the 6 s that a start takes one core, and a training of 1 s more than doubled without.
CHARTS_FROM = 2

#: Loader processes: beyond these a batch is made faster than any GPU takes it (20,000 images/s at 160 px).
MOST_WORKERS = 12


def open_run(
    request: Request,
    folder: Path,
    engine: Engine,
    store: Store,
    reporter: Reporter,
    started_at: float,
    dataset: dataset.Dataset,
) -> RunContext:
    """Everything a run works with.

    The server imports meanwhile, so that it is waited for in the end; before images are decoded, which may take
    minutes on all cores, it must have started. A run that is resumed with less time than starting and closing took
    before will begin nothing more: it hands over what there is. With less than twice that it does without charts.
    """
    same = _same_clock(store)
    store.append(ProcessStarted(pid=os.getpid(), boot=boot_id()))
    accountant = Accountant(store, request.budget, engine.now, started_at=started_at, same_clock=same)

    def decoding() -> None:
        reporter.begin("starting workers")
        engine.prepare(accountant.ends_at())
        reporter.begin("packing images", len(dataset.samples))

    with accountant.entry("start-up"):
        names = match(request.models, model_names.known_models(engine.prepare))
        candidates = grid(names, request.precisions, request.sizes, request.layouts)
    found_at = engine.now()
    with accountant.entry("data"):
        reporter.begin("checking images")
        images = pack_builder.build(
            dataset, request.pack_side, on_progress=reporter.advance, strict=request.strict, before_decoding=decoding
        )
        whole = without(dataset, images.broken)
        store.append(
            DataPacked(
                path=request.data,
                fingerprint=dataset.fingerprint,
                classes=dataset.classes,
                counts=whole.counts(),
                split=dataset.split_why,
                broken=tuple(images.broken),
                ignored=dataset.ignored,
            )
        )
    data_s = engine.now() - found_at
    left_s = accountant.ends_at() - engine.now()
    hurries, charts = left_s < _once_s(store), left_s >= CHARTS_FROM * _once_s(store)
    closing_s, drawing_s = (BESIDE_S if hurries else 0.0), (0.0 if charts else None)
    with accountant.entry("start-up"):
        if not hurries:
            reporter.begin("starting workers")
            if request.budget.scope == "total":
                closing_s, drawing_s = rehearse(candidates, request, charts=charts)
            store.append(MachineDescribed(facts=engine.describe()))
            engine.prepare(accountant.ends_at() - closing_s)
            store.append(RunStarted(startup_s=engine.now() - started_at - data_s, closing_s=closing_s))
    machine = store.latest(MachineDescribed)
    node_cores = cores() if machine is None else machine.facts.get("cores", cores())
    # What a cluster's node says of its cores is of those that one job may count on.
    jobs_per_host = request.data_parallel if request.engine == "ray" else request.held
    counts = ", ".join(f"{n:,} {split}" for split, n in whole.counts().items())
    reporter.say(f"{request.data}: {len(dataset.classes)} classes, {counts} images; {len(images.broken)} broken")
    return RunContext(
        request=request,
        folder=folder,
        engine=engine,
        store=store,
        accountant=accountant,
        reporter=reporter,
        candidates=candidates,
        images=images,
        workers=max(1, min(MOST_WORKERS, (node_cores - 1) // jobs_per_host)),
        closing_s=closing_s,
        drawing_s=drawing_s,
        hurried=hurries,
    )


def hurried(store: Store, budget: Budget, started_at: float) -> bool:
    """Whether a run whose process died has, for one that ``started_at`` then, less time than starting and closing took
    before: for what there is to hand over no workers are needed."""
    if budget.scope == "candidate":
        return False
    left = left_to(store, budget, time.monotonic(), started_at=started_at, same_clock=_same_clock(store))
    return left.usable_s < _once_s(store)


def set_right(folder: Path, store: Store, started_at: float) -> None:
    """Close the books of a run whose process died after it had handed over, over its charts, and draw up its receipt
    by them; nothing is changed where it is by them already."""
    asked, made = store.latest(RunRequested), store.latest(PlanMade)
    assert asked is not None
    assert made is not None
    request, same = asked.request, _same_clock(store)
    accountant = Accountant(store, request.budget, time.monotonic, started_at=started_at, same_clock=same)
    ledger = accountant.ledger()
    report = from_json((folder / "report.json").read_text(encoding="utf-8"))
    if math.isclose(ledger.spent_s(), math.fsum(phase.spent_s for phase in report.receipt.phases)):
        return
    receipt = build.receipt(request, made.plan, store, ledger, views=report.views, finished=True)
    write_report(replace(report, receipt=receipt), folder, render.NO_DRAWINGS)


def _same_clock(store: Store) -> bool:
    """Whether the process before was one of this boot: all of them have one clock."""
    boot, before = boot_id(), store.latest(ProcessStarted)
    return bool(boot) and before is not None and before.boot == boot


def _once_s(store: Store) -> float:
    """What starting and closing took before; less than anything where there was no start."""
    once = store.latest(RunStarted)
    return -math.inf if once is None else once.startup_s + once.closing_s
