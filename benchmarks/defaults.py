"""The command as a newcomer types it, beside hand-picked backbones, the paper's recipe and a plain loop.

    python benchmarks/defaults.py --data imagenette-224 --memory 6GiB --times 90,300 --seeds 0,1 \
        --hand resnet18d@160 resnet26d@160 resnet50d@128 ... [--paper] [--loop] [--minutes 9]

Every run has an empty cache, but for the bytecode of libraries where Python keeps none itself. The prior that it uses
was made without the data set at hand (benchmarks/prior_table.py --without). Hand-picked runs name one backbone and one
size; the best of them by validation is what the plain command is compared with. Rows that are in the result are not
made again, so the work can be split over several calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import defaults_page
import ground
import prior_table
from fitwithin import files
from fitwithin.machine import cpu_name

RESULT = ground.ROOT / "benchmarks" / "results" / "defaults.json"

COMMAND = "python benchmarks/defaults.py (each row holds its own values)"

#: Seconds that the machine rests between runs: memory maps of the last one are given back.
REST_S = 1.0


def main() -> None:
    """Make the rows that are missing, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train, val and test")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--times", default="90", help="seconds, separated by commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--hand", nargs="*", default=[], help="hand-picked runs: MODEL@PX")
    parser.add_argument("--paper", action="store_true", help="the plain command under recipe paper, too")
    parser.add_argument("--loop", action="store_true", help="a plain timm loop with resnet50, too")
    parser.add_argument("--search", nargs="*", default=[], help="halving over MODEL,MODEL,...[@PX]")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain command")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that would end later")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    arguments = parser.parse_args()
    data, ends_at = ground.with_splits(arguments.data), time.monotonic() + 60 * arguments.minutes
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"] if arguments.result.exists() else []
    ways: list[tuple[str, str]] = [] if arguments.no_plain else [("plain", "")]
    ways += [("paper", "")] * arguments.paper + [("loop", "resnet50")] * arguments.loop
    ways += [("hand", word) for word in arguments.hand] + [("search", word) for word in arguments.search]
    where, commit = "cpu" if arguments.device == "cpu" else "gpu", arguments.commit or ground.head()
    limits, seeds = map(float, arguments.times.split(",")), [int(word) for word in arguments.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        package = package_without(data.name, Path(scratch))
        for limit_s, seed, (kind, what) in itertools.product(limits, seeds, ways):
            key = {"data": data.name, "limit_s": limit_s, "seed": seed, "kind": kind, "what": what, "where": where}
            there = any(all(row[name] == value for name, value in key.items()) for row in rows)
            if there or time.monotonic() + 1.2 * limit_s > ends_at:
                continue
            found, machine = one(data, package, key, arguments)
            rows.append({**key, **found, "hardware": machine["name"], "commit": commit})
            print(json.dumps(rows[-1]), flush=True)
            value = {"summary": summary(rows), "rows": rows}
            ground.write(arguments.result, "defaults", machine, commit, COMMAND, **value)
            time.sleep(REST_S)
    if arguments.result == RESULT and RESULT.exists():
        defaults_page.write(json.loads(RESULT.read_text(encoding="utf-8")), ground.ROOT / "docs")


def package_without(data: str, scratch: Path) -> Path:
    """A copy of the package whose prior knows nothing of the data set."""
    shutil.copytree(ground.ROOT / "src" / "fitwithin", scratch / "src" / "fitwithin")
    out = scratch / "src" / "fitwithin" / "planning" / "prior.csv"
    prior_table.main(["--without", data, "--out", str(out)])
    return scratch / "src"


def one(
    data: Path, package: Path, key: dict[str, Any], arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of one kind, seen from outside, and the machine it ran on."""
    limit_s, kind, what = key["limit_s"], key["kind"], key["what"]
    if kind == "loop":
        return loop(data, what, limit_s, arguments)
    words = ["run", str(data), "--memory", arguments.memory, "--time", f"{limit_s:g}s", "--seed", str(key["seed"])]
    words += ["--init", "random"]  # as without pretrained weights, which this machine may have
    if what:
        models, _, px = what.partition("@")
        words += ["--models", models, *(["--sizes", px] if px else [])]
    if kind == "paper":
        words += ["--recipe", "paper"]
    if arguments.device != "auto":
        words += ["--device", arguments.device]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "FITWITHIN_CACHE": str(empty_cache(Path(scratch))),
            "PYTHONPATH": str(package),
        }
        begun_at = time.monotonic()
        command = [sys.executable, "-P", "-m", "fitwithin", *words, "--out", f"{scratch}/run"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        wall_s = time.monotonic() - begun_at
        if ended.returncode:
            return {"failed": ended.stderr.strip()[-400:], "wall_s": round(wall_s, 2)}, machine_of({})
        report = json.loads(Path(scratch, "run", "report.json").read_text(encoding="utf-8"))
    return seen(report, wall_s, limit_s), machine_of(report)


def empty_cache(scratch: Path) -> Path:
    """A cache with nothing in it but the bytecode of libraries, where Python keeps none itself: the machine is warm."""
    cache = scratch / "cache"
    cache.mkdir()
    if (compiled := files.bytecode_dir()) is not None:
        compiled.mkdir(parents=True, exist_ok=True)
        (cache / "bytecode").symlink_to(compiled)
    return cache


def machine_of(report: dict[str, Any]) -> dict[str, Any]:
    """What the result file says of the machine."""
    receipt = report.get("receipt", {"device": {}, "versions": {}})
    return {"name": ground.hardware(), "cpu": cpu_name(), **receipt["device"], **receipt["versions"]}


def seen(report: dict[str, Any], wall_s: float, limit_s: float) -> dict[str, Any]:
    """What a report says that matters here."""
    receipt = report["receipt"]
    delivered = next(method for method in report["methods"] if method["delivered"])
    winner = next(row for row in report["candidates"] if row["name"] == report["winner"])
    phases = {phase["phase"]: round(phase["spent_s"], 2) for phase in receipt["phases"]}
    tried = [row for row in report["candidates"] if row["status"] != "rejected"]
    return {
        "test": ground.share(delivered["test"]),
        "val": ground.share(delivered["validation"]),
        "model": winner["model"],
        "px": winner["train_px"],
        "epochs": winner["epochs"],
        "tried": [row["name"] for row in tried],
        "unvalidated": sum(row["status"] == "trained" and row["validation"] is None for row in tried),
        "phases": phases,
        "wall_s": round(wall_s, 2),
        "overrun_s": round(max(0.0, wall_s - limit_s), 2),
        "cap_kept": all(limit["kept"] for limit in receipt["limits"] if limit["name"] == "memory"),
        "peak_bytes": max(phase["peak_bytes"] or 0 for phase in receipt["phases"]),
        "pool_why": report.get("pool_why", ""),
    }


def loop(
    data: Path, model: str, limit_s: float, arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A plain timm loop of the same wall time, its start included."""
    script = ground.ROOT / "benchmarks" / "plain_loop.py"
    device = "cuda:0" if arguments.device == "auto" else arguments.device
    words = [model, "--data", str(data), "--within", f"{limit_s:g}", "--device", device]
    begun_at = time.monotonic()
    ended = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout.strip().splitlines()[-1]) if not ended.returncode else {}
    failed = {"failed": ended.stderr.strip()[-400:]} if ended.returncode else {}
    test = 100 * found["test"] if found else None
    return {"test": test, **failed, "wall_s": round(time.monotonic() - begun_at, 2)}, machine_of({})


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    done: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.get("test") is not None:
            done[row["kind"]].append(row)
    plain, hand = done["plain"], done["hand"]
    value: dict[str, Any] = {"rows": len(rows), "failed": sum("failed" in row for row in rows)}
    for where in ("gpu", "cpu"):
        if found := gaps([row for row in plain if row["where"] == where], hand):
            value |= {f"{where}_gap_points_max": max(found), f"{where}_gap_points_mean": fmean(found)}
    for name, named in (("with", False), ("without", True)):
        if found := gaps([row for row in done["search"] if ("@" in row["what"]) == named], hand):
            value[f"regret_points_{name}_prior"] = max(found)
    for where, data, limit_s in sorted({same(row) for row in plain}):
        reached = [row["test"] for row in plain if same(row) == (where, data, limit_s)]
        value[f"{where}_{data}_{limit_s:g}s"] = fmean(reached)
    papers = {same(row): row["test"] for row in done["paper"]}
    if minus := [row["test"] - papers[same(row)] for row in plain if same(row) in papers]:
        value["minus_paper_points_min"] = min(minus)
    if plain:
        value["profile_share_max"] = max(row["phases"].get("profile", 0.0) / row["limit_s"] for row in plain)
        value["trials_unvalidated"] = sum(row["unvalidated"] for row in plain)
        value["overrun_s_max"] = max(row["overrun_s"] for row in plain)
        value["cap_violations"] = sum(not row["cap_kept"] for row in plain)
        value["startup_s_max"] = max(row["phases"].get("start-up", 0.0) for row in plain)
    return value


def same(row: dict[str, Any]) -> tuple[str, str, float]:
    """What two rows must share to be compared."""
    return row["where"], row["data"], row["limit_s"]


def gaps(rows: list[dict[str, Any]], hand: list[dict[str, Any]]) -> list[float]:
    """For each row with hand-picked runs beside it: the best of these by validation less the row, in points of test."""
    found = []
    for row in rows:
        if picked := [each for each in hand if same(each) == same(row)]:
            best = max(picked, key=lambda each: (each["val"], each["what"]))
            found.append(best["test"] - row["test"])
    return found


if __name__ == "__main__":
    main()
