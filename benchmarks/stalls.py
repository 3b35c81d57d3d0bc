"""Runs of the product in which processes are made to stall, and whether they ended in time with a model that works.

    python benchmarks/stalls.py --data DATA --time 30s --stalls 20 -- --device cpu --models resnet18

Each run is a process of its own. At a moment drawn from the seed a signal stops one of its children (a loader, the
process that leads the loaders, or the trainer), for some seconds or for good. What is measured is seen from outside:
wall clock, exit code, the receipt, the report.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ground
from fitwithin import units
from fitwithin.engine.local import Local
from fitwithin.errors import FitwithinError
from fitwithin.ledger import EntryOpened
from fitwithin.store import Store

RESULT = ground.ROOT / "benchmarks" / "results" / "stalls.json"

#: Whom a stall befalls, and for how long in seconds; None is for good.
VICTIMS = ("loader", "foreman", "trainer")
LENGTHS_S = (2.0, 6.0, None)


def main() -> None:
    """Run after run; the rows are written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--time", default="90s")
    parser.add_argument("--stalls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    parser.add_argument("words", nargs="*", help="of fitwithin run, after --")
    arguments = parser.parse_args()
    device = arguments.words[arguments.words.index("--device") + 1] if "--device" in arguments.words else "cuda:0"
    with Local(device) as engine:
        machine = engine.describe()
    rows: list[dict[str, Any]] = []
    for number in range(arguments.stalls):
        victim = VICTIMS[number % len(VICTIMS)]
        length_s = LENGTHS_S[number // len(VICTIMS) % len(LENGTHS_S)]
        moment = random.Random(f"{arguments.seed} {number}").uniform(0.02, 0.98)
        rows.append(stalled(arguments.data, arguments.time, arguments.words, victim, length_s, moment))
        print(json.dumps(rows[-1]), flush=True)
        ground.write(
            arguments.result,
            "stalls",
            machine,
            arguments.commit,
            f"python benchmarks/stalls.py --data {arguments.data.name} --time {arguments.time} "
            f"--stalls {arguments.stalls} -- {' '.join(word.rsplit('/')[-1] for word in arguments.words)}",
            summary=summary(rows),
            rows=rows,
        )
    print(json.dumps(summary(rows)), flush=True)


def stalled(
    data: Path, budget: str, words: list[str], victim: str, length_s: float | None, moment: float
) -> dict[str, Any]:
    """One run with one stall, ``moment`` (a share) of the way through its training."""
    limit_s = units.duration(budget)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        begun_at = time.monotonic()
        command = [sys.executable, "-m", "fitwithin", "run", str(data), "--time", budget, "--out", str(folder), *words]
        with (Path(scratch) / "log").open("wb") as log:
            run = subprocess.Popen(command, stdout=log, stderr=log)
        hit = _stall(run, folder, victim, length_s, moment)
        code = run.wait()
        wall_s = time.monotonic() - begun_at
        row: dict[str, Any] = {
            "victim": victim,
            "length_s": length_s,
            "moment": moment,
            "hit": hit,
            "exit_code": code,
            "wall_s": wall_s,
            "overrun_s": max(0.0, wall_s - limit_s),
        }
        with suppress(OSError, ValueError, KeyError):
            receipt = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            over = [max(0.0, limit["spent"] - limit["limit"]) for limit in receipt["limits"] if limit["unit"] == "s"]
            chosen = next(method for method in report["methods"] if method["delivered"])
            row.update(
                overrun_s=max(row["overrun_s"], *over),
                used_pct=100 * wall_s / limit_s,
                validation=_share(chosen["validation"]),
                test=_share(chosen["test"]),
                ended=[candidate["reason"] for candidate in report["candidates"] if candidate["status"] == "trained"],
            )
        if code:
            row["log"] = (Path(scratch) / "log").read_text(errors="replace")[-400:]
        return row


def _share(accuracy: dict[str, int] | None) -> float | None:
    return accuracy["correct"] / accuracy["total"] if accuracy else None


def _stall(run: subprocess.Popen[bytes], folder: Path, victim: str, length_s: float | None, moment: float) -> bool:
    """Wait for the training, then stop the victim; whether there was one."""
    while run.poll() is None and (turn := _turn(folder)) is None:
        time.sleep(0.05)
    if run.poll() is not None:
        return False
    planned_s = turn[1]  # of a turn, as the ledger reserved it
    time.sleep(moment * planned_s)
    pids = _family(run.pid)
    if victim not in pids:
        return False
    with suppress(ProcessLookupError):
        os.kill(pids[victim], signal.SIGSTOP)
        if length_s is not None:
            with suppress(subprocess.TimeoutExpired):  # the run may well end before
                run.wait(length_s)
            os.kill(pids[victim], signal.SIGCONT)
    return True


def _turn(folder: Path) -> tuple[str, float] | None:
    """The turn that is open in the run's ledger, and the seconds reserved for it."""
    with suppress(FitwithinError, sqlite3.Error), Store(folder, write=False) as store:
        opened = [event for event in store.read(EntryOpened) if event.phase == "train"]
        return (opened[-1].key, opened[-1].reserved_s) if opened else None
    return None


def children_of() -> dict[int, list[int]]:
    """The processes of the machine by the one that began them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return children


def _family(root: int) -> dict[str, int]:
    """The trainer, the foreman of its loaders, and a loader: children of children of the run's process server."""
    children = children_of()
    found: dict[str, int] = {}
    servers = children.get(root, [])
    for trainer in (child for server in servers for child in children.get(server, [])):
        found["trainer"] = trainer
        for foreman in children.get(trainer, []):
            found["foreman"] = foreman
            for loader in children.get(foreman, []):
                found["loader"] = loader
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    hit = [row for row in rows if row["hit"]]
    return {
        "runs": len(rows),
        "stalls": len(hit),
        "overrun_s_max_stalls": max((row["overrun_s"] for row in rows), default=None),
        "without_a_model": sum("validation" not in row for row in rows),
        "without_a_test": sum(row.get("test") is None for row in rows),
        "budget_used_pct_min_stalls": min((row["used_pct"] for row in rows if "used_pct" in row), default=None),
    }


if __name__ == "__main__":
    main()
