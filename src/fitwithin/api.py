"""The functions of the library: run, resume, plan and profile."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from fitwithin import events, files
from fitwithin import request as requests
from fitwithin.candidate import match
from fitwithin.data import dataset
from fitwithin.data.inspection import exclusions
from fitwithin.data.sources import door
from fitwithin.engine import launch
from fitwithin.engine.base import Engine
from fitwithin.engine.connect import Site
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.events import DataPacked, PlanGiven, PlanMade, RunFinished, RunRequested
from fitwithin.options import OPTIONS, Limits
from fitwithin.pipeline import profile_phase, start
from fitwithin.pipeline import run as flow
from fitwithin.pipeline.context import Reporter, Silent
from fitwithin.pipeline.result import Result, load
from fitwithin.planning import plan as plans
from fitwithin.planning.plan import Plan
from fitwithin.profiling import cache
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.report import build
from fitwithin.report.schema import Report
from fitwithin.request import Request
from fitwithin.store import Store
from fitwithin.weights import model_names

#: Profiling alone has no time budget; a request must have one. Without a budget nothing can be chosen either.
PROFILE_TIME, PROFILE_MODELS, PROFILE_SIZES = "24h", "paper", "160,224"


def run(
    data: str | Path,
    *,
    out: str | Path | None = None,
    plan: str | Path | None = None,
    reporter: Reporter | None = None,
    started_at: float | None = None,
    server: launch.Server | None = None,
    **limits: Unpack[Limits],
) -> Result:
    """Train the best classifier for some images within the limits, and report on it.

    Args:
        data: a folder ``DATA/<class>/*`` or ``DATA/{train,val,test}/<class>/*``, a table, an archive, or
            ``hf:owner/name``.
        out: the run's folder, which must not exist or be empty; default ``runs/<data>-<time>``.
        plan: a plan that ``fitwithin plan`` wrote, to be carried out step by step as it stands.
        reporter: gets the progress; by default nobody does.
        started_at: the monotonic instant from which time counts; default now.
        server: a worker server that was launched before; the run ends it. Default: one that is launched now.
        **limits: what may be spent and tried, as :class:`fitwithin.options.Limits` lists it.

    Raises:
        UsageError: the request, the data or the limits do not work out; nothing was written.
        TrainingError: nothing that was trained left a model.
    """
    started_at = time.monotonic() if started_at is None else started_at
    with launch.launched(server) as server:  # before anything else: in the end all wait for its imports
        fixed_plan, planned = (None, None) if plan is None else load_fixed_plan(plan, limits)
        with _site(planned, limits, server) as site:
            if planned is not None:
                device = site.device(limits.get("device") or "auto", planned.data_parallel, planned.gpus)
                request = replace(planned, data=door.absolute(data), device=device)
            else:
                request = _parsed(site, data, limits)
            folder = Path(out) if out else files.default_folder(Path(data))
            files.check_free(folder)
            with files.naming_full_disks(folder), site.open(request, folder) as engine:
                report = _begin(request, folder, engine, reporter or Silent(), started_at, fixed_plan)
    return Result(folder=folder, report=report)


def _begin(
    request: Request, folder: Path, engine: Engine, reporter: Reporter, started_at: float, fixed_plan: Plan | None
) -> Report:
    """The run in its new folder, which is removed again if there is no plan."""
    dataset = _scan(request, reporter, started_at)
    if fixed_plan is not None:
        flow.check_plan(fixed_plan, dataset.fingerprint)
    if request.models:
        match(request.models, model_names.known_models(engine.prepare))
    reporter.say(f"the run's folder is {folder}")
    made = files.create_run_dir(folder)
    try:
        store = Store(folder)
        store.append(RunRequested(request=request))
    except Exception:  # a full disk: there is nothing yet to go on with
        files.remove_run_dir(folder, made)
        raise
    try:
        if fixed_plan is not None:
            store.append(PlanGiven(plan=fixed_plan))
        accountant = start.open_accountant(store, request.budget, engine.now, started_at)
        context = start.open_run(request, folder, engine, store, reporter, accountant, dataset)
        return flow.execute(context, fixed_plan)
    except UsageError:
        planned = store.latest(PlanMade) is not None
        store.close()
        if not planned:  # nothing was trained: nothing is left behind
            files.remove_run_dir(folder, made)
        raise
    finally:
        store.close()


def resume(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    engine: str | None = None,
    ray_address: str | None = None,
    reporter: Reporter | None = None,
    started_at: float | None = None,
) -> Result:
    """Carry an interrupted run on to its end within what is left of its budget.

    A run that had ended already is returned as it is. ``data`` is where its images are now, if they have moved. With
    ``engine`` or ``ray_address`` it goes on elsewhere. If too little of the budget is left to start workers, the run
    hands over what is there.

    Raises:
        RunFolderError: the folder holds no run, another process is working on it, or an event of it cannot be read.
        UsageError: the images have changed.
    """
    started_at = time.monotonic() if started_at is None else started_at
    reporter = reporter or Silent()
    path = Path(folder)
    if not (path / "run.db").is_file():
        raise RunFolderError(f"{path} holds no run (no run.db); start one with `fitwithin run`")
    with files.naming_full_disks(path), Store(path) as store:
        events.read_all(store)  # what cannot be read is named before anything is spent
        if store.latest(RunFinished) is not None:
            return load(path)
        stored = store.latest(RunRequested)
        if stored is None:
            raise RunFolderError(f"{path} holds a run that never began; remove the folder and start again")
        request = requests.with_engine(stored.request, engine, ray_address)
        if data is not None:
            request = replace(request, data=door.absolute(data))
        elif not door.is_there(request.data):
            raise UsageError(f"the images of this run are no longer in {request.data}; say where they are with --data")
        accountant = start.open_accountant(store, request.budget, time.monotonic, started_at)
        late = start.too_late_for_workers(accountant)
        with (
            launch.launched() as server,
            _site(None if late else request, {}, server) as site,
            site.open(request, path) as workers,
        ):
            # A run that only hands over reads the data as long as that takes.
            began_at = math.inf if late else time.monotonic() - accountant.ledger().spent_s()
            dataset = _scan(request, reporter, began_at)
            known = store.latest(DataPacked)
            if known is not None and known.fingerprint != dataset.fingerprint:
                raise UsageError(f"the images in {request.data} have changed since this run began; start a new run")
            context = start.open_run(request, path, workers, store, reporter, accountant, dataset, hands_over=late)
            given = store.latest(PlanGiven)
            report = flow.execute(context, None if given is None else given.plan)
    return Result(folder=path, report=report)


def plan(
    data: str | Path,
    *,
    reporter: Reporter | None = None,
    started_at: float | None = None,
    server: launch.Server | None = None,
    **limits: Unpack[Limits],
) -> tuple[Plan, Report]:
    """Profile the candidates and draw up what `run` would do with the same arguments; trains nothing.

    The profiles are kept in the cache, where a run finds them; the plan counts on that.
    """
    started_at = time.monotonic() if started_at is None else started_at
    reporter = reporter or Silent()
    with files.naming_full_disks(), launch.launched(server) as server, _site(None, limits, server) as site:
        request = _parsed(site, data, limits)
        with site.open(request, None) as engine, Store() as store, tempfile.TemporaryDirectory() as scratch:
            dataset = _scan(request, reporter, started_at)
            accountant = start.open_accountant(store, request.budget, engine.now, started_at)
            # Linear probes leave models, whose features stay in the cache.
            context = start.open_run(request, Path(scratch), engine, store, reporter, accountant, dataset)
            made = flow.make_plan(context)
            return made, build.report(context.request, made, store, accountant.ledger())


def profile(
    data: str | Path,
    *,
    refresh: bool = False,
    import_from: str | Path | None = None,
    export: str | Path | None = None,
    reporter: Reporter | None = None,
    **limits: Unpack[Limits],
) -> list[Profile | Rejection]:
    """The profile phase alone: every candidate's largest batch and its speed, kept in the cache for runs and plans.

    Args:
        refresh: measure again what is in the cache.
        import_from: a file that ``export`` wrote, on this machine or one like it; its profiles go into the cache first.
        export: where to write the profiles for others.

    Raises:
        UsageError: the request, the data or the file does not work out.
    """
    reporter = reporter or Silent()
    wanted: Limits = {"time": PROFILE_TIME, **limits, "scope": "candidate"}
    wanted["models"] = limits.get("models") or PROFILE_MODELS
    wanted["sizes"] = limits.get("sizes") or PROFILE_SIZES
    with files.naming_full_disks(), launch.launched() as server, _site(None, wanted, server) as site:
        request = _parsed(site, data, wanted)
        imported = cache.import_profiles(Path(import_from), files.cache_root() / "profiles") if import_from else []
        if export is not None:
            files.check_writable(Path(export), cache.EXPORT_BEGINNING)
        with site.open(request, None) as engine, Store() as store:
            dataset = _scan(request, reporter, time.monotonic())
            accountant = start.open_accountant(store, request.budget, engine.now, time.monotonic())
            context = start.open_run(request, Path(), engine, store, reporter, accountant, dataset)
            key = profile_phase.open_cache(context).key
            if imported:
                fit = sum(other == key for other, _ in imported)
                shape = "of such a machine, these limits and data of this shape"
                reporter.say(f"{len(imported)} profiles imported; {fit} are {shape}")
            found = profile_phase.profile(context, refresh=refresh)
    if export is not None:
        cache.export([each for each in found if isinstance(each, Profile)], key, Path(export))
    return found


def _parsed(site: Site, data: str | Path, limits: Limits) -> Request:
    """The request, on a device that is there."""
    device = site.device(limits.get("device") or "auto", limits.get("data_parallel") or 1, limits.get("gpus"))
    found: Limits = {**limits, "device": device}
    return requests.parse(door.absolute(data), **found)


def _scan(request: Request, reporter: Reporter, started_at: float) -> dataset.Dataset:
    """The data set, read within a share of the time; the time of a run counts from ``started_at``."""
    reporter.begin(f"reading {request.data}")
    budget = request.budget
    whole_s = budget.time_s if budget.time_s is not None and budget.scope == "total" else math.inf
    found = door.open_dataset(
        request.data,
        seed=request.seed,
        split=request.split,
        columns=dict(request.columns),
        cache_dir=files.cache_root() / "folders",
        until_at=start.reading_ends_at(whole_s - (time.monotonic() - started_at)),
    )
    return found if request.exclude is None else exclusions.leave_out(found, exclusions.read(Path(request.exclude)))


def _site(planned: Request | None, limits: Limits, server: launch.Server) -> Site:
    """Where the jobs of a planned request, or of one with these limits, will run."""
    if planned is not None:
        return Site(planned.engine, planned.ray_address, server)
    return Site(limits.get("engine") or "local", limits.get("ray_address"), server)


def load_fixed_plan(path: str | Path, limits: Limits) -> tuple[Plan, Request]:
    """The plan in a file, to be carried out as it stands, and its request with the limits that may be given anew.

    Raises:
        UsageError: the file holds no plan, or a plan fixes one of the limits.
    """
    fixed = sorted(name for name in limits if name not in OPTIONS or not OPTIONS[name].with_plan)
    if fixed:
        raise UsageError(f"a plan fixes {', '.join(fixed)}; leave these out, or draw up another plan")
    if not Path(path).is_file():
        raise UsageError(f"there is no plan {str(path)!r}; `fitwithin plan` writes one")
    plan = replace(plans.from_json(Path(path).read_text(encoding="utf-8", errors="replace")), frozen=True)
    request = requests.with_engine(plan.request, limits.get("engine"), limits.get("ray_address"))
    return plan, requests.with_budget(request, limits)
