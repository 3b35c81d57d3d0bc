"""A search by halving with a quarter of the time, against training every candidate (the paper's way).

    python benchmarks/search.py --part exhaustive --data DATA --data-set imagenette --seeds 0,1
    python benchmarks/search.py --part halving    --data DATA --data-set imagenette --seeds 0,1
    python benchmarks/search.py --part prior      --data DATA --data-set imagenette --seeds 0,1
    python benchmarks/search.py --part two        --data DATA --data-set imagenette --seeds 0
    python benchmarks/search.py --take OTHER.json ...    # rows that another GPU of the machine made meanwhile
    python benchmarks/search.py --page                   # docs/results/search.md anew from the result

Sixteen candidates: eight backbones of different families at two sizes, in bfloat16. Exhaustive: `--scope candidate`,
T seconds of training and evaluation for each, profiles on top. Halving: `--search halving` with a quarter of 16 T for
everything, from the start of its process to its report: profiling, trials, final training, evaluation. Its profiles
are not in the cache. Prior: the same, but the size is chosen, and trials are read together with what the prior
expects of their backbones; it was made without the data set. Two: halving on two GPUs, with as many GPU seconds as
the one on one GPU has spent.
Rows are added as they are made; a row that is there is not made again. `test` is read once a run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import defaults
import ground
import search_page
from fitwithin import units
from fitwithin.engine.launch import launched
from fitwithin.engine.local import Local
from fitwithin.files import cache_root
from fitwithin.machine import DeviceName
from fitwithin.weights import model_names

RESULT = ground.ROOT / "benchmarks" / "results" / "search.json"

#: Eight families of backbones that train at these sizes.
MODELS = (
    "resnet18d",
    "resnet26d",
    "resnet50d",
    "resnest26d",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "regnetx_008",
    "repvgg_a0",
)

#: By data set: training sizes, test sizes, and T.
SETS = {"imagenette": ("128,160", "128,160,192", "45s"), "mini-imagenet": ("64,80", "64,80,96", "45s")}

#: The share of the exhaustive search's time that halving has.
SHARE = 0.25

PARTS = ("exhaustive", "halving", "prior", "two")

#: By data set, its name in the table of the prior.
IN_PRIOR = {"imagenette": "imagenette-224", "mini-imagenet": "mini-imagenet-84"}


def main() -> None:
    """One part; its rows and the summary of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--take", type=Path, nargs="+", help="take these results' rows in, measure nothing")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--data-set", choices=tuple(SETS), default="imagenette")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sizes", default=None)
    parser.add_argument("--test-sizes", default=None)
    parser.add_argument("--each", default=None, help="T; the data set's usual one without")
    parser.add_argument("--precision", default="amp-bf16")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gpus", type=int, default=1, help="of the exhaustive part: candidates side by side")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--page", action="store_true", help="write the page of the result, measure nothing")
    arguments = parser.parse_args()
    if arguments.page:
        search_page.write(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")
        return
    sizes, test_sizes, each = SETS[arguments.data_set]
    arguments.sizes, arguments.test_sizes = arguments.sizes or sizes, arguments.test_sizes or test_sizes
    arguments.each = arguments.each or each
    if arguments.take:
        ground.take(arguments.take, arguments.result, summary)
        return
    value = json.loads(arguments.result.read_text(encoding="utf-8")) if arguments.result.exists() else {"rows": []}
    rows = value["rows"]
    for seed in (int(word) for word in arguments.seeds.split(",")):
        key = {"part": arguments.part, "data": arguments.data_set, "each": arguments.each, "seed": seed}
        if any(all(row.get(name) == wanted for name, wanted in key.items()) for row in rows):
            continue
        rows.append({**key, "commit": arguments.commit or ground.head(), **run(arguments, seed, rows)})
        print(json.dumps(rows[-1]), flush=True)
        with Local(DeviceName.parse(arguments.device)) as engine:
            machine = engine.describe()
        command = "python benchmarks/search.py (each row holds its own values)"
        ground.write(arguments.result, "search", machine, arguments.commit, command, summary=summary(rows), rows=rows)


def run(arguments: argparse.Namespace, seed: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One search, seen from outside; ``rows`` holds the one on one GPU for its like on two."""
    count = len(arguments.models.split(",")) * len(arguments.sizes.split(","))
    each_s = units.duration(arguments.each)
    words = ["run", str(ground.with_splits(arguments.data)), "--memory", arguments.memory, "--models", arguments.models]
    words += ["--precision", arguments.precision]
    if arguments.part != "prior":
        words += ["--sizes", arguments.sizes, "--test-sizes", arguments.test_sizes]
    words += ["--recipe", arguments.recipe, "--device", arguments.device, "--seed", str(seed)]
    gpus, environment = 1, {**os.environ}
    if arguments.part == "exhaustive":
        limit_s, gpus = each_s, arguments.gpus
        words += ["--scope", "candidate", "--time", f"{each_s}s"]
    elif arguments.part in ("halving", "prior"):
        limit_s = SHARE * count * each_s
        words += ["--search", "halving", "--time", f"{limit_s}s"]
    else:
        like = {"part": "halving", "data": arguments.data_set, "each": arguments.each, "seed": seed}
        like["commit"] = arguments.commit or ground.head()
        alone = next(row for row in rows if all(row[name] == wanted for name, wanted in like.items()))
        limit_s, gpus = alone["gpu_s"], 2
        words += ["--search", "halving", "--gpu-time", f"{limit_s}s"]
    words += ["--gpus", str(gpus)]
    every = f"{arguments.sizes},{arguments.test_sizes}"
    ground.prepared(arguments.data, device=arguments.device, memory=arguments.memory, sizes=every, workers=1)
    with launched() as server:
        model_names.known_models(server.await_ready)  # in the cache after the first run with a version of timm
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        if arguments.part == "prior":
            environment["PYTHONPATH"] = str(defaults.package_without(IN_PRIOR[arguments.data_set], Path(scratch)))
        if arguments.part != "exhaustive":  # images are there, profiles are not
            environment["FITWITHIN_CACHE"] = str(without_profiles(Path(scratch)))
        begun_at = time.monotonic()
        command = [sys.executable, "-m", "fitwithin", *words, "--out", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        wall_s = time.monotonic() - begun_at
        assert ended.returncode == 0, ended.stderr
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        entries, turns, timings = ground.entries(folder), ground.turns(folder), ground.timings(folder)
    receipt = report["receipt"]
    delivered = next(method for method in report["methods"] if method["delivered"])
    return {
        "candidates": count,
        "gpus": gpus,
        "limit_s": limit_s,
        "wall_s": wall_s,
        "limits_kept": all(limit["kept"] for limit in receipt["limits"]),
        "phases": {phase["phase"]: phase["spent_s"] for phase in receipt["phases"]},
        "gpu_s": sum(phase["gpu_s"] for phase in receipt["phases"]),
        "winner": report["winner"],
        "search": report["search"],
        "entries": entries,
        "turns": turns,
        "timings": timings,
        "val": ground.share(delivered["validation"]),
        "test": ground.share(delivered["test"]),
        "tried": [
            {name: row[name] for name in ("name", "status", "epochs", "actual_s", "reason")}
            | {"validation": ground.share(row["validation"])}
            for row in report["candidates"]
        ],
    }


def without_profiles(scratch: Path) -> Path:
    """A cache with all that the usual one holds but profiles."""
    folder = scratch / "cache"
    folder.mkdir()
    for entry in cache_root().iterdir():
        if entry.name not in ("profiles", "scratch"):
            (folder / entry.name).symlink_to(entry)
    return folder


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers: what halving costs over what exhaustive does, and how much accuracy it gives away."""
    value: dict[str, Any] = {"overspend_events": sum(not row["limits_kept"] for row in rows)}
    ratios: list[float] = []
    speedups: list[float] = []
    gaps: list[float] = []
    regrets: list[float] = []
    for data in sorted({row["data"] for row in rows}):
        name = data.replace("-", "_")
        parts = {part: [row for row in rows if row["data"] == data and row["part"] == part] for part in PARTS}
        for part, found in parts.items():
            tested = [row["test"] for row in found if row["test"] is not None]
            if tested:
                value[f"{name}_{part}_seeds"] = len(tested)
                value[f"{name}_{part}_test_mean"] = mean(tested)
                value[f"{name}_{part}_gpu_s_mean"] = mean(row["gpu_s"] for row in found)
        # In GPU seconds by the second of the clock: one that left some unspent is no faster for it.
        alone = {(row["seed"], row["commit"]): row["gpu_s"] / row["wall_s"] for row in parts["halving"]}
        for row in parts["two"]:
            if (like := alone.get((row["seed"], row["commit"]))) is not None:
                speedups.append(row["gpu_s"] / row["wall_s"] / like)
        means = [value.get(f"{name}_{part}_test_mean") for part in ("exhaustive", "halving")]
        if (with_prior := value.get(f"{name}_prior_test_mean")) is not None and means[0] is not None:
            regrets.append(means[0] - with_prior)
        if None not in means:
            gaps.append(means[0] - means[1])
            value[f"{name}_accuracy_gap_points"] = gaps[-1]
            # Against the training alone: what the exhaustive search's profiling took is not held against it.
            trained_s = mean(row["candidates"] * row["limit_s"] for row in parts["exhaustive"])
            ratios.append(max(row["wall_s"] for row in parts["halving"]) / trained_s)
    if regrets:
        value["regret_points_with_prior"] = max(regrets)
    if gaps:
        value["accuracy_gap_points"] = max(gaps)
    if speedups:
        value["two_gpu_speedup"] = min(speedups)
    if ratios:
        value["cost_ratio"] = max(ratios)
    return value


if __name__ == "__main__":
    main()
