"""What busy neighbours on the CPU cost a profile and a training, with a fixed number of threads and with ours.

    python benchmarks/busy.py

A neighbour is another training of a small network, with what PyTorch sets: a thread for each core, which spin while
they wait. Each figure is images/s of such a network through the product's own worker: a timed probe, and a trial of
TRIAL_S. ``before``: a thread for each core, as in earlier versions. ``after``: what fitwithin chooses. The two are
measured in turns.
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
from fitwithin.engine.jobs import JobSettings, ProbeJob, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import Probe, TrainResult
from fitwithin.machine import CPU, cores
from pages import Target, origin, save, table, targets, text

RESULT = ground.ROOT / "benchmarks" / "results" / "busy.json"

CANDIDATE = Candidate(model="test_resnet", train_px=32, precision="fp32")

BATCH = 64

VERSIONS = ("before", "after")

#: Seconds of a trial, and at most of a probe.
TRIAL_S, PROBE_S = 15.0, 300.0

NEIGHBOUR = """
import timm, torch

model = timm.create_model("test_resnet", num_classes=3)
optimizer = torch.optim.AdamW(model.parameters())
x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 3, (64,))
while True:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""

#: Until neighbours have imported torch, in seconds.
STARTED_AFTER_S = 20.0


TARGETS = (
    Target("busy_speedup_min", "after over before beside one and two neighbours, the least", "{:.1f}", least=5),
    Target("idle_cost_pct", "lost on an idle machine, per cent, the most", "{:.1f}", most=2),
)


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
                    for version in VERSIONS:
                        found = measured(setting, version, Path(scratch) / f"{busy}-{repeat}-{version}")
                        rows.append({"neighbours": busy, "version": version, "repeat": repeat, **found})
                        print(json.dumps(rows[-1]), flush=True)
    with Local(CPU) as engine:
        machine = engine.describe()
    command = f"python benchmarks/busy.py --repeats {arguments.repeats}"
    ground.write(arguments.result, "busy", machine, None, command, summary=summary(rows), rows=rows)
    write_page(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")


def write_page(value: dict[str, Any], docs: Path) -> None:
    """docs/results/busy.md."""
    summary = value["summary"]
    told = (
        f"Images/s of {CANDIDATE.model} at {CANDIDATE.train_px} px, medians of {len(value['rows']) // 6} measurements. "
        f"A neighbour is another training of the same network by a plain PyTorch loop, with a thread for each core. "
        f"Before: fitwithin has a thread for each core too. After: it has as many as others leave cores free."
    )
    lines = ["# Busy neighbours on the CPU", "", *text(told), *origin(value, "busy"), *targets(TARGETS, summary)]
    cells = [
        [what, str(busy), *(f"{summary[f'{what}_images_per_s_{busy}_neighbours_{v}']:,.0f}" for v in VERSIONS)]
        for what in ("probe", "training")
        for busy in (0, 1, 2)
    ]
    save(docs / "results" / "busy.md", "\n".join([*lines, *table(["What", "Neighbours", *VERSIONS], cells)]))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many other trainings."""
    plain = {key: value for key, value in os.environ.items() if "OMP" not in key}
    others = [subprocess.Popen([sys.executable, "-P", "-c", NEIGHBOUR], env=plain) for _ in range(count)]
    try:
        time.sleep(STARTED_AFTER_S if count else 0.0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def version_of(name: str) -> Iterator[None]:
    """Workers start as in that version."""
    if name == "before":
        os.environ["OMP_NUM_THREADS"] = str(cores())
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)


def measured(setting: JobSettings, version: str, folder: Path) -> dict[str, float]:
    """Images/s of a timed probe and of a trial, each in a fresh process."""
    folder.mkdir()
    with version_of(version), Local(CPU) as engine:
        engine.prepare()
        job = ProbeJob(setting=setting, candidate=CANDIDATE, batch=BATCH, timed=True, quick=True)
        probe = engine.run(job, until_at=time.monotonic() + PROBE_S, on_progress=lambda progress: None)
        assert isinstance(probe, Probe), probe
        assert probe.timing is not None, probe
        trial = TrainJob(
            setting=setting,
            candidate=CANDIDATE,
            batch=BATCH,
            steps=10,
            folder=str(folder),
            until_at=time.monotonic() + TRIAL_S,
            step_s=probe.timing.step_s,
            validation_s=1.0,
            save_s=0.1,
            checkpoint_every_s=math.inf,
            open_ended=True,
        )
        trained = engine.run(trial, until_at=trial.until_at + PROBE_S, on_progress=lambda progress: None)
        assert isinstance(trained, TrainResult), trained
    return {
        "probe_images_per_s": BATCH / probe.timing.step_s,
        "training_images_per_s": BATCH * trained.steps / trained.training_s,
        "cpu_taken": trained.cpu_taken,
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
                for version in VERSIONS
            }
            ratios.setdefault(busy, []).append(pace["after"] / pace["before"])
            for version, images_per_s in pace.items():
                value[f"{what}_images_per_s_{busy}_neighbours_{version}"] = images_per_s
    value["busy_speedup_min"] = min(ratios[1] + ratios[2])
    value["idle_cost_pct"] = 100 * (1 - min(ratios[0]))
    return value


if __name__ == "__main__":
    main()
