"""The library's door: run, resume, plan and load, and what a finished run can do."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from fitwithin import events, files
from fitwithin import request as requests
from fitwithin.budget import Budget
from fitwithin.candidate import match
from fitwithin.data import dataset
from fitwithin.data import image_folder as folders
from fitwithin.engine import launch
from fitwithin.engine.base import Engine
from fitwithin.engine.connect import Site
from fitwithin.engine.spent import Spent
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.events import DataPacked, MachineDescribed, PlanGiven, PlanMade, RunFinished, RunRequested
from fitwithin.pipeline import profile_phase, start
from fitwithin.pipeline import run as flow
from fitwithin.pipeline.context import RunContext
from fitwithin.pipeline.progress import Reporter, Silent
from fitwithin.pipeline.result import Result, load
from fitwithin.planning import plan as plans
from fitwithin.planning.plan import Plan
from fitwithin.profiling import cache
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.report import build, svg
from fitwithin.report.schema import Report
from fitwithin.request import Limits, Request
from fitwithin.store import MemoryStore, SqliteStore
from fitwithin.training import model_names

#: Profiling alone has no time budget; a request must have one.
PROFILE_TIME = "24h"


def run(
    data: str | Path,
    *,
    out: str | Path | None = None,
    plan: str | Path | None = None,
    reporter: Reporter | None = None,
    started_at: float | None = None,
    server: launch.Server | None = None,
    device: str = "auto",
    **limits: Unpack[Limits],
) -> Result:
    """Train the best classifier for a folder of images within the limits, and report on it.

    Args:
        data: ``DATA/<class>/*`` or ``DATA/{train,val,test}/<class>/*``.
        out: the run's folder, which must not exist or be empty; default ``runs/<data>-<time>``.
        plan: a plan that ``fitwithin plan`` wrote, to be carried out step by step as it stands.
        reporter: told of progress; silent by default.
        started_at: the monotonic instant from which time counts; default now.
        server: a worker server that was launched before; the run ends it. Default: one that is launched now.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        **limits: what may be spent and tried, as :class:`fitwithin.request.Limits` lists it.

    Raises:
        UsageError: the request, the data or the limits do not work out; nothing was written.
        TrainingError: nothing that was trained left a model.
    """
    started_at = time.monotonic() if started_at is None else started_at
    told = reporter or Silent()
    with launch.launched(server) as server:  # before anything else: in the end all wait for its imports
        frozen = _frozen(plan, limits) if plan is not None else None
        planned = requests.placed(frozen.request, limits) if frozen is not None else None
        with _site(planned, limits, server) as site:
            if planned is not None:
                where = site.device(device, planned.data_parallel, planned.gpus)
                request = replace(planned, data=str(data), device=where)
                request = replace(request, budget=_budget(planned, limits))
            else:
                request = _parsed(site, data, device, limits)
            folder = Path(out) if out is not None else files.default_folder(Path(data))
            files.check_free(folder)
            with site.open(request, folder) as engine:
                report = _begin(request, folder, engine, told, started_at, frozen)
    return Result(folder=folder, report=report)


def _begin(
    request: Request, folder: Path, engine: Engine, reporter: Reporter, started_at: float, frozen: Plan | None
) -> Report:
    """A run in a folder of its own, which is left as it was when nothing could be trained."""
    svg.preload()
    dataset = _scan(request, reporter)
    if frozen is not None:
        flow.check_plan(frozen, dataset.fingerprint)
    match(request.models, model_names.known_models(engine.prepare))
    reporter.say(f"the run's folder is {folder}")
    made = files.make_folder(folder)
    store = SqliteStore(folder)
    try:
        store.append(RunRequested(request=request))
        if frozen is not None:
            store.append(PlanGiven(plan=frozen))
        return _tell(start.open_run(request, folder, engine, store, reporter, started_at, dataset))
    except UsageError:
        planned = store.latest(PlanMade) is not None
        store.close()
        if not planned:  # nothing was trained: nothing is left behind
            files.unmake(folder, made)
        raise
    finally:
        store.close()


def resume(
    folder: str | Path,
    *,
    engine: str | None = None,
    ray_address: str | None = None,
    reporter: Reporter | None = None,
    started_at: float | None = None,
) -> Result:
    """Carry an interrupted run on to its end within what is left of its budget.

    A run that had ended already is returned as it is. With ``engine`` or ``ray_address`` it goes on elsewhere. Where
    nothing is left of the budget that workers could be started for, none are.

    Raises:
        RunFolderError: the folder holds no run, another process is working on it, or an event of it cannot be read.
        UsageError: the data are not what they were.
    """
    started_at = time.monotonic() if started_at is None else started_at
    told = reporter or Silent()
    path = Path(folder)
    if not (path / "run.db").is_file():
        raise RunFolderError(f"{path} holds no run (no run.db); start one with `fitwithin run`")
    with SqliteStore(path) as store:
        events.read_all(store)  # what cannot be read is named before anything is spent
        if store.latest(RunFinished) is not None:
            start.set_right(path, store, started_at)
            return load(path)
        stored = store.latest(RunRequested)
        if stored is None:
            raise RunFolderError(f"{path} holds a run that never began; remove it and start again")
        elsewhere: Limits = {}
        if engine is not None:
            elsewhere["engine"] = engine
        if ray_address is not None:
            elsewhere["ray_address"] = ray_address
        request = requests.placed(stored.request, elsewhere)
        with ExitStack() as open_things:
            machine = store.latest(MachineDescribed)
            carrier: Engine = Spent(machine.facts if machine is not None else {})
            if not start.hurried(store, request.budget, started_at):
                server = open_things.enter_context(launch.launched())
                site = open_things.enter_context(_site(request, {}, server))
                carrier = open_things.enter_context(site.open(request, path))
            dataset = _scan(request, told)
            known = store.latest(DataPacked)
            if known is not None and known.fingerprint != dataset.fingerprint:
                raise UsageError(f"the images in {request.data} have changed since this run began; start a new run")
            report = _tell(start.open_run(request, path, carrier, store, told, started_at, dataset))
    return Result(folder=path, report=report)


def plan(
    data: str | Path,
    *,
    reporter: Reporter | None = None,
    started_at: float | None = None,
    server: launch.Server | None = None,
    device: str = "auto",
    **limits: Unpack[Limits],
) -> tuple[Plan, Report]:
    """Profile the candidates and draw up what `run` would do with the same arguments; trains nothing.

    The profiles are kept in the cache, where a run finds them; the plan counts on that.
    """
    started_at = time.monotonic() if started_at is None else started_at
    told = reporter or Silent()
    with launch.launched(server) as server, _site(None, limits, server) as site:
        request = _parsed(site, data, device, limits)
        with site.open(request, None) as engine:
            dataset = _scan(request, told)
            store = MemoryStore()
            story = start.open_run(request, Path(), engine, store, told, started_at, dataset)
            drawn = flow.draw_up(story)
            return drawn, build.report(request, drawn, store, story.accountant.ledger())


def profile(
    data: str | Path,
    *,
    refresh: bool = False,
    take_in: str | Path | None = None,
    export: str | Path | None = None,
    reporter: Reporter | None = None,
    device: str = "auto",
    **limits: Unpack[Limits],
) -> list[Profile | Rejection]:
    """The profile phase alone: every candidate's largest batch and pace, kept in the cache for runs and plans.

    Args:
        refresh: measure what is in the cache anew.
        take_in: a file that ``export`` wrote, on this machine or one like it; its profiles go into the cache first.
        export: where to write the profiles for others.

    Raises:
        UsageError: the request, the data or the file does not work out.
    """
    told = reporter or Silent()
    asked: Limits = {"time": PROFILE_TIME, **limits, "scope": "candidate"}
    with launch.launched() as server, _site(None, limits, server) as site:
        request = _parsed(site, data, device, asked)
        taken = cache.take_in(Path(take_in), files.cache_root() / "profiles") if take_in is not None else []
        if export is not None:
            files.check_writable(Path(export))
        with site.open(request, None) as engine:
            dataset = _scan(request, told)
            story = start.open_run(request, Path(), engine, MemoryStore(), told, time.monotonic(), dataset)
            key = profile_phase.open_cache(story).key
            if taken:
                fitting = sum(other == key for other, _ in taken)
                fits = f"{fitting} are of such a machine, these limits and data of this shape"
                told.say(f"{len(taken)} profiles taken in; {fits}")
            found = profile_phase.profile(story, refresh=refresh)
    if export is not None:
        cache.export([each for each in found if isinstance(each, Profile)], key, Path(export))
    return found


def _tell(run: RunContext) -> Report:
    """A run's story, by the plan that it was given, if any."""
    given = run.store.latest(PlanGiven)
    return flow.tell(run, given.plan if given is not None else None)


def _parsed(site: Site, data: str | Path, device: str, limits: Limits) -> Request:
    """The request, on a device that is there."""
    where = site.device(device, limits.get("data_parallel", 1), limits.get("gpus"))
    return requests.parse(data, device=where, **limits)


def _scan(request: Request, reporter: Reporter) -> dataset.Dataset:
    reporter.begin(f"reading {request.data}")
    return folders.scan(Path(request.data), seed=request.seed, kept=files.cache_root() / "folders")


def _site(planned: Request | None, limits: Limits, server: launch.Server) -> Site:
    """Where the jobs of a planned request, or of one with these limits, will run."""
    if planned is not None:
        return Site(planned.engine, planned.ray_address, server)
    return Site(limits.get("engine", "local"), limits.get("ray_address"), server)


def _frozen(path: str | Path, limits: Limits) -> Plan:
    fixed = sorted(set(limits) - {"memory", "time", "gpu_time", "inference", "engine", "ray_address"})
    if fixed:
        raise UsageError(f"a plan fixes {', '.join(fixed)}; leave them out, or draw up another plan")
    if not Path(path).is_file():
        raise UsageError(f"there is no plan {str(path)!r}; `fitwithin plan` writes one")
    drawn = plans.from_json(Path(path).read_text(encoding="utf-8", errors="replace"))
    return replace(drawn, frozen=True)


def _budget(request: Request, limits: Limits) -> Budget:
    """The plan's budget, with the limits that were given anew."""
    asked = requests.parse(
        request.data,
        memory=limits.get("memory") or request.budget.memory_bytes,
        time=limits.get("time") or (None if limits.get("gpu_time") else request.budget.time_s),
        gpu_time=limits.get("gpu_time") or (None if limits.get("time") else request.budget.gpu_time_s),
        inference=limits.get("inference"),
        scope=request.budget.scope,
        accounting=request.budget.accounting,
    ).budget
    inference_ms = asked.inference_ms if limits.get("inference") else request.budget.inference_ms
    return replace(asked, inference_ms=inference_ms)
