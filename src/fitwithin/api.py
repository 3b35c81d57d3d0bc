"""The library's door: run, resume, plan and load, and what a finished run can do."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from fitwithin import catalogue, flow, gather
from fitwithin import data as folders
from fitwithin import pack as packs
from fitwithin import planning as plans
from fitwithin import request as requests
from fitwithin.accountant import Accountant
from fitwithin.budget import Budget
from fitwithin.candidate import grid, match
from fitwithin.engine.local import Local
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.machine import cores
from fitwithin.machine import parse as parse_device
from fitwithin.planning import Plan
from fitwithin.progress import Reporter, Silent
from fitwithin.report import Report
from fitwithin.request import Limits, Request
from fitwithin.result import Result, load
from fitwithin.session import Run
from fitwithin.store import MemoryStore, SqliteStore, Store, latest

#: Loader threads: beyond these, Python's own part of a batch is the limit.
MOST_WORKERS = 12


def run(
    data: str | Path,
    *,
    out: str | Path | None = None,
    plan: str | Path | None = None,
    reporter: Reporter | None = None,
    started_at: float | None = None,
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
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        **limits: what may be spent and tried, as :class:`fitwithin.request.Limits` lists it.

    Raises:
        UsageError: the request, the data or the limits do not work out; nothing was written.
        TrainingError: nothing that was trained left a model.
    """
    started_at = time.monotonic() if started_at is None else started_at
    told = reporter or Silent()
    frozen = _frozen(plan, limits) if plan is not None else None
    if frozen is not None:
        request = replace(requests.from_dict(frozen.request), data=str(data), device=parse_device(device))
        request = replace(request, budget=_budget(request, limits))
    else:
        request = requests.parse(data, device=parse_device(device), **limits)
    folder = Path(out) if out is not None else _default_folder(Path(data))
    _check_free(folder)
    with _engine(request.device, folder) as engine:
        dataset = _scan(request, told)
        if frozen is not None:
            flow.check_plan(frozen, dataset.fingerprint)
        match(request.models, catalogue.known_models())
        told.say(f"the run's folder is {folder}")
        made = _make_folder(folder)
        store = SqliteStore(folder)
        try:
            store.append("request", request.to_dict())
            if frozen is not None:
                store.append("frozen", json.loads(frozen.to_json()))
            report = _tell(request, folder, engine, store, told, started_at, dataset)
        except UsageError:
            planned = store.events("plan")
            store.close()
            if not planned:  # nothing was trained: nothing is left behind
                _unmake(folder, made)
            raise
        finally:
            store.close()
    return Result(folder=folder, report=report)


def resume(folder: str | Path, *, reporter: Reporter | None = None, started_at: float | None = None) -> Result:
    """Carry an interrupted run on to its end within what is left of its budget.

    A run that had ended already is returned as it is.

    Raises:
        RunFolderError: the folder holds no run, or another process is working on it.
        UsageError: the data are not what they were.
    """
    started_at = time.monotonic() if started_at is None else started_at
    told = reporter or Silent()
    path = Path(folder)
    if not (path / "run.db").is_file():
        raise RunFolderError(f"{path} holds no run (no run.db); start one with `fitwithin run`")
    with SqliteStore(path) as store:
        if latest(store.events("finished"), "finished") is not None:
            return load(path)
        stored = latest(store.events("request"), "request")
        if stored is None:
            raise RunFolderError(f"{path} holds a run that never began; remove it and start again")
        request = requests.from_dict(stored)
        with _engine(request.device, path) as engine:
            dataset = _scan(request, told)
            known = latest(store.events("data"), "data")
            if known is not None and known["fingerprint"] != dataset.fingerprint:
                raise UsageError(f"the images in {request.data} have changed since this run began; start a new run")
            report = _tell(request, path, engine, store, told, started_at, dataset)
    return Result(folder=path, report=report)


def plan(
    data: str | Path,
    *,
    reporter: Reporter | None = None,
    started_at: float | None = None,
    device: str = "auto",
    **limits: Unpack[Limits],
) -> tuple[Plan, Report]:
    """Profile the candidates and draw up what `run` would do with the same arguments; trains nothing.

    The profiles are kept in the cache, where a run finds them; the plan counts on that.
    """
    started_at = time.monotonic() if started_at is None else started_at
    told = reporter or Silent()
    request = requests.parse(data, device=parse_device(device), **limits)
    with _engine(request.device, None) as engine:
        dataset = _scan(request, told)
        store = MemoryStore()
        story = _open(request, Path(), engine, store, told, started_at, dataset)
        drawn = flow.draw_up(story)
        return drawn, gather.report(request, drawn, store.events())


def _tell(
    request: Request,
    folder: Path,
    engine: Local,
    store: Store,
    reporter: Reporter,
    started_at: float,
    dataset: folders.Dataset,
) -> Report:
    story = _open(request, folder, engine, store, reporter, started_at, dataset)
    frozen = latest(store.events("frozen"), "frozen")
    return flow.tell(story, plans.from_json(json.dumps(frozen)) if frozen is not None else None)


def _open(
    request: Request,
    folder: Path,
    engine: Local,
    store: Store,
    reporter: Reporter,
    started_at: float,
    dataset: folders.Dataset,
) -> Run:
    """Everything a run works with: the books opened, the images packed, the engine ready."""
    store.append("start", {"pid": os.getpid()})
    accountant = Accountant(store, request.budget, engine.now, started_at=started_at)
    names = match(request.models, catalogue.known_models())
    with accountant.entry("start-up"):
        reporter.begin("starting workers")
        engine.prepare()
    with accountant.entry("data"):
        reporter.begin("packing images", len(dataset.samples))
        images = packs.build(dataset, request.pack_side, on_progress=reporter.advance, strict=request.strict)
        whole = folders.without(dataset, images.broken)
        store.append(
            "data",
            {
                "path": request.data,
                "fingerprint": dataset.fingerprint,
                "classes": list(dataset.classes),
                "counts": whole.counts(),
                "split": dataset.split_why,
                "broken": [{"path": broken.path, "reason": broken.reason} for broken in images.broken],
                "ignored": dataset.ignored,
            },
        )
        store.append("machine", engine.describe())
    counts = ", ".join(f"{n:,} {split}" for split, n in whole.counts().items())
    reporter.say(f"{request.data}: {len(dataset.classes)} classes, {counts} images; {len(images.broken)} broken")
    return Run(
        request=request,
        folder=folder,
        engine=engine,
        store=store,
        accountant=accountant,
        reporter=reporter,
        candidates=grid(names, request.precisions, request.sizes),
        images=images,
        workers=max(1, min(MOST_WORKERS, cores() - 1)),
    )


def _scan(request: Request, reporter: Reporter) -> folders.Dataset:
    reporter.begin(f"reading {request.data}")
    return folders.scan(Path(request.data), seed=request.seed)


@contextmanager
def _engine(device: str, folder: Path | None) -> Iterator[Local]:
    """A local engine whose workers' words are kept in the run's folder, if there are any."""
    with tempfile.TemporaryDirectory(prefix="fitwithin-") as scratch:
        log = Path(scratch) / "worker.log"
        try:
            with Local(device, log) as engine:
                yield engine
        finally:
            if folder is not None and (folder / "run.db").is_file() and log.is_file() and log.stat().st_size:
                with (folder / "worker.log").open("ab") as kept:
                    kept.write(log.read_bytes())


def _frozen(path: str | Path, limits: Limits) -> Plan:
    fixed = sorted(set(limits) - {"memory", "time", "gpu_time", "inference"})
    if fixed:
        raise UsageError(f"a plan fixes {', '.join(fixed)}; leave them out, or draw up another plan")
    if not Path(path).is_file():
        raise UsageError(f"there is no plan {str(path)!r}; `fitwithin plan` writes one")
    drawn = plans.from_json(Path(path).read_text(encoding="utf-8", errors="replace"))
    try:
        requests.from_dict(drawn.request)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is no plan that `fitwithin plan` wrote (its request lacks {error})") from error
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


def check_writable(path: Path) -> None:
    """RunFolderError unless a file can be written at ``path``."""
    parent = path.absolute().parent
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder where a file is to be written; choose another file")
    if not parent.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise RunFolderError(
            f"{path} cannot be written: {parent} is no folder that may be written to; choose another file"
        )


def _default_folder(data: Path) -> Path:
    return Path("runs") / f"{data.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _check_free(folder: Path) -> None:
    """RunFolderError unless a new run may be written to ``folder``; nothing is written yet."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        held = "another run" if (folder / "run.db").is_file() else "something else"
        raise RunFolderError(
            f"{folder} holds {held}; choose another --out"
            + (f", or go on with `fitwithin resume {folder}`" if held == "another run" else "")
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RunFolderError(f"{folder} cannot be made: no permission to write in {parent}; choose another --out")


def _make_folder(folder: Path) -> list[Path]:
    """Make the run's folder; returns the folders that were not there before, the deepest first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made ({error.strerror}); choose another --out") from error
    return made


def _unmake(folder: Path, made: list[Path]) -> None:
    """Leave things as they were before :func:`_make_folder`; an empty folder that was there stays."""
    for path in folder.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for path in made:
        with suppress(OSError):  # somebody else has put something there meanwhile
            path.rmdir()
