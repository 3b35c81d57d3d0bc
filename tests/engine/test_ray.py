"""The Ray engine on a real cluster of two nodes on this machine: killed workers, lost nodes, clocks, its words."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from e2e.door import processes_with, until, write_shapes
from fitwithin.accountant import Accountant
from fitwithin.candidate import Candidate
from fitwithin.data import pack_builder
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine import ray_task as remote
from fitwithin.engine.connect import Site
from fitwithin.engine.jobs import EvaluateJob, ProbeJob, TrainJob
from fitwithin.engine.launch import Server
from fitwithin.engine.ray_task import TaskRequest, ends_at, moved
from fitwithin.engine.results import SALVAGE, WEIGHTS, Failure, Probe, Progress, TrainResult
from fitwithin.errors import DeviceError, UsageError
from fitwithin.events import TrialEnded
from fitwithin.files import read_json
from fitwithin.machine import CPU, DeviceName, cores
from fitwithin.pipeline import run as flow
from fitwithin.pipeline import train_phase
from fitwithin.pipeline.context import RunContext, Silent
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.request import Request, parse
from fitwithin.store import Store

MARKER = f"FITWITHIN_RAY_TEST={os.urandom(8).hex()}"

#: Ray looks after its nodes more often than by default, so that the tests do not wait for that.
WATCHFUL = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
STORE = 80 * 2**20
BUDGET_S = 400.0


#: A worker server's number, its Ray worker's, and its children's.
Target = tuple[int, int, list[int]]


@dataclass
class Ground:
    """The cluster, connected to, and packed pictures."""

    cluster: Any
    site: Site
    images: Any
    root: Path
    node_args: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1, "object_store_memory": STORE})

    def add_node(self) -> None:
        self.cluster.add_node(**self.node_args)

    def servers(self) -> list[Target]:
        """Every worker server of the cluster."""
        found = []
        for pid in processes_with(MARKER):
            with suppress(OSError):
                if "fitwithin.worker" in Path(f"/proc/{pid}/cmdline").read_text():
                    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                    if _parent(pid) != os.getpid():  # a child, which has its server's command line, has no children
                        found.append((pid, _parent(pid), [int(child) for child in children]))
        servers = {pid for pid, _, _ in found}
        return [(pid, parent, children) for pid, parent, children in found if parent not in servers]

    def at_work(self) -> Target | None:
        """A server that has children."""
        return next((each for each in self.servers() if each[2]), None)


def _parent(pid: int) -> int:
    found = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def _gone(*pids: int) -> bool:
    """None of them is alive."""
    alive = set(processes_with(MARKER))
    return not alive & set(pids)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A head without cores, and two nodes of one core each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fitwithin[ray]'")
    root = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(*MARKER.split("="))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("FITWITHIN_CACHE", str(root / "cache"))
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "_system_config": WATCHFUL}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            images = pack_builder.build(open_dataset(write_shapes(root / "shapes", 30)), 52)
            with Server() as server, Site("ray", cluster.address, server) as site:
                ground = Ground(cluster, site, images, root)
                ground.add_node()
                ground.add_node()
                yield ground
        finally:
            cluster.shutdown()


def asked(**words: Any) -> Request:
    limits = {"memory": "900MiB", "time": BUDGET_S, "recipe": "upright", "sizes": "32", "test_sizes": "32"}
    return replace(parse("shapes", **{**limits, **words}), engine="ray")


@pytest.fixture
def run(ground: Ground, tmp_path: Path) -> Iterator[RunContext]:
    """A run that stands before its first trial."""
    request = asked()
    with ground.site.open(request, None) as engine:
        began_at = engine.now()
        store = Store()
        yield RunContext(
            request=request,
            folder=tmp_path / "run",
            engine=engine,
            store=store,
            accountant=Accountant(store, request.budget, engine.now, started_at=began_at),
            reporter=Silent(),
            candidates=(),
            images=ground.images,
            workers=1,
            closing_s=0.0,
        )


#: Of a trial's training: two or three seconds, more than twice the assassin's patience.
STEPS = 200


def trial(px: int, *, steps: int = STEPS, allotted_s: float = 40.0) -> TrialPlan:
    """Some seconds of training at that size."""
    return TrialPlan(
        candidate=Candidate(model="test_resnet", train_px=px, precision="fp32"),
        parameters=1,
        batch=8,
        steps=steps,
        epochs=steps * 8 / 96,
        images_per_s=800.0,
        dummy_images_per_s=800.0,
        predicted_s=4.0,
        predicted_low_s=4.0,
        predicted_high_s=4.0,
        validation_s=0.1,
        save_s=0.02,
        evaluation_s=0.1,
        allotted_s=allotted_s,
        why=(),
    )


def planned(run: RunContext, *trials: TrialPlan) -> Plan:
    return Plan(trials=trials, rejections=(), request=run.request, fingerprint="", frozen=True)


@dataclass
class Assassin:
    """A thread that strikes at random moments of a trial, ``a_trial`` times in each of ``trials``, ``wanted`` in all.

    From the second strike of a trial on there is a checkpoint to go on from.

    ``struck`` is what it did: the trial, and the steps that had been taken at the trial's last checkpoint.
    """

    ground: Ground
    run: RunContext
    trials: tuple[TrialPlan, ...]
    strike: Callable[[Target], None]
    rng: random.Random
    a_trial: int
    wanted: int
    struck: list[tuple[str, int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        while not self.over.is_set() and len(self.struck) < self.wanted:
            name = self.at()
            strikes = sum(name == other for other, _ in self.struck)
            target = self.ground.at_work() if name and strikes < self.a_trial else None
            if target is None or name is None or (strikes and not self.steps_saved(name)):
                time.sleep(0.02)
                continue
            # Somewhere between the start of its process and the last steps, of which enough are left for a second time.
            time.sleep(self.rng.uniform(0.0, 0.7))
            if self.at() != name or not set(target[2]) <= set(processes_with(MARKER)):
                continue  # it had ended
            saved = self.steps_saved(name)
            self.strike(target)
            self.struck.append((name, saved))
            until(lambda jobs=target[2]: _gone(*jobs), 4.0, why="the job outlived its worker")
            if _gone(target[1]):
                until(lambda server=target[0]: _gone(server), 4.0, why="the server outlived its Ray worker")

    def steps_saved(self, name: str) -> int:
        """The steps that had been taken at the trial's last checkpoint."""
        mine = next(each for each in self.trials if each.candidate.name == name)
        left = read_json(TrainResult, train_phase.trial_folder(self.run.folder, mine) / SALVAGE)
        return left.steps if left else 0

    def at(self) -> str | None:
        """The trial whose entry is open."""
        return next((entry.key for entry in self.run.accountant.ledger().entries if entry.charged_s is None), None)


def carried_out(run: RunContext, plan: Plan, assassin: Assassin) -> dict[str, TrainResult]:
    """The plan's trials, trained while somebody strikes; what the books must tell afterwards."""
    thread = threading.Thread(target=assassin, name="assassin")
    began_at = run.accountant.started_at
    thread.start()
    try:
        flow.train(run, plan)
    finally:
        assassin.over.set()
        thread.join()
    books = run.accountant.ledger()
    wall_s = run.engine.now() - began_at
    assert books.balanced
    assert not any(entry.abandoned for entry in books.entries)
    assert books.spent_s() <= wall_s <= BUDGET_S
    assert books.spent_s(gpu=True) == pytest.approx(books.spent_s(), abs=0.5)
    for each, entry in zip(plan.trials, books.entries, strict=True):
        assert entry.key == each.candidate.name
        assert entry.charged_s is not None
        assert entry.charged_s <= max(each.allotted_s, entry.reserved_s)
    outcomes = {}
    for event in run.store.read(TrialEnded):
        assert event.trained is not None, event
        outcomes[event.name] = event.trained
        assert (run.folder / "candidates" / event.name / WEIGHTS).is_file()
    assert set(outcomes) == {each.candidate.name for each in plan.trials}
    return outcomes


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("wanted", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_workers_cost_no_trial(
    ground: Ground, run: RunContext, monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    """kill -9, twice a trial: of the Ray worker, with which its server and its job die, then of the job alone.

    The trial goes on from its checkpoint and ends whole.
    """
    monkeypatch.setattr(train_phase, "checkpoint_every_s", lambda *_: 0.2)
    sizes = range(24, 24 + wanted + 2, 2)
    plan = planned(run, *(trial(px) for px in sizes))

    killed: list[int] = []

    def kill(target: Target) -> None:
        _, worker, (job, *_) = target
        killed.append(job if len(killed) % 2 else worker)
        os.kill(killed[-1], signal.SIGKILL)

    assassin = Assassin(ground, run, plan.trials, kill, random.Random(0), a_trial=2, wanted=wanted)
    begun_at = time.monotonic()
    outcomes = carried_out(run, plan, assassin)
    took_s = time.monotonic() - begun_at
    killed = {name for name, _ in assassin.struck}
    print(
        f"{len(assassin.struck)} kills in {len(killed)} of {len(plan.trials)} trials, {took_s:.1f} s: {assassin.struck}"
    )
    assert len(assassin.struck) >= wanted
    assert all((trained.ended, trained.steps) == ("complete", STEPS) for trained in outcomes.values())
    assert sum(steps > 0 for _, steps in assassin.struck) >= max(1, wanted // 4), "some had a checkpoint to go on from"


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("wanted", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_lost_nodes_cost_no_trial(
    ground: Ground, run: RunContext, monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    """The node that a trial is at work on is lost; others take over."""
    monkeypatch.setattr(train_phase, "checkpoint_every_s", lambda *_: 0.2)

    def lose(target: Target) -> None:
        raylet = _parent(target[1])
        node = next(
            node
            for node in ground.cluster.worker_nodes
            if raylet in {each.process.pid for kind in node.all_processes.values() for each in kind}
        )
        ground.cluster.remove_node(node, allow_graceful=False)

    for _ in range(wanted):
        ground.add_node()
    plan = planned(run, *(trial(px) for px in (32, 40, 48)[:wanted]))
    assassin = Assassin(ground, run, plan.trials, lose, random.Random(1), a_trial=1, wanted=wanted)
    begun_at = time.monotonic()
    outcomes = carried_out(run, plan, assassin)
    print(f"{len(assassin.struck)} nodes lost in {time.monotonic() - begun_at:.1f} s: {assassin.struck}")
    assert len(assassin.struck) == wanted
    assert all((trained.ended, trained.steps) == ("complete", STEPS) for trained in outcomes.values())


# --- one thing at a time ---------------------------------------------------------------------------------------------


def train_job(run: RunContext, folder: Path, **changes: Any) -> TrainJob:
    """A trial that would last for a minute."""
    job = TrainJob(
        setting=run.setting,
        candidate=Candidate(model="test_resnet", train_px=32, precision="fp32"),
        batch=4,
        steps=10**6,
        folder=str(folder),
        until_at=run.engine.now() + 60.0,
        step_s=0.02,
        validation_s=0.2,
        save_s=0.05,
        checkpoint_every_s=0.3,
        frozen=True,
    )
    return replace(job, **changes)


@pytest.mark.slow
def test_a_killed_worker_died_and_says_so(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        target = ground.at_work()
        if target is not None:
            with suppress(ProcessLookupError):
                os.kill(target[1], signal.SIGKILL)

    job = train_job(run, tmp_path / "trial")
    ended = run.engine.run(job, until_at=job.until_at, on_progress=kill)
    assert isinstance(ended, Failure)
    assert ended.kind == "died"
    assert "its worker process or its node was lost" in ended.reason


@pytest.mark.slow
def test_a_lost_worker_says_nothing_of_the_batch_that_was_tried(ground: Ground, run: RunContext) -> None:
    """A probe has no checkpoint and must not be taken for a batch that is too large: it is asked for again."""
    killed: list[int] = []

    def kill() -> None:
        for _ in range(2):
            target = until(lambda: (found := ground.at_work()) and found[1] not in killed and found, 60)
            os.kill(target[1], signal.SIGKILL)
            killed.append(target[1])

    thread = threading.Thread(target=kill)
    thread.start()
    job = ProbeJob(setting=run.setting, candidate=trial(32).candidate, batch=8, timed=True)
    found = run.engine.run(job, until_at=run.engine.now() + 120, on_progress=lambda progress: None)
    thread.join()
    assert len(killed) == 2
    assert isinstance(found, Probe), found
    assert found.passed, found.reason


@pytest.mark.slow
def test_the_server_alone_is_replaced(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    """The Ray worker lives on; the next task in it has a server again."""

    def kill(progress: Progress) -> None:
        target = ground.at_work()
        if target is not None:
            with suppress(ProcessLookupError):
                os.kill(target[0], signal.SIGKILL)

    job = train_job(run, tmp_path / "trial")
    ended = run.engine.run(job, until_at=job.until_at, on_progress=kill)
    assert isinstance(ended, Failure)
    assert ended.kind == "died"
    job = replace(job, folder=str(tmp_path / "another"), steps=20)
    again = run.engine.run(job, until_at=job.until_at, on_progress=lambda progress: None)
    assert isinstance(again, TrainResult), again


@pytest.mark.slow
def test_a_job_that_falls_silent_hangs(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        target = ground.at_work()
        for pid in target[2] if target else []:
            os.kill(pid, signal.SIGSTOP)

    job = train_job(run, tmp_path / "trial", heartbeat_timeout_s=2.0)
    ended = run.engine.run(job, until_at=job.until_at, on_progress=stop)
    assert isinstance(ended, Failure)
    assert (ended.kind, ended.reason) == ("hung", "nothing was heard of the worker for 2 s")


@pytest.mark.slow
def test_a_ray_worker_that_stands_still_is_given_up_at_the_end(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    """It can neither end its job nor say a word; what it started ends with it in the end."""
    stopped: list[Target] = []

    def stop(progress: Progress) -> None:
        target = ground.at_work()
        if target is not None and not stopped:
            stopped.append(target)
            os.kill(target[1], signal.SIGSTOP)

    until_at = run.engine.now() + 10.0  # on a busy machine its first word takes half of that
    ended = run.engine.run(train_job(run, tmp_path / "trial", until_at=until_at), until_at=until_at, on_progress=stop)
    late_s = run.engine.now() - until_at
    assert isinstance(ended, Failure)
    assert ended.kind == "deadline"
    assert late_s < 1.6, late_s
    (target,) = stopped
    os.kill(target[1], signal.SIGKILL)
    until(lambda: _gone(*target[2]), 4.0, why="the job")


@pytest.mark.slow
def test_without_the_board_a_job_goes_on(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    """Progress and the driver's clock come from an actor; the next job after its end does without, or has a new one."""
    import ray

    heard: list[Progress] = []

    def kill(progress: Progress) -> None:
        if not heard:
            ray.kill(run.engine._board)  # type: ignore[attr-defined]
        heard.append(progress)

    until_at = run.engine.now() + 60.0
    job = train_job(run, tmp_path / "trial", steps=150, until_at=until_at)
    done = run.engine.run(job, until_at=until_at, on_progress=kill)
    assert isinstance(done, TrainResult), done
    assert heard
    done = run.engine.run(replace(job, folder=str(tmp_path / "2"), steps=20), until_at=until_at, on_progress=kill)
    assert isinstance(done, TrainResult), done
    ended = run.engine.run(
        replace(job, folder=str(tmp_path / "3"), steps=10**6, until_at=run.engine.now() + 60),
        until_at=(soon_at := run.engine.now() + 2.5),
        on_progress=kill,
    )
    assert isinstance(ended, Failure)
    assert ended.kind == "deadline"
    assert soon_at - 0.1 <= run.engine.now() < soon_at + 0.6


@pytest.mark.slow
def test_several_threads_have_jobs_on_several_nodes(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    assert run.engine.max_parallel(8, 2**30) >= 2
    assert run.engine.max_parallel(1, 2**30) == 1
    until_at = run.engine.now() + 80.0
    with ThreadPoolExecutor(2) as pool:
        done: list[Future[Any]] = [
            pool.submit(
                run.engine.run,
                # So many that the first is still at work when a busy machine has started the second.
                train_job(run, tmp_path / str(number), steps=600, until_at=until_at),
                until_at=until_at,
                on_progress=lambda progress: None,
            )
            for number in range(2)
        ]
        until(lambda: sum(bool(children) for *_, children in ground.servers()) == 2, 60, why="both are at work at once")
        assert all(isinstance(each.result(), TrainResult) for each in done)


@pytest.mark.slow
def test_closing_ends_what_is_at_work(ground: Ground, run: RunContext, tmp_path: Path) -> None:
    job = train_job(run, tmp_path / "trial")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run.engine.run, job, until_at=job.until_at, on_progress=lambda progress: None)
        target = until(ground.at_work, 20, why="it is at work")
        began_at = time.monotonic()
        run.engine.close()
        outcome = ended.result(timeout=5)
        assert isinstance(outcome, Failure)
        assert outcome.kind == "died"
        until(lambda: _gone(target[0], *target[2]), 4.0, why="the job")
        assert time.monotonic() - began_at < 5


@pytest.mark.slow
def test_a_node_that_does_not_see_the_data_says_which_and_what_to_do(
    ground: Ground, run: RunContext, tmp_path: Path
) -> None:
    job = train_job(run, tmp_path / "trial")
    ended = run.engine.run(
        replace(job, setting=replace(job.setting, pack="elsewhere")), until_at=job.until_at, on_progress=lambda _: None
    )
    assert isinstance(ended, Failure)
    assert ended.kind == "error"
    assert f"does not see {Path('elsewhere').resolve()}; the run's folder" in ended.reason


@pytest.mark.slow
def test_a_cluster_without_gpus_says_so(ground: Ground) -> None:
    with pytest.raises(UsageError, match=r"--device cuda was given, but the Ray cluster of \d nodes has no GPU"):
        ground.site.device("cuda")
    with pytest.raises(UsageError, match="'cuda:1' is not a device of a Ray cluster"):
        ground.site.device("cuda:1")
    assert ground.site.device("auto") == CPU


@pytest.mark.slow
def test_on_gpus_a_task_holds_a_whole_one_of_the_kind_there_is_most_of(
    ground: Ground, run: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that say they have GPUs, and a nvidia-smi that says so too: everything but CUDA itself."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'A card, 1.2, 1024'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    usual = {"num_cpus": 0, "object_store_memory": STORE}
    nodes = [
        ground.cluster.add_node(**usual, num_gpus=2, resources={"accelerator_type:A": 1}),
        ground.cluster.add_node(**usual, num_gpus=1, resources={"accelerator_type:B": 1}),
    ]
    try:
        assert ground.site.device("auto") == DeviceName(kind="cuda")
        with ground.site.open(replace(asked(), device=DeviceName(kind="cuda")), None) as engine:
            facts = engine.describe()
            assert (facts["name"], facts["engine"], facts["device"]) == ("A card", "ray", "cuda:0")
            assert facts["cores"] == max(1, cores() // 2), "two GPUs share the node's cores"
            assert engine.max_parallel(8, 2**30) == 2, "B is another kind"
            (server,) = [pid for pid, parent, _ in ground.servers() if "A" in _kind_of(ground, nodes, parent)]
            environment = Path(f"/proc/{server}/environ").read_bytes().split(b"\0")
            assert {b"CUDA_VISIBLE_DEVICES=0", b"CUDA_VISIBLE_DEVICES=1"} & set(environment)
            job = train_job(run, tmp_path / "trial")
            job = replace(job, setting=replace(job.setting, device=DeviceName(kind="cuda")))
            ended = engine.run(job, until_at=job.until_at, on_progress=lambda progress: None)
            assert isinstance(ended, Failure)
            assert ended.kind == "error", ended
            assert not _gone(server), "Ray did not end the worker after its task"
    finally:
        for node in nodes:
            ground.cluster.remove_node(node, allow_graceful=False)


def _kind_of(ground: Ground, nodes: list[Any], worker: int) -> str:
    """Which of the nodes, A or B, that Ray worker belongs to."""
    raylet = _parent(worker)
    for kind, node in zip("AB", nodes, strict=True):
        if raylet in {each.process.pid for processes in node.all_processes.values() for each in processes}:
            return kind
    return ""


# --- without a cluster -----------------------------------------------------------------------------------------------


class _Refused:
    """A board whose answers are these."""

    def __init__(self, answer: Callable[[], float]) -> None:
        self.now = self
        self._answer = answer

    def remote(self) -> Future[float]:
        found: Future[float] = Future()
        try:
            found.set_result(self._answer())
        except OSError as error:
            found.set_exception(error)
        return _Reference(found)  # type: ignore[return-value]


@dataclass
class _Reference:
    value: Future[float]

    def future(self) -> Future[float]:
        return self.value


def call(**words: Any) -> TaskRequest:
    usual = {"number": "1", "job": None, "device": CPU, "until_at": 1e6, "left_s": 100.0, "cache": "/x"}
    return TaskRequest(**{**usual, "called_at": time.time(), "jobs_per_host": 1, "expected": None, **words})


def test_the_end_is_the_drivers_whatever_the_worker_believes_the_time_to_be() -> None:
    """The driver's clock is a million seconds ahead; the question takes 50 ms to arrive, the answer as long."""

    def answer() -> float:
        time.sleep(0.05)
        now = 1e6 - 70.0
        time.sleep(0.05)
        return now

    asked_at = time.monotonic()
    here_at = ends_at(call(), _Refused(answer))
    true_at = asked_at + 0.05 + 70.0
    assert true_at - 0.1 <= here_at <= true_at


def test_without_the_board_calendar_clocks_tell_what_has_passed() -> None:
    def refuse() -> float:
        raise OSError("gone")

    board = _Refused(refuse)
    assert ends_at(call(called_at=time.time() - 30), board) - time.monotonic() == pytest.approx(70.0, abs=0.1)
    ahead = ends_at(call(called_at=time.time() + 30), board)
    assert ahead - time.monotonic() <= 100.0, "a call from the future has not won time"


def test_the_instants_in_a_job_move_with_its_end(tmp_path: Path) -> None:
    setting: Any = None
    candidate = Candidate(model="test_resnet", train_px=32, precision="fp32")
    evaluate = EvaluateJob(
        setting=setting, candidate=candidate, batch=1, folder="", views=(), splits=(), until_at=100.0
    )
    assert moved(evaluate, -30.0) == replace(evaluate, until_at=70.0)
    probe = ProbeJob(setting=setting, candidate=candidate, batch=1)
    assert moved(probe, -30.0) == probe


def _site(address: str | None) -> None:
    with Server() as server, Site("ray", address, server):
        pytest.fail("it must not come so far")


def test_what_workers_print_comes_back_once_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    kept = remote._Kept(CPU)
    try:
        assert kept.words() == b""
        with kept.local.server.log.open("ab") as log:  # type: ignore[union-attr]
            log.write(b"one\n")
        assert kept.words() == b"one\n"
        assert kept.words() == b""
        with kept.local.server.log.open("ab") as log:  # type: ignore[union-attr]
            log.write(b"x" * remote.MOST_WORDS + b"the end")
        words = kept.words()
        assert len(words) == remote.MOST_WORDS
        assert words.endswith(b"the end")
    finally:
        kept.close()


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--engine ray needs Ray; install it with: pip install 'fitwithin\[ray\]'"):
        _site(None)


def test_an_address_where_nobody_listens_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fitwithin[ray]'")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun_at = time.monotonic()
    with pytest.raises(DeviceError, match=rf"there is no Ray cluster at 127.0.0.1:{port} .*refused.*`ray start"):
        _site(f"127.0.0.1:{port}")
    assert time.monotonic() - begun_at < 6
    with pytest.raises(UsageError, match="ray://head:10001 is an address for Ray Client"):
        _site("ray://head:10001")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"engine": "spark"}, "'spark' is not an engine; choose from local, ray"),
        ({"ray_address": "auto"}, "--ray-address auto was given without --engine ray"),
        ({"engine": "ray", "jobs": 4}, "--jobs 4 would hold several GPUs of the cluster at once"),
        ({"engine": "ray", "emulate_device_memory": "8GiB", "device": "cuda:0"}, "--emulate-device-memory would hold"),
    ],
)
def test_wrong_words_about_engines_are_named(words: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse("photos", memory="6GiB", time="3h", **words)
