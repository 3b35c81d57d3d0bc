"""Real runs whose worker, driver or both are killed at random moments, until they come to their end.

    python benchmarks/faults.py --runs 200 --jobs 2
    python benchmarks/faults.py --page    # docs/results/faults.md anew from the result

Each run is on scikit-learn's digits, on the CPU, with a cache of its own, so that profiling is part of it. At moments
drawn from the seed it gets a SIGKILL: a worker (whatever is being profiled, trained or evaluated), the driver with
the workers going on until they notice, or both. After a killed driver the run is resumed, begun again where it had not
come to a run's folder yet. What is checked afterwards comes from the run's store, receipt and report, and from
predicting with what was handed over. (tests/test_faults.py kills runs whose time is simulated: 25 in every test run,
the others of 200 in `make soak`.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import faults_page
import ground
from fitwithin import load, units
from fitwithin.cli.demo import write_digits
from fitwithin.engine.local import Local
from fitwithin.events import ProcessStarted
from fitwithin.ledger import EntryAbandoned, EntryOpened, EntrySettled, Ledger
from fitwithin.machine import CPU
from fitwithin.store import Store
from stalls import children_of

RESULT = ground.ROOT / "benchmarks" / "results" / "faults.json"

VICTIMS = ("worker", "driver", "both")

#: By turns: one backbone, two by turns, a search, and a search with two at once.
WAYS = (
    ("--models", "test_resnet"),
    ("--models", "test_resnet,test_efficientnet", "--search", "exhaustive"),
    ("--models", "test_resnet,test_efficientnet,test_byobnet", "--search", "halving"),
    ("--models", "test_resnet,test_efficientnet,test_byobnet", "--search", "halving", "--gpus", "2"),
)

#: Of every run.
LIMITS = ("--memory", "1GiB", "--precision", "fp32", "--sizes", "40", "--test-sizes", "40,48", "--recipe", "upright")

#: So many kills a run at most.
KILLS = 3

#: Guessing is right a tenth of the time.
CHANCE = 0.1


def main() -> None:
    """All runs; the rows are written as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, each on a core of its own")
    parser.add_argument("--time", default="30s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--page", action="store_true", help="write the page of the result, measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        faults_page.write(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs", WAYS)
        return
    with Local(CPU) as engine:
        machine = engine.describe()
    command = f"python benchmarks/faults.py --runs {arguments.runs} --jobs {arguments.jobs} --time {arguments.time}"
    there = json.loads(arguments.result.read_text(encoding="utf-8")) if arguments.result.exists() else {"rows": []}
    rows: list[dict[str, Any]] = there["rows"]  # a run that was made is not made again
    first, commit = len(rows), arguments.commit or ground.head()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "digits"
        write_digits(data)
        free: SimpleQueue[int] = SimpleQueue()
        for core in sorted(os.sched_getaffinity(0))[: arguments.jobs]:
            free.put(core)

        def one_run(number: int) -> dict[str, Any]:
            core = free.get()  # runs that share cores only wait for each other
            try:
                return killed(data, arguments.time, arguments.seed, number, core)
            finally:
                free.put(core)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            told = [pool.submit(one_run, number) for number in range(first, arguments.runs)]
            for one in told:
                rows.append({"commit": commit, **one.result()})
                print(json.dumps(rows[-1]), flush=True)
                ground.write(
                    arguments.result, "faults", machine, arguments.commit, command, summary=summary(rows), rows=rows
                )
    print(json.dumps(summary(rows), indent=1), flush=True)


def killed(data: Path, budget: str, seed: int, number: int, core: int) -> dict[str, Any]:
    """One run, from its first process to its last."""
    dice, limit_s = random.Random(f"{seed} {number}"), units.duration(budget)
    kills = [(dice.choice(VICTIMS), dice.uniform(0.2, limit_s)) for _ in range(dice.randint(1, KILLS))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        environment = {**os.environ, "FITWITHIN_CACHE": str(Path(scratch) / "cache")}
        run = ["run", str(data), "--time", budget, "--out", str(folder), "--device", "cpu"]
        run += [*LIMITS, *WAYS[number % len(WAYS)]]
        hits: list[list[Any]] = []
        starts, code, wall_s = 0, None, 0.0
        with (Path(scratch) / "log").open("wb") as log:
            while True:
                words = ["resume", str(folder)] if _begun(folder) else run
                begun_at, starts = time.monotonic(), starts + 1
                command = ["taskset", "--cpu-list", str(core), sys.executable, "-m", "fitwithin", *words]
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
                dead = False
                while kills and not dead:
                    victim, at_s = kills.pop(0)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, begun_at + at_s - time.monotonic()))
                    if process.poll() is not None:
                        break  # it had come to its end before
                    if _strike(process, victim):
                        hits.append([victim, at_s])
                        dead = victim != "worker"
                code = process.wait()
                wall_s += time.monotonic() - begun_at
                if not dead:
                    break
        row = {"number": number, "hits": hits, "starts": starts, "exit_code": code, "wall_s": wall_s}
        row.update(_found(folder, data, limit_s))
        if code:
            row["log"] = (Path(scratch) / "log").read_text(errors="replace")[-600:]
        return row


def _begun(folder: Path) -> bool:
    """Whether there is a run to go on with: its first event is written with its folder."""
    with suppress(Exception), Store(folder, write=False) as store:
        return store.latest(ProcessStarted) is not None
    return False


def _strike(driver: subprocess.Popen[bytes], victim: str) -> bool:
    """Kill it; whether it was there."""
    family = children_of()
    workers = [worker for server in family.get(driver.pid, []) for worker in family.get(server, [])]
    if victim != "driver":
        if not workers:
            return False
        for worker in workers[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    if victim != "worker":
        driver.kill()
    return True


def _found(folder: Path, data: Path, limit_s: float) -> dict[str, Any]:
    """What the run left: its books at every instant, its receipt, its report, and a model that predicts."""
    found: dict[str, Any] = {"balanced": False, "over_s": None, "kept": False, "valid": False}
    with suppress(Exception), Store(folder, write=False) as store:
        books, over_s = Ledger(), [0.0]
        for event in store.read(EntryOpened, EntrySettled, EntryAbandoned):
            books.add(event)
            over_s.append(books.spent_s() + books.reserved_s() - limit_s)
        found["balanced"] = books.balanced
        found["over_s"] = max(over_s)
        found["abandoned"] = sum(entry.abandoned for entry in books.entries)
    with suppress(OSError, ValueError, KeyError, StopIteration):
        receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        found["kept"] = receipt["balanced"] and receipt["finished"] and all(one["kept"] for one in receipt["limits"])
        handed = next(method for method in report["methods"] if method["delivered"])
        found.update(validation=ground.share(handed["validation"]), test=ground.share(handed["test"]))
        found["valid"] = _predicts(folder, data, informed=handed["validation"] is not None)
    return found


def _predicts(folder: Path, data: Path, *, informed: bool) -> bool:
    """Whether what was handed over classifies a few images, better than guessing would if it was validated: of a model
    for whose validation there was no time nothing is claimed."""
    images = [path for digit in sorted(data.iterdir()) for path in sorted(digit.iterdir())[:5]]
    told = [one.label for one in load(folder).predict(images, device="cpu")]
    if not informed:
        return set(told) <= {digit.name for digit in data.iterdir()}
    right = sum(path.parent.name == label for path, label in zip(images, told, strict=True))
    return right / len(images) > 2 * CHANCE


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    hit = [row for row in rows if row["hits"]]
    every = [victim for row in rows for victim, _ in row["hits"]]
    return {
        "runs": len(hit),
        "runs_that_ended_unharmed": len(rows) - len(hit),
        **{f"kills_of_{victim}": every.count(victim) for victim in VICTIMS},
        "resumed": sum(row["starts"] - 1 for row in rows),
        "unbalanced": sum(not row["balanced"] for row in rows),
        "overspend_events": sum(not row["kept"] for row in rows if row["valid"]),
        "over_s_max": max((row["over_s"] for row in rows if row["over_s"] is not None), default=None),
        "without_a_result": sum(not row["valid"] for row in rows),
        "untested": sum(row["valid"] and row.get("test") is None for row in rows),
    }


if __name__ == "__main__":
    main()
