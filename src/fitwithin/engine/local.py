"""The local engine: every job in a fresh process of this machine, ended at its deadline whatever it does."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from fitwithin import __version__
from fitwithin.errors import DeviceError
from fitwithin.jobs import Failure, HoldJob, Job, Outcome, Progress, silence_s
from fitwithin.launch import ENDED, STARTED, Server, allocator, receive
from fitwithin.machine import cpu_name

#: How long forking a process may take before something is wrong.
STARTED_WITHIN_S = 60.0

#: What a process may hold beside its cap where that leaves the CUDA context out.
CONTEXT_BYTES = 2**30


class Local:
    """A process server, launched at once so that its imports overlap with reading the data, and its children.

    Args:
        device: ``cpu`` or ``cuda:N``.
        log: a file for what workers print.
        emulate_bytes: of the GPU's memory so much is left free, the rest is held: a small card inside a big one.
        server: a server that was launched already; it has a log of its own.
    """

    def __init__(
        self,
        device: str,
        log: Path | None = None,
        *,
        emulate_bytes: int | None = None,
        server: Server | None = None,
    ) -> None:
        self.device, self.emulate_bytes = device, emulate_bytes
        self.server = server if server is not None else Server(log)
        self._holder: Connection | None = None
        self._asking = threading.Lock()
        # nvidia-smi is a process to wait for; meanwhile there is something else to do.
        beside = ThreadPoolExecutor(1, thread_name_prefix="facts")
        self._facts = beside.submit(self._gather)
        beside.shutdown(wait=False)

    def describe(self) -> dict[str, Any]:
        """Device, driver and versions, without starting CUDA here; gathered once."""
        return dict(self._facts.result())

    def _gather(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "device": self.device,
            "platform": platform.platform(),
            "python": platform.python_version(),
        }
        facts.update({name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")})
        facts["fitwithin"] = __version__
        facts["name"] = cpu_name()
        facts["cpu"] = facts["name"]
        if self.device.startswith("cuda"):
            name, driver, total = _nvidia_smi("name,driver_version,memory.total", self.device)
            cudnn = {d.name: d.version for d in metadata.distributions() if d.name.startswith("nvidia-cudnn")}
            facts["allocator"] = allocator()
            if self.emulate_bytes is not None:
                facts["emulated_bytes"] = self.emulate_bytes
            facts.update(name=name, driver=driver, total_bytes=int(total) * 2**20, cudnn=", ".join(cudnn.values()))
        return facts

    def now(self) -> float:
        """Monotonic seconds: the same for parent and children on one boot."""
        return time.monotonic()

    def rest(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def prepare(self) -> None:
        """Wait until the server has imported everything; DeviceError if it cannot."""
        self.server.await_ready()
        if self.emulate_bytes is not None and self._holder is None:
            self._hold(self.emulate_bytes)

    def _hold(self, free_bytes: int) -> None:
        connection, status, _ = self._fork()
        status.close()
        connection.send((HoldJob(device=self.device, free_bytes=free_bytes), time.monotonic()))
        if not connection.poll(STARTED_WITHIN_S):
            raise DeviceError(f"{self.device} did not give its memory within {STARTED_WITHIN_S:g} s")
        try:
            _, answer = connection.recv()
        except EOFError as error:
            raise DeviceError(f"the process that was to hold the memory of {self.device} ended") from error
        if isinstance(answer, Failure):
            raise DeviceError(f"{answer.reason}; choose a smaller --emulate-device-memory, or free the device")
        self._holder = connection  # the memory is held until this closes

    def _fork(self) -> tuple[Connection, socket.socket, int]:
        """A fresh process: what is said to it, what is told of its end, its number."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        status, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        connection = Connection(ours.detach())
        try:
            with theirs, told:
                self._ask([theirs.fileno(), told.fileno()])
            kind, pid = receive(status, STARTED_WITHIN_S)
            assert kind == STARTED
        except BaseException:
            connection.close()
            status.close()
            raise
        return connection, status, pid

    def lanes(self, wanted: int, memory_bytes: int) -> int:
        """How many jobs of that memory the device can take at once now, ``wanted`` at most and one at least."""
        if wanted <= 1 or not self.device.startswith("cuda"):
            return 1
        free_bytes = int(_nvidia_smi("memory.free", self.device)[0]) * 2**20
        return max(1, min(wanted, free_bytes // (memory_bytes + CONTEXT_BYTES)))

    def do(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        """Run the job in a fresh process until it ends or ``until_at`` comes; several threads may ask at once."""
        self.prepare()
        asked_at = time.monotonic()
        try:
            connection, status, pid = self._fork()
        except BaseException:
            self.close()
            raise
        try:
            connection.send((job, asked_at))
            outcome = self._listen(connection, pid, until_at, silence_s(job), on_progress)
            code = _end(status, pid, killed=isinstance(outcome, Failure) and outcome.kind in ("deadline", "hung"))
        except BaseException:
            self.close()  # an interrupt: nothing may go on behind our back
            raise
        finally:
            connection.close()
            status.close()
        if outcome is None:
            told_of = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Failure(kind="died", reason=f"the worker process ended without an answer ({told_of})")
        return outcome

    def _ask(self, fds: list[int]) -> None:
        with self._asking:
            socket.send_fds(self.server.control, [b"J"], fds)

    def _listen(
        self,
        connection: Connection,
        pid: int,
        until_at: float,
        silent_s: float,
        on_progress: Callable[[Progress], None],
    ) -> Outcome | None:
        """What the child says in the end; None if it is gone, a Failure if its time was over or it fell silent."""
        heard_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= min(until_at, heard_at + silent_s):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                if now < until_at:
                    return Failure(kind="hung", reason=f"nothing was heard of the worker for {silent_s:.0f} s")
                return Failure(kind="deadline", reason="its time was over and the worker was ended")
            if not connection.poll(min(until_at - now, heard_at + silent_s - now, 0.5)):
                continue
            heard_at = time.monotonic()
            try:
                kind, value = connection.recv()
            except (EOFError, ConnectionResetError, BrokenPipeError):
                return None
            if kind == "done":
                outcome: Outcome = value
                return outcome
            if kind == "progress":
                on_progress(value)

    def close(self) -> None:
        """End the server, and with it any child."""
        if self._holder is not None:
            self._holder.close()
        self.server.close()

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(status: socket.socket, pid: int, *, killed: bool) -> int:
    """Wait for a child's exit status; a child that answered but does not end is ended."""
    for attempt in range(2):
        try:
            kind, code = receive(status, 10.0)
        except TimeoutError:
            if attempt or killed:
                raise DeviceError(f"worker process {pid} does not end even when killed; the driver may hang") from None
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            continue
        assert kind == ENDED
        return code
    raise AssertionError("unreachable")


def _nvidia_smi(fields: str, device: str) -> list[str]:
    """Those facts of the device, without starting CUDA here."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={_physical_index(device)}"]
    line = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    return [part.strip() for part in line.split(",")]


def _physical_index(device: str) -> str:
    """What nvidia-smi calls torch's ``cuda:N``: an entry of CUDA_VISIBLE_DEVICES where that is set."""
    index = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)
