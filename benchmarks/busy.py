"""What busy neighbours on the CPU cost a profile and a training, with the waiting of earlier versions and with ours.

    python benchmarks/busy.py

A neighbour is a process that computes all the time, one core's worth. Each figure is images/s of a tiny network through
the product's own worker: a timed probe, and a trial of a fixed number of steps. ``before``: OpenMP's threads spin while
they wait, as they do by default. ``after``: what fitwithin sets. The two are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import ground
from fitwithin.candidate import Candidate
from fitwithin.cli.demo import write_digits
from fitwithin.engine import launch
from fitwithin.engine.jobs import JobSettings, ProbeJob, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import Probe, TrainResult
from fitwithin.machine import CPU

RESULT = ground.ROOT / "benchmarks" / "results" / "busy.json"

CANDIDATE = Candidate(model="test_resnet", train_px=32, precision="fp32")

BATCH, STEPS = 64, 300

#: No measurement lasts longer, in seconds.
WITHIN_S = 240.0


def main() -> None:
    """Measure in turns, with none, one and two neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "digits"
        write_digits(data)
        _, setting = ground.prepared(data, device="cpu", memory="1GiB", sizes="32", workers=1)
        for busy in (0, 1, 2):
            with neighbours(busy):
                for repeat in range(arguments.repeats):
                    for version in ("before", "after"):
                        found = measured(setting, version, Path(scratch) / f"{busy}-{repeat}-{version}")
                        rows.append({"neighbours": busy, "version": version, "repeat": repeat, **found})
                        print(json.dumps(rows[-1]), flush=True)
    with Local(CPU) as engine:
        machine = engine.describe()
    command = f"python benchmarks/busy.py --repeats {arguments.repeats}"
    ground.write(arguments.result, "busy", machine, None, command, summary=summary(rows), rows=rows)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def version_of(name: str) -> Iterator[None]:
    """Workers start as in that version."""
    set_by_us, ours = launch.environment, launch.environment()
    added = {key for key in ours if key.startswith(("OMP_", "GOMP_")) and key not in os.environ}
    try:
        if name == "before":
            launch.environment = lambda: {key: value for key, value in ours.items() if key not in added}
        yield
    finally:
        launch.environment = set_by_us


def measured(setting: JobSettings, version: str, folder: Path) -> dict[str, float]:
    """Images/s of a timed probe and of a trial, each in a fresh process."""
    folder.mkdir()
    with version_of(version), Local(CPU) as engine:
        engine.prepare()
        ends_at = time.monotonic() + WITHIN_S
        job = ProbeJob(setting=setting, candidate=CANDIDATE, batch=BATCH, timed=True, quick=True)
        probe = engine.run(job, until_at=ends_at, on_progress=lambda progress: None)
        assert isinstance(probe, Probe), probe
        assert probe.timing is not None, probe
        trial = TrainJob(
            setting=setting,
            candidate=CANDIDATE,
            batch=BATCH,
            steps=STEPS,
            folder=str(folder),
            until_at=time.monotonic() + WITHIN_S,
            step_s=probe.timing.step_s,
            validation_s=1.0,
            save_s=0.1,
            checkpoint_every_s=math.inf,
            frozen=True,
        )
        trained = engine.run(trial, until_at=trial.until_at, on_progress=lambda progress: None)
        assert isinstance(trained, TrainResult), trained
    return {
        "probe_images_per_s": BATCH / probe.timing.step_s,
        "training_images_per_s": BATCH * trained.steps / trained.training_s,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; how much faster ``after`` is beside neighbours at the least, and what it costs on an idle machine."""
    value: dict[str, Any] = {}
    ratios: dict[int, list[float]] = {}
    for busy in (0, 1, 2):
        for what in ("probe", "training"):
            pace = {
                version: median(
                    row[f"{what}_images_per_s"]
                    for row in rows
                    if row["neighbours"] == busy and row["version"] == version
                )
                for version in ("before", "after")
            }
            ratios.setdefault(busy, []).append(pace["after"] / pace["before"])
            for version, images_per_s in pace.items():
                value[f"{what}_images_per_s_{busy}_neighbours_{version}"] = images_per_s
    value["busy_speedup_min"] = min(ratios[1] + ratios[2])
    value["idle_cost_pct"] = 100 * (1 - min(ratios[0]))
    return value


if __name__ == "__main__":
    main()
