"""The worker server: imports torch and timm once, then forks a fresh process for each job.

``python -m fitwithin.worker FD`` speaks over the Unix socket FD. For each job the parent sends one byte with two
sockets: on the first it speaks to the child itself, on the second the server sends the child's process id and, when it
has ended, its exit status. Several children may be at work. CUDA is never started in the server: each child has a
context of its own. When the parent ends, so do the server and its children.

multiprocessing's forkserver is not used because it runs the user's main module again in every child.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fitwithin.engine.jobs import (
    CompareJob,
    EvaluateJob,
    LinearProbeJob,
    ProbeJob,
    ReserveMemoryJob,
    Seat,
    TrainJob,
)
from fitwithin.engine.launch import ENDED, MESSAGE, READY, STARTED
from fitwithin.engine.results import Failure, FailureKind, Progress
from fitwithin.errors import FitwithinError, LoaderTimeout, OutOfMemory, PeerLost
from fitwithin.files import disk_is_full
from fitwithin.machine import die_with_parent

#: Seconds between looks for children that have ended.
LOOK_S = 0.02

#: The kind of failure that each of these errors is.
KINDS: dict[type[FitwithinError], FailureKind] = {PeerLost: "deserted", LoaderTimeout: "hung"}


def serve(control: socket.socket) -> None:
    """Fork a child for every request until the other side closes; then end those still at work."""
    gc.disable()  # while torch and timm are imported, where collection took 0.6 of 2.4 s
    for module in (
        "profiling.probe",
        "profiling.screen",
        "training.evaluation",
        "training.linear_probe",
        "training.loop",
    ):
        import_module(f"fitwithin.{module}")  # before any fork
    _keep_what_timm_knows()
    gc.freeze()  # the children's collectors skip the objects of torch and timm
    gc.enable()
    control.sendall(MESSAGE.pack(READY, os.getpid()))
    children: dict[int, socket.socket] = {}
    try:
        while True:
            readable, _, _ = select.select([control], [], [], LOOK_S if children else None)
            if readable:
                data, fds, _, _ = socket.recv_fds(control, 1, 2)
                if not data or len(fds) < 2:
                    return
                _start(control, fds, children)
            _reap(children)
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _keep_what_timm_knows() -> None:
    """Write it to the cache where it is not there, or the parent would import timm: 3 s at its start, 1 s at its
    end (two cores).

    A child does it: what is built and freed here would stay in the heap of every worker, below its memory cap.
    """
    from fitwithin.weights import configs, model_names

    child = os.fork()
    if child == 0:
        try:
            model_names.known_models()
            configs.keep()
        finally:  # a cache that cannot be written is reported where it is needed
            os._exit(0)
    os.waitpid(child, 0)


def _start(control: socket.socket, fds: list[int], children: dict[int, socket.socket]) -> None:
    child = os.fork()
    if child == 0:
        control.close()
        os.close(fds[1])
        for status in children.values():
            status.close()
        _run_child(fds[0])
    os.close(fds[0])
    children[child] = socket.socket(fileno=fds[1])
    _notify(children[child], STARTED, child)


def _reap(children: dict[int, socket.socket]) -> None:
    """Report the end of every child that has ended."""
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            with children.pop(child) as channel:
                _notify(channel, ENDED, os.waitstatus_to_exitcode(status))


def _notify(status: socket.socket, kind: bytes, value: int) -> None:
    with suppress(BrokenPipeError):  # the parent no longer listens
        status.sendall(MESSAGE.pack(kind, value))


def _run_child(fd: int) -> None:
    """Carry out the job that arrives on ``fd``, then exit without running the server's exit handlers."""
    die_with_parent()
    connection = Connection(fd)
    code = 1
    try:
        job, asked_at, seat = connection.recv()
        if isinstance(job, ReserveMemoryJob):
            _hold(job, connection)
        else:
            connection.send(("done", _carry_out(job, asked_at, seat, connection)))
        code = 0
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone; so is the need
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _hold(job: ReserveMemoryJob, connection: Connection) -> None:
    from fitwithin.engine import cuda

    try:
        held = cuda.hold(job.device.index, job.free_bytes)
    except FitwithinError as error:
        connection.send(("done", Failure(kind="error", reason=str(error))))
        return
    connection.send(("done", None))
    with suppress(EOFError):
        connection.recv()  # nothing comes: in the end the other side closes
    del held


def _failure(error: BaseException, opened: Any) -> Failure:
    """The failure that an error means; an error because the parent is gone is raised again."""
    if isinstance(error, BrokenPipeError | EOFError):
        raise error
    if isinstance(error, OutOfMemory):
        return Failure(kind="memory", reason=str(error), peak_bytes=opened.peak_bytes() if opened else None)
    if disk_is_full(error):
        return Failure(kind="disk", reason="the disk is full")
    if isinstance(error, FitwithinError):
        return Failure(kind=KINDS.get(type(error), "error"), reason=str(error))
    if isinstance(error, import_module("torch").AcceleratorError):  # the device failed, not the program
        return Failure(kind="died", reason=_first_line(error))
    # A model that gives up with sys.exit has said why.
    text = " ".join(str(error).split())[:300]
    return Failure(kind="error", reason=f"{type(error).__name__}: {text}", trace=traceback.format_exc())


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _limit(opened: Any, job: Any, staged_bytes: int) -> None:
    """Bound the device's memory, and the threads to what others leave free of the CPU."""
    setting = job.setting
    # An evaluation takes far less than the training step that was certified with the same views.
    expected_bytes = 0 if isinstance(job, EvaluateJob | LinearProbeJob) else job.non_allocator_bytes or None
    opened.set_memory_cap(setting.memory_bytes, setting.accounting, expected_bytes, staged_bytes)
    if not (isinstance(job, TrainJob) and job.frozen):  # whose result must not depend on the number of threads
        opened.share_cores()


def _await_turn(job: ProbeJob, seat: Seat, locked: ExitStack) -> float:
    """Wait until no other process times the device, and keep others from it; the seconds waited."""
    from fitwithin.profiling import gpu_lock, probe
    from fitwithin.training import distributed

    if seat.is_main:
        return locked.enter_context(gpu_lock.timing_lock(probe.scratch_folder(job), str(job.setting.device)))
    distributed.await_first(seat)
    return 0.0


def _carry_out(job: Any, asked_at: float, seat: Seat, connection: Connection) -> Any:
    from fitwithin.data import pack
    from fitwithin.data.prefetch import PrefetchLoader
    from fitwithin.engine import device
    from fitwithin.profiling import probe, screen
    from fitwithin.training import distributed, evaluation, linear_probe, loop
    from fitwithin.training.evaluation import feeder_rings

    opened: Any = None
    feeder: PrefetchLoader | None = None
    locked = ExitStack()
    try:
        setting = replace(job.setting, device=job.setting.device.next(seat.rank))
        job = replace(job, setting=setting)
        if isinstance(job, CompareJob):
            opened = device.open_device(setting.device)
            opened.set_memory_cap(setting.memory_bytes, setting.accounting)
            return screen.screen(job, opened)
        evaluates = isinstance(job, EvaluateJob | LinearProbeJob)
        rings = feeder_rings(job.candidate, setting, job.batch if evaluates else job.share, trains=not evaluates)
        store = pack.open_pack(Path(setting.pack))
        feeder = PrefetchLoader(store, setting.workers, rings, pin=setting.device.is_cuda)
        if isinstance(job, ProbeJob) and job.timed:
            asked_at += _await_turn(job, seat, locked)
        if not isinstance(job, ProbeJob) or job.timed:
            feeder.start()
        team = distributed.init_process_group(seat, setting.jobs_per_host)
        opened = device.open_device(setting.device)
        _limit(opened, job, feeder.capacity_bytes)
        team.open(opened)
        sent_at = 0.0

        def emit(progress: Progress) -> None:
            nonlocal sent_at
            if seat.is_main and time.monotonic() - sent_at >= 0.2:
                connection.send(("progress", progress))
                sent_at = time.monotonic()

        if isinstance(job, ProbeJob):
            return probe.probe(job, opened, feeder, asked_at, team)
        if isinstance(job, LinearProbeJob):
            with opened.guard():
                return linear_probe.probe_linearly(job, opened, feeder, asked_at, emit)
        evaluator = evaluation.Evaluator(opened, feeder)
        with opened.guard():
            if isinstance(job, TrainJob):
                trained = loop.train(job, opened, feeder, asked_at, emit, team, evaluator)
                if job.evaluation is None:
                    return trained
                connection.send(("done", trained))
                job = connection.recv()[0]  # the evaluation; EOFError if another process does it
            assert isinstance(job, EvaluateJob)
            return evaluator.evaluate(job, emit)
    except (Exception, SystemExit) as error:
        return _failure(error, opened)
    finally:
        if feeder is not None:
            feeder.close()
        locked.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        # A parent that died before that request to Linux has closed the stream; nothing is sent before READY.
        if not select.select([channel], [], [], 0)[0]:
            serve(channel)
    # Tearing torch and timm down takes 1.5 s on two cores, in which the run's clock ticks; nothing here needs saving.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
