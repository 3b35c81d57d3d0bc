"""The ledger of a long run: what a look at it takes, and what opening it again takes after the run was killed.

    python benchmarks/ledger.py

A run of 9 h on eight slots is written into a run.db by the product's accountant under a simulated clock: 1,994 entries,
of which each slot has one at a time, and a heartbeat every second and slot, 259,200 in all. (While it is built the disk
is not waited for.) Then its process is gone, with an entry open in each slot. Another one opens the ledger; this is
repeated on copies of the folder. The last of them opens eight entries, whose threads write heartbeats as in a run, each
waiting for the disk, and looks at the ledger again and again: ``remaining``, what is asked before every trial, and a
ledger with its sums and one key's seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import ground
from fitwithin import ledger as ledgers
from fitwithin.accountant import Accountant
from fitwithin.budget import Budget
from fitwithin.ledger import Heartbeat
from fitwithin.machine import cpu_name
from fitwithin.store import Store
from pages import Target, save, targets, text
from simulated.clock import SimulatedClock

RESULT = ground.ROOT / "benchmarks" / "results" / "ledger.json"

SLOTS, HOURS, ENTRIES = 8, 9.0, 2000

#: How often the ledger is opened, how often looked at, and the seconds between two looks.
OPENED, LOOKS, PAUSE_S = 7, 300, 0.01

BUDGET = Budget(memory_bytes=1, time_s=12 * 3600.0, gpu_time_s=96 * 3600.0)

TARGETS = (
    Target("remaining_s_median", "seconds until it is known what is left of the budget, median", "{:.6f}", most=1e-3),
    Target("remaining_s_p99", "its 99th percentile", "{:.6f}"),
    Target("sums_s_median", "seconds for the ledger with its sums, median", "{:.6f}", most=1e-3),
    Target("sums_s_p99", "its 99th percentile", "{:.6f}"),
    Target("open_s_max", "seconds to open it again, the longest", "{:.2f}", most=2.0),
)


def main() -> None:
    """Build, open, look, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "run"
        built.mkdir()
        beats = build(built, arguments.hours * 3600.0, arguments.entries)
        run_bytes = (built / "run.db").stat().st_size
        print(f"{beats} heartbeats, {run_bytes} bytes", flush=True)
        for number in range(OPENED):
            folder = Path(scratch) / str(number)
            shutil.copytree(built, folder)
            begun_at = time.perf_counter()
            with Store(folder) as store:
                accountant = Accountant(store, BUDGET, time.monotonic, started_at=time.monotonic())
                rows.append({"what": "open", "seconds": time.perf_counter() - begun_at})
                if number == OPENED - 1:
                    entries = len(accountant.ledger().entries)
                    rows += look(accountant)
                    kept = len(store.beats())
    summary: dict[str, Any] = {"slots": SLOTS, "hours": arguments.hours, "entries": entries, "heartbeats": beats}
    summary |= {"heartbeat_rows": kept, "run_bytes": run_bytes}
    for what in dict.fromkeys(row["what"] for row in rows):
        taken = [row["seconds"] for row in rows if row["what"] == what]
        summary |= {f"{what}_s_median": median(taken), f"{what}_s_max": max(taken)}
        if len(taken) >= 100:
            summary[f"{what}_s_p99"] = quantiles(taken, n=100)[98]
    machine = {"name": cpu_name(), "cpu": cpu_name()}
    ground.write(arguments.result, "ledger", machine, None, "python benchmarks/ledger.py", summary=summary, rows=rows)
    write_page(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")


def write_page(value: dict[str, Any], docs: Path) -> None:
    """docs/results/ledger.md."""
    summary = value["summary"]
    told = (
        f"A run of {summary['hours']:g} h on {summary['slots']} slots: {summary['entries']:,} entries and "
        f"{summary['heartbeats']:,} heartbeats, of which `run.db` keeps the last of each entry "
        f"({summary['run_bytes'] / 1e6:.1f} MB). Its process is killed with an entry open in each slot, another one "
        f"opens the ledger, and looks at it while eight entries have heartbeats. Made by `benchmarks/ledger.py` on "
        f"{value['date']} at commit `{value['commit'][:12]}`, on {value['hardware']}, from "
        f"`benchmarks/results/ledger.json`."
    )
    lines = ["# The ledger of a long run", "", *text(told), *targets(TARGETS, summary)]
    save(docs / "results" / "ledger.md", "\n".join(lines))


def build(folder: Path, seconds: float, entries: int) -> int:
    """A run that was killed after so many seconds and entries; how many heartbeats it wrote."""
    clock, beats = SimulatedClock(), 0
    with Store(folder) as store:
        store._db.execute("PRAGMA synchronous = OFF")  # the machine stays up: what was written is read
        accountant = Accountant(store, BUDGET, clock.now, started_at=clock.now(), beating=False)
        rounds = (entries - 2) // SLOTS
        each_s = seconds / rounds
        with accountant.entry("start-up"):
            clock.sleep(1.0)
        accountant.entry("train", reserved_s=seconds)
        for number in range(rounds):
            at_work = [
                accountant.entry(
                    "train", f"resnet18-amp-{slot}-rung{number}", gpus=1, reserved_s=each_s, concurrent=True
                )
                for slot in range(SLOTS)
            ]
            ends_at = clock.now() + each_s
            while clock.now() < ends_at:
                clock.sleep(min(ledgers.HEARTBEAT_S, ends_at - clock.now()))
                for opened in at_work:
                    now = clock.now()
                    heartbeat = Heartbeat(
                        number=opened.number, elapsed_s=now - opened.began_at, at_s=now, peak_bytes=2**33
                    )
                    store.beat(opened.number, heartbeat)
                    beats += 1
            for opened in at_work if number < rounds - 1 else ():
                accountant.settle(opened)
    return beats


def look(accountant: Accountant) -> list[dict[str, Any]]:
    """What looks take while eight entries have heartbeats."""

    def sums() -> None:
        ledger = accountant.ledger()
        ledger.spent_s()
        ledger.spent_s(gpu=True)
        ledger.reserved_s(gpu=True)
        ledger.charged_s("resnet18-amp-0-rung7", phase="train")

    looks: dict[str, Callable[[], object]] = {"remaining": accountant.remaining, "sums": sums}
    rows = []
    with accountant.entry("train", reserved_s=3600.0), ExitStack() as at_work:
        for slot in range(SLOTS):
            opened = accountant.entry("train", f"now-{slot}", gpus=1, reserved_s=3600.0, concurrent=True)
            at_work.enter_context(opened)
        for what, look_at in looks.items():
            for _ in range(LOOKS):
                time.sleep(PAUSE_S)
                begun_at = time.perf_counter()
                look_at()
                rows.append({"what": what, "seconds": time.perf_counter() - begun_at})
    return rows


if __name__ == "__main__":
    main()
