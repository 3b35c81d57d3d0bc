"""The Ray engine: every job is a task of a Ray cluster, whose body is the local engine of the node that Ray chose.

A task holds one whole GPU (on the CPU: one core). Ray never repeats it: pipeline/train_phase.py decides what follows a
failure. The ledger, the plan and the store stay with the driver, this process. Data and models go by path, on a file
system that all nodes share. When the driver ends, however it ends, Ray ends its tasks.

``import ray`` takes 0.8 s, so it stands inside functions.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitwithin.engine.jobs import EvaluateJob, Job, TrainJob
from fitwithin.engine.launch import READY_WITHIN_S
from fitwithin.engine.margins import RAY_ANSWER_S
from fitwithin.engine.ray_task import ProgressActor, TaskRequest, TaskResponse, carry_out
from fitwithin.engine.results import Failure, FailureKind, Outcome, Progress, check_disk
from fitwithin.engine.threads import Threads
from fitwithin.errors import DeviceError
from fitwithin.files import cache_root
from fitwithin.machine import DeviceName

#: Seconds between looks at the board.
LOOK_S = 0.2

#: After a task was killed its device is waited for so long, in seconds.
FREED_WITHIN_S = 1.0

#: A job that was lost with its worker or node is tried so often; a trial is not, it goes on from its checkpoint.
ATTEMPTS = 3


class Cluster:
    """The tasks of one driver on a Ray cluster that it is connected to (:mod:`fitwithin.engine.connect` does that).

    Args:
        device: ``cpu``, or ``cuda:0``: the GPU that Ray shows the task.
        gpus: the kind of GPU (Ray's accelerator type) that jobs must run on, where the cluster has several.
        slots: how many jobs can be at work at once.
        jobs_per_host: how many of them on one node.
        log: a file for what workers print.
    """

    #: A task ends with its job, and frees its GPU.
    evaluates_in_process = False

    def __init__(
        self,
        device: DeviceName,
        *,
        gpus: str | None,
        slots: int,
        jobs_per_host: int,
        log: Path | None,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.device, self._slots, self._jobs_per_host, self._log = device, slots, jobs_per_host, log
        # max_calls: Ray would end a worker after each GPU task, and with it the server that has imported torch.
        held: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1} if device.is_cuda else {"num_cpus": 1}
        if gpus is not None:
            held["accelerator_type"] = gpus
        self._task = ray.remote(max_retries=0, max_calls=0, **held)(carry_out)
        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, scheduling_strategy=here)(ProgressActor)
        self._board = board.remote()
        self._lock, self._preparing = threading.Lock(), threading.Lock()
        self._at_work: set[Any] = set()
        self._facts: dict[str, Any] | None = None
        self._first = self._ask_for_facts()  # a node imports torch and timm while the data are read here

    def _ask_for_facts(self) -> Any:
        return self._submit(self._call(None, time.monotonic() + READY_WITHIN_S))

    def _call(self, job: Job | None, until_at: float) -> TaskRequest:
        return TaskRequest(
            number=uuid.uuid4().hex,
            job=job,
            device=self.device,
            until_at=until_at,
            left_s=until_at - time.monotonic(),
            called_at=time.time(),
            cache=str(cache_root().resolve()),
            jobs_per_host=self._jobs_per_host,
            expected=self._facts,
        )

    def _submit(self, call: TaskRequest) -> Any:
        task = self._task.remote(call, self._board)
        with self._lock:
            self._at_work.add(task)
        return task

    def describe(self) -> dict[str, Any]:
        """The facts of the node that answered first; every other must have the same device and libraries.

        ``cores`` are those of one job: a node's cores, shared among its GPUs.
        """
        self.prepare()
        assert self._facts is not None
        return dict(self._facts)

    def prepare(self, until_at: float = math.inf) -> bool:
        """Wait until a node has imported torch and timm, or until ``until_at``; whether one has.

        Raises:
            DeviceError: no node can, or none became free within READY_WITHIN_S.
        """
        import ray

        with self._preparing:
            for attempt in range(ATTEMPTS):
                if self._facts is not None:
                    return True
                if attempt:
                    self._first = self._ask_for_facts()
                left_s = max(0.0, until_at - time.monotonic())
                if not ray.wait([self._first], timeout=min(READY_WITHIN_S, left_s))[0]:
                    if left_s < READY_WITHIN_S:
                        return False
                    self._kill(self._first)
                    kind = "GPU" if self.device.is_cuda else "core"
                    raise DeviceError(
                        f"no {kind} of the Ray cluster became free within {READY_WITHIN_S:g} s; wait for what holds "
                        f"them (`ray status` shows it), or add a node"
                    )
                answer = self._taken(self._first)
                if answer.outcome is None:
                    self._facts = {**answer.facts, "engine": "ray", "ray": ray.__version__}
                    return True
            assert isinstance(answer.outcome, Failure)
            raise DeviceError(f"no job can start on the Ray cluster: {answer.outcome.reason}")

    def max_parallel(self, wanted: int, memory_bytes: int) -> int:
        """How many jobs the cluster takes at once, from one to ``wanted``: each has a GPU, or a core, of its own."""
        del memory_bytes
        return max(1, min(wanted, self._slots))

    def now(self) -> float:
        """Monotonic seconds of the driver."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def run(self, job: Job, *, until_at: float, on_progress: Callable[[Progress], None]) -> Outcome:
        """Run the job as a task until it ends or ``until_at`` comes; several threads may ask at once.

        A trial whose Ray worker or node was lost is a Failure of kind ``died``; asked for again, it goes on from its
        checkpoint. Other jobs are repeated here while their time lasts: a lost node says nothing of the batch.
        """
        if not self.prepare(until_at):
            return Failure(kind="deadline", reason="its time was over before a worker had started")
        setting = replace(job.setting, pack=os.path.abspath(job.setting.pack))
        if isinstance(job, TrainJob | EvaluateJob):  # paths that mean the same on every node
            job = replace(job, folder=os.path.abspath(job.folder))
            Path(job.folder).mkdir(parents=True, exist_ok=True)
        job = replace(job, setting=setting)
        for _ in range(ATTEMPTS):
            answer = self._attempt(job, until_at, on_progress)
            if not answer.lost or isinstance(job, TrainJob) or time.monotonic() >= until_at:
                break
        assert answer.outcome is not None
        return check_disk(answer.outcome)

    def _attempt(self, job: Job, until_at: float, on_progress: Callable[[Progress], None]) -> TaskResponse:
        call = self._call(job, until_at)
        task = self._submit(call)
        try:
            if not self._watch(task, call, on_progress):
                self._kill(task)
                return _failed("deadline", "its time was over and the worker was ended")
            answer = self._taken(task)
        except BaseException:
            self._kill(task)  # an interrupt: nothing may go on behind our back
            raise
        finally:
            with self._lock:
                self._at_work.discard(task)
        if answer.words and self._log is not None:
            with self._lock, self._log.open("ab") as log:
                log.write(answer.words)
        if answer.progress is not None:
            on_progress(answer.progress)
        return answer

    def _watch(self, task: Any, call: TaskRequest, on_progress: Callable[[Progress], None]) -> bool:
        """Hand progress on while the task is at work; whether it ended before its time was over."""
        import ray
        from ray.exceptions import RayError

        question: Any = None
        while (left_s := call.until_at + RAY_ANSWER_S - time.monotonic()) > 0:
            if ray.wait([task], timeout=min(left_s, LOOK_S))[0]:
                return True
            if question is not None and ray.wait([question], timeout=0)[0]:
                heard = None
                with suppress(RayError):  # the board is gone, or starts again: the job goes on
                    heard = ray.get(question)
                question = None
                if heard is not None:
                    on_progress(heard)
            if question is None:
                question = self._board.hear.remote(call.number)
        return bool(ray.wait([task], timeout=0)[0])

    def _taken(self, task: Any) -> TaskResponse:
        """What the task that has ended gave back, or how it failed."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        try:
            answer: TaskResponse = ray.get(task)
            return answer
        except RayTaskError as error:
            lines = str(error).strip().splitlines()
            return _failed("error", lines[-1][:300] if lines else "a task failed", trace=str(error))
        except TaskCancelledError:
            return _failed("died", "its task was cancelled")
        except RayError as error:  # a killed worker, a lost node, a host out of memory
            reason = " ".join(str(error).split())[:200]
            return _failed("died", f"its worker process or its node was lost ({reason})", lost=True)

    def _kill(self, task: Any) -> None:
        """End the task and its worker, or take it off the queue; wait shortly until its device is free."""
        import ray

        with suppress(Exception):  # the cluster may be gone, and the task with it
            ray.cancel(task, force=True)
            ray.wait([task], timeout=FREED_WITHIN_S)

    def crew(self, count: int) -> Threads:
        """Threads that may ask for tasks; Ray says where each of them runs."""
        return Threads(count, self.close)

    def close(self) -> None:
        """End every task that is at work, and the board."""
        import ray

        with self._lock:
            left = list(self._at_work)
        for task in left:
            self._kill(task)
        with suppress(Exception):  # it may be gone already
            ray.kill(self._board)


def _failed(kind: FailureKind, reason: str, *, lost: bool = False, trace: str = "") -> TaskResponse:
    return TaskResponse(outcome=Failure(kind=kind, reason=reason, trace=trace), facts={}, lost=lost)
