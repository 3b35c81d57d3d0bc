"""The local engine: every job in a fresh process of this machine, ended at its deadline whatever it does."""

from __future__ import annotations

import math
import os
import platform
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fitwithin.engine.jobs import (
    Job,
    ProbeJob,
    ReserveMemoryJob,
    Seat,
    TrainJob,
    evaluates_in_process,
    heartbeat_timeout_s,
)
from fitwithin.engine.launch import STARTED, Server, allocator, receive
from fitwithin.engine.results import Failure, Outcome, Progress, TrainResult, check_disk
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
        emulate_bytes: so much of a GPU's memory is left free, the rest is held: a small card inside a big one.
        gpus: the number of GPUs to use, from ``device`` on.
        server: a server that was launched already; it has a log of its own.
    """

    #: The process of a trial can evaluate its model too.
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
        #: Gathered in a thread: nvidia-smi takes up to a second.
        self._facts = ThreadPoolExecutor(1, "facts").submit(self._gather)

    def describe(self) -> dict[str, Any]:
        """Device, driver and versions, without starting CUDA here; gathered once."""
        return dict(self._facts.result())

    def _gather(self) -> dict[str, Any]:
        processor = cpu_name()
        facts: dict[str, Any] = {
            "device": str(self.device),
            "platform": platform.platform(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
            "fitwithin": __version__,
            "name": processor,
            "cpu": processor,
        }
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
            with theirs, reports, self._asking:
                socket.send_fds(self.server.control, [b"J"], [theirs.fileno(), reports.fileno()])
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
                    child.await_end()
            except BaseException:
                for child in children:  # an interrupt: nothing may go on behind our back, other jobs apart
                    child.kill()
                raise
        return check_disk(ended or merged([child.outcome() for child in children]))

    def _stayed(self, job: Job, open_things: ExitStack) -> list[Child]:
        """The process that stays for that job, if there is one; those that must end for the job are killed.

        Without one, this waits until they are gone with their memory; else ``open_things`` does, in the end.
        """
        able, others = self._staying.part(job)
        ending = ExitStack()
        for child, closes in others:
            child.kill()
            ending.push(closes)
            ending.callback(child.await_end)
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

    def close(self) -> None:
        """End the server, and with it any child."""
        for holder in self._holders:
            holder.close()
        for _, closes in self._staying.all():
            closes.close()
        self.server.close()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _seats(job: Job) -> Iterator[list[Seat]]:
    """The seats of the processes that do the job together: training is what several share."""
    size = job.setting.data_parallel if isinstance(job, ProbeJob | TrainJob) else 1
    with tempfile.TemporaryDirectory(prefix="fitwithin-") if size > 1 else nullcontext("") as scratch:
        yield [Seat(rank=rank, world_size=size, rendezvous=str(Path(scratch) / "meeting")) for rank in range(size)]


def _nvidia_smi(fields: str, device: DeviceName) -> list[str]:
    """Facts of the device, which nvidia-smi knows by its entry in CUDA_VISIBLE_DEVICES where that is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = visible.split(",")[device.index].strip() if visible else device.index
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={number}"]
    line = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    return [part.strip() for part in line.split(",")]
