"""What runs on the nodes of a Ray cluster: the body of a task, and the board on which tasks tell of their progress.

Ray decides where a task runs and says when its worker dies; the local engine carries the job out. Each Ray worker
process keeps one :class:`~fitwithin.engine.local.Local`, whose server has imported torch and forks a fresh process for
every job; later tasks in the same worker find it ready. When the Ray worker ends, however it ends, so do the server and
its children (:func:`fitwithin.machine.die_with_parent`): Ray runs a task in its worker's main thread, the server's
parent.

Two machines' monotonic clocks differ. A job's end is an instant on the driver's; :func:`ends_at` gives the worker's.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fitwithin.engine.jobs import EvaluateJob, Job, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import Failure, Outcome, Progress
from fitwithin.errors import FitwithinError
from fitwithin.machine import DeviceName, cores

#: The driver's clock is asked for so many seconds at most; a first connection on a busy machine takes 0.1.
CLOCK_WITHIN_S = 2.0

#: At most so many bytes of what workers print during one job come back to the driver.
MOST_WORDS = 2**16

#: Facts that must be the same on every node: a profile made on one is used on the others.
AGREED = ("fitwithin", "torch", "torchvision", "timm", "name")


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """A task's work: ``job``, or None where only the node's facts are wanted.

    ``until_at`` is an instant on the driver's monotonic clock, ``left_s`` the seconds until then when the call was
    made, at ``called_at`` by the driver's calendar clock (seconds since 1970). ``jobs_per_host`` jobs may be at work on
    the node at once; ``cache`` is the driver's, which all nodes share. ``expected`` are the first node's facts.
    """

    number: str
    job: Job | None
    device: DeviceName
    until_at: float
    left_s: float
    called_at: float
    cache: str
    jobs_per_host: int
    expected: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class TaskResponse:
    """The job's outcome, the node's facts, the last progress, and what workers printed.

    ``lost``: not the job failed but the worker or node that carried it out.
    """

    outcome: Outcome | None
    facts: dict[str, Any]
    lost: bool = False
    progress: Progress | None = None
    words: bytes = b""


class ProgressActor:
    """An actor on the driver's node, with the driver's clock: tasks report progress, the driver reads it.

    Without it no progress is seen, and the time of a call is measured by calendar clocks.
    """

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def now(self) -> float:
        """The present on the driver's monotonic clock."""
        return time.monotonic()

    def tell(self, number: str, progress: Progress) -> None:
        """Keep the progress of that call."""
        self._latest[number] = progress

    def hear(self, number: str) -> Progress | None:
        """The latest progress of that call, once."""
        return self._latest.pop(number, None)


def ends_at(call: TaskRequest, board: Any) -> float:
    """The call's ``until_at`` on this machine's monotonic clock; never too late, however long the call took.

    The board tells the driver's clock; the time left is counted from before the question. So the end is early by the
    time that the question took, mostly a millisecond. If the board does not answer, the two machines' calendar clocks
    give the time since the call, with the difference of these clocks as the error.
    """
    asked_at = time.monotonic()
    try:
        # A future, not ray.get: while a task waits in ray.get, Ray lends its core to another task.
        driver_now: float = board.now.remote().future().result(timeout=CLOCK_WITHIN_S)
    except Exception:  # whatever has become of the board, the job can do without
        return time.monotonic() + call.left_s - max(0.0, time.time() - call.called_at)
    return asked_at + call.until_at - driver_now


def moved(job: Job, seconds: float) -> Job:
    """The job with its end moved by so many seconds, to another clock."""
    if isinstance(job, TrainJob | EvaluateJob):
        return replace(job, until_at=job.until_at + seconds)
    return job


class _Kept:
    """A process server, and a file without a name for what its workers print."""

    def __init__(self, device: DeviceName) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server lives
        self._read = 0
        self.local = Local(device, Path(f"/proc/self/fd/{self._words.fileno()}"))

    def words(self) -> bytes:
        """What was printed since the last call; its last MOST_WORDS bytes."""
        size = os.fstat(self._words.fileno()).st_size
        start, self._read = max(self._read, size - MOST_WORDS), size
        return os.pread(self._words.fileno(), size - start, start)

    def close(self) -> None:
        """End the server."""
        with suppress(OSError):
            self.local.close()
        self._words.close()


#: The one of this Ray worker process, by what its children inherit: device, cache, and the GPU that Ray shows the task.
_kept: dict[tuple[DeviceName, str, str | None], _Kept] = {}


def _keep(device: DeviceName, cache: str) -> _Kept:
    key = (device, cache, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if key not in _kept:
        _drop()
        os.environ["FITWITHIN_CACHE"] = cache
        _kept[key] = _Kept(device)
    return _kept[key]


def _drop() -> None:
    while _kept:
        _kept.popitem()[1].close()


def carry_out(call: TaskRequest, board: Any) -> TaskResponse:
    """The body of a task: the job in a fresh process of this node, with its end where the driver meant it."""
    here_at = ends_at(call, board)
    last: Progress | None = None

    def tell(progress: Progress) -> None:
        nonlocal last
        last = progress
        with suppress(Exception):  # progress is not worth a job
            board.tell.remote(call.number, progress)

    facts: dict[str, Any] = {}
    try:
        kept = _keep(call.device, call.cache)
        kept.local.prepare()
        facts = {**kept.local.describe(), "cores": max(1, cores() // call.jobs_per_host)}
        outcome: Outcome | None = None
        if call.job is not None:
            outcome = _objection(call, call.job, facts)
            if outcome is None:
                job = moved(call.job, here_at - call.until_at)
                outcome = kept.local.run(job, until_at=here_at, on_progress=tell)
        return TaskResponse(outcome=outcome, facts=facts, progress=last, words=kept.words())
    except (FitwithinError, OSError, EOFError) as error:
        # The server is gone or cannot start: the next task in this worker has another one.
        words = b"".join(kept.words() for kept in _kept.values())
        _drop()
        failure = Failure(kind="died", reason=f"on node {_node()}: {error}")
        return TaskResponse(outcome=failure, facts=facts, lost=True, progress=last, words=words)


def _objection(call: TaskRequest, job: Job, facts: dict[str, Any]) -> Failure | None:
    """Why this node must not carry the job out."""
    for name in AGREED:
        if call.expected is not None and facts.get(name) != call.expected.get(name):
            return Failure(
                kind="error",
                reason=f"node {_node()} has {name} {facts.get(name)}, another has {call.expected.get(name)}; "
                f"a run needs nodes of one kind with the same libraries",
            )
    # The folders are there on the driver; a node that does not see them would leave a model nowhere.
    for path in [job.setting.pack, *([job.folder] if isinstance(job, TrainJob | EvaluateJob) else [])]:
        if not Path(path).is_dir():
            return Failure(
                kind="error",
                reason=f"node {_node()} does not see {path}; the run's folder (--out) and the cache "
                f"(FITWITHIN_CACHE) must lie on a file system that all nodes share",
            )
    return None


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
