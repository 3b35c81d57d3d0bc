"""What other programs take of the CPU: counted from a made-up /proc, and on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin import machine
from fitwithin.engine.device import threads_beside
from fitwithin.machine import CpuMeter

TICKS = os.sysconf("SC_CLK_TCK")


class FakeProc:
    """A folder like /proc, in which time passes when a test says so."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, cores: int = 2) -> None:
        self.folder = folder
        self.cores = cores
        self.now = 100.0
        self.busy_s = [0.0] * cores
        self.idle_s = [0.0] * cores
        #: The parent of each process, the seconds that it computed, and those of its children that have ended.
        self.processes: dict[int, tuple[int, float, float]] = {10: (1, 0.0, 0.0), 11: (10, 0.0, 0.0)}
        self.processes[12] = (11, 0.0, 0.0)
        self.processes[20] = (1, 0.0, 0.0)
        patch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(cores)))
        patch.setattr(machine.time, "monotonic", lambda: self.now)
        patch.setattr(machine, "_quota", lambda: None)
        self.write()

    def write(self) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
        for number in range(self.cores + 1):  # this process may not run on the last one
            busy, idle = (self.busy_s[number], self.idle_s[number]) if number < self.cores else (1e6 * self.now, 0.0)
            lines.append(f"cpu{number} {round(busy * TICKS)} 0 0 {round(idle * TICKS)} 0 0 0 0 0 0")
        (self.folder / "stat").write_text("\n".join(lines))
        for pid, (parent, own_s, ended_s) in self.processes.items():
            (self.folder / str(pid)).mkdir(exist_ok=True)
            fields = ["S", str(parent), *["0"] * 9, str(round(own_s * TICKS)), "0", str(round(ended_s * TICKS)), "0"]
            (self.folder / str(pid) / "stat").write_text(f"{pid} (a ) 7 name) {' '.join(fields)}")

    def spend(self, seconds: float, **by_pid: float) -> None:
        """So many seconds pass, in which each process, as in ``p12=3``, computes so long."""
        self.now += seconds
        for name, spent_s in by_pid.items():
            parent, own_s, ended_s = self.processes[int(name[1:])]
            self.processes[int(name[1:])] = parent, own_s + spent_s, ended_s
        share = sum(by_pid.values()) / self.cores
        self.busy_s = [busy + share for busy in self.busy_s]
        self.idle_s = [idle + seconds - share for idle in self.idle_s]
        self.write()


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    return FakeProc(tmp_path, monkeypatch)


def test_what_does_not_descend_from_the_run_is_taken_by_others(proc: FakeProc) -> None:
    meter = CpuMeter(10, proc.folder)
    proc.spend(4.0, p11=2.0, p12=1.0, p20=3.0)
    assert meter.free() == pytest.approx(2 - 0.75)
    assert meter.measured_s == pytest.approx(4.0)


def test_a_measurement_can_begin_anew(proc: FakeProc) -> None:
    meter = CpuMeter(10, proc.folder)
    proc.spend(4.0, p20=4.0)
    meter.restart()
    proc.spend(4.0, p12=8.0)
    assert meter.free() == pytest.approx(2.0)


def test_children_that_ended_still_belong_to_the_run(proc: FakeProc) -> None:
    meter = CpuMeter(10, proc.folder)
    proc.spend(4.0, p12=4.0)
    _, own_s, _ = proc.processes.pop(12)
    (proc.folder / "12" / "stat").unlink()
    proc.processes[11] = (10, 0.0, own_s)
    proc.write()
    assert meter.free() == pytest.approx(2.0)


def test_where_nothing_is_counted_nothing_is_known(tmp_path: Path) -> None:
    meter = CpuMeter(1, tmp_path)
    time.sleep(0.01)
    assert meter.free() is None


def test_a_process_that_computes_shows_unless_it_belongs_to_the_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        ours, nobodys = CpuMeter(), CpuMeter(10**9)
        time.sleep(0.5)
        beside_others, beside_all = ours.free(), nobodys.free()
    finally:
        child.kill()
        child.wait()
    if beside_others is None or beside_all is None:
        pytest.skip("this system does not count what processes compute")
    assert 0 <= beside_all < beside_others


SHARING = """
import torch
from fitwithin.engine.device import Cpu
from fitwithin.machine import cores

class Meter:
    measured_s, idle = 60.0, 0

    def free(self):
        return self.idle

    def restart(self):
        pass

device = Cpu()
device.set_memory_cap(1 << 20, "process")
device._meter = meter = Meter()
threads = []
for meter.idle in (0, cores(), 0, cores()):
    device.share_cores()
    with torch.no_grad():
        torch.zeros(1 << 16).exp_().sum()
    threads.append(torch.get_num_threads())
print(*threads, cores(), device.cpu_taken())
"""


def test_threads_follow_the_free_cores_under_a_memory_cap() -> None:
    """A thread that must start when nothing may be mapped any more would end the process."""
    plain = {key: value for key, value in os.environ.items() if "OMP" not in key}
    ended = subprocess.run([sys.executable, "-c", SHARING], env=plain, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    *threads, cores, share = ended.stdout.split()
    assert threads == ["1", cores, "1", cores]
    assert 0 < float(share) < 1


@given(cores=st.integers(1, 64), data=st.data())
def test_more_free_cores_never_mean_fewer_threads(cores: int, data: st.DataObject) -> None:
    most = data.draw(st.integers(1, cores))
    less, more = sorted(data.draw(st.tuples(*[st.floats(0, 2 * cores)] * 2)))
    assert 1 <= threads_beside(less, most, cores) <= threads_beside(more, most, cores) <= most


@pytest.mark.parametrize(
    ("free", "most", "cores", "threads"),
    [
        (2.0, 2, 2, 2),
        (1.7, 2, 2, 2),
        (1.3, 2, 2, 1),
        (0.0, 2, 2, 1),
        (15.0, 16, 16, 15),
        (4.0, 2, 4, 2),
        (2.0, 2, 4, 1),
    ],
)
def test_threads_leave_room_for_others(free: float, most: int, cores: int, threads: int) -> None:
    assert threads_beside(free, most, cores) == threads


def test_busy_cores_beyond_a_quota_cost_no_thread() -> None:
    """A container with two of 64 cores' time, where others use 30: there is room for both."""
    assert threads_beside(34.0, 2, 2) == 2
