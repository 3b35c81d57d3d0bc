"""The process server: imports torch and timm once, then forks a fresh process per job, so that no job pays for imports.

``python -m fitwithin.engine.server FD`` speaks over the Unix socket FD. The parent sends one byte together with a
job's own socket; the server answers with the child's process id and, when it has ended, with its exit status. CUDA is
never started in the server, so that each child gets a context of its own. When the parent goes away, so does
everything here: a device is not held for nobody.

multiprocessing's forkserver would do the same, but it runs the user's main module again in every child.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fitwithin.lifeline import die_with_parent

READY, STARTED, ENDED = b"R", b"S", b"E"
MESSAGE = struct.Struct("=ci")


def serve(control: socket.socket) -> None:
    """Answer requests until the other side closes; one child at a time."""
    from fitwithin import evaluate, probe, train  # noqa: F401 - imported here, before any fork

    control.sendall(MESSAGE.pack(READY, os.getpid()))
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data or not fds:
            return
        child = os.fork()
        if child == 0:
            control.close()
            _run_child(fds[0])
        os.close(fds[0])
        control.sendall(MESSAGE.pack(STARTED, child))
        if not _wait(control, child):
            return


def _wait(control: socket.socket, child: int) -> bool:
    """Wait for the child and report its exit status; False if the parent went away meanwhile (the child is ended)."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            control.sendall(MESSAGE.pack(ENDED, os.waitstatus_to_exitcode(status)))
            return True
        readable, _, _ = select.select([control], [], [], 0.02)
        if readable:  # nothing is sent while a child runs: this is the end of the stream
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False


def _run_child(fd: int) -> None:
    """Carry out the one job that arrives on ``fd``, then leave without running the server's exit handlers."""
    die_with_parent()
    connection = Connection(fd)
    code = 1
    try:
        job, asked_at = connection.recv()
        connection.send(("done", _carry_out(job, asked_at, connection)))
        code = 0
    except (BrokenPipeError, EOFError):
        pass  # the parent is gone; so is the need
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _carry_out(job: Any, asked_at: float, connection: Connection) -> Any:
    from fitwithin import device, evaluate, pack, probe, train
    from fitwithin.errors import FitwithinError, OutOfMemory
    from fitwithin.jobs import EvaluateJob, Failure, ProbeJob, Progress, TrainJob

    opened: Any = None
    try:
        setting = job.setting
        opened = device.open_device(setting.device)
        expected_bytes = 0 if isinstance(job, EvaluateJob) else job.outside_bytes
        opened.cap(setting.memory_bytes, setting.accounting, expected_bytes)
        store = pack.open_pack(Path(setting.pack))
        sent_at = 0.0

        def emit(progress: Progress) -> None:
            nonlocal sent_at
            if time.monotonic() - sent_at >= 0.2:
                connection.send(("progress", progress))
                sent_at = time.monotonic()

        if isinstance(job, ProbeJob):
            scratch = probe.candidate_scratch(job.candidate, Path(setting.pack).parent.parent / "scratch")
            return probe.probe(job, opened, store, asked_at, scratch)
        with opened.guard():
            if isinstance(job, TrainJob):
                return train.advance(job, opened, store, asked_at, emit)
            assert isinstance(job, EvaluateJob)
            return evaluate.evaluate(job, opened, store, emit)
    except OutOfMemory as error:
        return Failure(kind="memory", reason=str(error), peak_bytes=opened.peak_bytes() if opened else None)
    except FitwithinError as error:
        return Failure(kind="error", reason=str(error))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return Failure(kind="error", reason=f"{type(error).__name__}: {text}", trace=traceback.format_exc())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        # Whoever died before that request to Linux has closed the stream; nobody sends anything before READY.
        if not select.select([channel], [], [], 0)[0]:
            serve(channel)
    # Tearing torch and timm down takes 1.5 s on two cores, in which the run's clock ticks; nothing here needs saving.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
