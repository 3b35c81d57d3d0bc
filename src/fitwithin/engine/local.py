"""The local engine: every job in a fresh process of this machine, ended at its deadline whatever it does."""

from __future__ import annotations

import math
import os
import platform
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from fitwithin.engine.jobs import (
    Job,
    ReserveMemoryJob,
    Seat,
    evaluates_in_process,
    heartbeat_timeout_s,
    processes,
)
from fitwithin.engine.launch import ENDED, STARTED, Server, allocator, receive
from fitwithin.engine.results import Failure, Outcome, Progress, TrainResult
from fitwithin.engine.threads import Threads
from fitwithin.engine.worker_process import Child, Standby, listen, merged
from fitwithin.errors import DeviceError
from fitwithin.machine import DeviceName, cpu_name
from fitwithin.version import __version__

#: How long forking a process may take before something is wrong.
STARTED_WITHIN_S = 60.0

#: What a process may hold beside its cap where that leaves the CUDA context out.
CONTEXT_BYTES = 2**30


class Local:
    """A process server, launched at once so that its imports overlap with reading the data, and its children.

    Args:
        device: the first device; a job of several processes, or of another slot, uses those that follow it.
        log: a file for what workers print.
        emulate_bytes: of the GPU's memory so much is left free, the rest is held: a small card inside a big one.
        gpus: so many of them from ``device`` on are worked with.
        server: a server that was launched already; it has a log of its own.
    """

    #: The process of a turn can go on with its model's evaluation.
    evaluates_in_process = True

    def __init__(
        self,
        device: DeviceName,
        log: Path | None = None,
        *,
        emulate_bytes: int | None = None,
        server: Server | None = None,
        gpus: int = 1,
    ) -> None:
        self.device = device
        self.emulate_bytes = emulate_bytes
        self._devices = [device.next(place) for place in range(gpus)]
        self.server = server if server is not None else Server(log)
        self._holders: list[Connection] = []
        #: The processes that stay for an evaluation, and what closes each.
        self._staying: Standby[tuple[Child, ExitStack]] = Standby()
        self._asking = threading.Lock()
        #: nvidia-smi is a process to wait for; meanwhile there is something else to do.
        self._facts: Future[dict[str, Any]] = Future()
        threading.Thread(target=self._gather_facts, name="facts", daemon=True).start()

    def describe(self) -> dict[str, Any]:
        """Device, driver and versions, without starting CUDA here; gathered once."""
        return dict(self._facts.result())

    def _gather_facts(self) -> None:
        try:
            self._facts.set_result(self._gather())
        except BaseException as error:
            self._facts.set_exception(error)

    def _gather(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "device": str(self.device),
            "platform": platform.platform(),
            "python": platform.python_version(),
        }
        facts.update({name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")})
        facts["fitwithin"] = __version__
        facts["name"] = cpu_name()
        facts["cpu"] = facts["name"]
        if self.device.is_cuda:
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

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def prepare(self, until_at: float = math.inf) -> bool:
        """Wait until the server has imported everything, no longer than ``until_at``; DeviceError if it cannot."""
        if not self.server.await_ready(until_at):
            return False
        if self.emulate_bytes is not None and not self._holders:
            for device in self._devices:
                self._hold(device, self.emulate_bytes)
        return True

    def _hold(self, device: DeviceName, free_bytes: int) -> None:
        holder = self._fork()
        connection = holder.connection
        holder.status.close()
        connection.send((ReserveMemoryJob(device=device, free_bytes=free_bytes), time.monotonic(), Seat()))
        if not connection.poll(STARTED_WITHIN_S):
            raise DeviceError(f"{device} did not give its memory within {STARTED_WITHIN_S:g} s")
        try:
            _, answer = connection.recv()
        except EOFError as error:
            raise DeviceError(f"the process that was to hold the memory of {device} ended") from error
        if isinstance(answer, Failure):
            raise DeviceError(f"{answer.reason}; choose a smaller --emulate-device-memory, or free the device")
        self._holders.append(connection)  # the memory is held until this closes

    def _fork(self) -> Child:
        """A fresh process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        status, reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        connection = Connection(ours.detach())
        try:
            with theirs, reports:
                self._ask([theirs.fileno(), reports.fileno()])
            kind, pid = receive(status, STARTED_WITHIN_S)
            assert kind == STARTED
        except BaseException:
            connection.close()
            status.close()
            raise
        return Child(connection, status, pid)

    def max_parallel(self, wanted: int, memory_bytes: int) -> int:
        """How many jobs of that memory the devices can take at once now, ``wanted`` at most and one at least."""
        if wanted <= 1 or not self.device.is_cuda:
            return 1
        free_bytes = min(int(_nvidia_smi("memory.free", device)[0]) for device in self._devices) * 2**20
        return max(1, min(wanted, free_bytes // (memory_bytes + CONTEXT_BYTES)))

    def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        """Run the job in fresh processes until they end or ``until_at`` comes; several threads may ask at once."""
        if not self.prepare(until_at):
            return Failure(kind="deadline", reason="its time was over before the workers had started")
        asked_at = time.monotonic()
        children: list[Child] = []
        with ExitStack() as open_things:
            try:
                seats = open_things.enter_context(_seats(job))
                children += self._stayed(job, open_things)
                for seat in seats:
                    if len(children) <= seat.rank:
                        children.append(open_things.enter_context(closing(self._fork())))
                    with suppress(BrokenPipeError):  # gone, as will be heard
                        children[seat.rank].connection.send((job, asked_at, seat))
                ended = listen(children, until_at, heartbeat_timeout_s(job), on_progress)
                first = children[0]
                if ended is None and evaluates_in_process(job) and isinstance(first.answer, TrainResult):
                    self._staying.add(job, (first, open_things.pop_all()))
                    return first.answer
                for child in children:
                    child.code = _end(child.status, child.pid, killed=child.killed)
            except BaseException:
                for child in children:  # an interrupt: nothing may go on behind our back, other jobs apart
                    child.kill()
                raise
        return ended or merged([child.outcome() for child in children])

    def _stayed(self, job: Job, open_things: ExitStack) -> list[Child]:
        """The process that stays for that job. Others that must end for it are killed: where it is not done by one that
        stays, it waits until they are gone with the memory that they had."""
        able, others = self._staying.part(job)
        ending = ExitStack()
        for child, closes in others:
            child.kill()
            ending.push(closes)
            ending.callback(_end, child.status, child.pid, killed=True)
        if able is None:
            ending.close()
            return []
        open_things.push(ending)
        child, closes = able
        open_things.push(closes)
        child.answer = None
        return [child]

    def crew(self, count: int) -> Threads:
        """Threads that may ask for jobs; they end with the server."""
        return Threads(count, self.close)

    def _ask(self, fds: list[int]) -> None:
        with self._asking:
            socket.send_fds(self.server.control, [b"J"], fds)

    def close(self) -> None:
        """End the server, and with it any child."""
        for holder in self._holders:
            holder.close()
        for _, closes in self._staying.all():
            closes.close()
        self.server.close()

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _seats(job: Job) -> Iterator[list[Seat]]:
    """The seats of the processes that do the job together, and the folder of the file at which they meet."""
    if (size := processes(job)) == 1:
        yield [Seat()]
        return
    with tempfile.TemporaryDirectory(prefix="fitwithin-") as scratch:
        yield [Seat(rank=rank, world_size=size, rendezvous=str(Path(scratch) / "meeting")) for rank in range(size)]


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


def _nvidia_smi(fields: str, device: DeviceName) -> list[str]:
    """Those facts of the device, without starting CUDA here."""
    number = _physical_index(device.index)
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={number}"]
    line = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    return [part.strip() for part in line.split(",")]


def _physical_index(index: int) -> str:
    """What nvidia-smi calls torch's GPU number ``index``: an entry of CUDA_VISIBLE_DEVICES where that is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)
