"""Variants of a recipe, compared on images held out from training, at the same number of seconds each.

    python benchmarks/variants.py --data IMAGENETTE --design DESIGN.toml --rows ROWS.jsonl [--only 0/2 --device cuda:0]
    python benchmarks/variants.py --collect ROWS.jsonl ...    # on the same machine: benchmarks/results/variants.json

`test` is not looked at. `val` is small (947 images on imagenette: a standard error of 0.8 points), so a share of
`train`, chosen by a hash of the file's name, is held out beside it. A variant's time counts from asking for its process
to its saved model; the profile is left out, for it would cost as much as the variant.

A design names factors with two levels each and is run as a two-level fractional factorial: every run has a level of
every factor, and a factor's effect is the difference between the means of two halves of all runs, not between two runs.
Or it lists its runs.

    seconds = 66
    px = 160
    views = [160, 192, 224]
    base = {model = "resnet26d", precision = "amp-bf16", layout = "channels_last", recipe = "fast"}
    runs = 16
    [[factor]]
    name = "lr"
    low = {lr = 0.02}
    high = {lr = 0.03}

or `[[run]]` with a name and values in place of the factors. Values are the base's keys, `seed`, `px`, `batch`,
`seconds`, and fields of a recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import ground
from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate, views_of
from fitwithin.data.pack import Pack
from fitwithin.engine.jobs import EvaluateJob, Stage, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import EvalResult, TrainResult, read_logits
from fitwithin.files import decode
from fitwithin.inference.ensemble import average, correct
from fitwithin.machine import DeviceName
from fitwithin.recipe import Recipe

RESULT = ground.ROOT / "benchmarks" / "results" / "variants.json"

#: Held out from `train` for choosing.
HELD_OUT = 0.25

#: Columns of a two-level design of 16 runs for up to eight factors, none of whose effects is mistaken for that of two
#: others together being one (resolution IV; Box, Hunter, Hunter): four basic columns and the products of three.
BASIC = ((0,), (1,), (2,), (3,), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))

#: What a run says beside fields of a recipe.
KEYS = {"model", "px", "precision", "layout", "recipe", "batch", "seed", "seconds", "pace", "levels"}

#: A guess of images/s at 160 px to begin a schedule with; it measures.
PACE = 9000.0


def main() -> None:
    """The runs that are this process's to make."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--design", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--collect", type=Path, nargs="+", help="sum up these rows and train nothing")
    parser.add_argument("--commit", default=None)
    parser.add_argument("--only", default="0/1", help="which of the runs: every second from the first on is 0/2")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments)
        return
    design = tomllib.loads(arguments.design.read_text(encoding="utf-8"))
    own, of = (int(part) for part in arguments.only.split("/"))
    runs = [{**design["base"], **run} for run in drawn(design)][own::of]
    folder = held_out(arguments.data, design.get("held_out", HELD_OUT))
    px, views = design["px"], design["views"]
    images, setting = ground.prepared(
        folder,
        device=arguments.device,
        memory=arguments.memory,
        sizes=",".join(str(size) for size in sorted({px, *views})),
        workers=arguments.workers,
    )
    with tempfile.TemporaryDirectory() as scratch, Local(setting.device, Path(scratch) / "worker.log") as engine:
        engine.prepare()
        for number, run in enumerate(runs):
            where = Path(scratch) / str(number)
            row = {
                "seconds": design["seconds"],
                **run,
                **one(engine, images, setting, {"px": px, "seconds": design["seconds"], **run}, views, where),
            }
            with arguments.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def collect(arguments: argparse.Namespace) -> None:
    """The effects of the factors, and all rows."""
    texts = [path.read_text(encoding="utf-8") for path in arguments.collect]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    with Local(DeviceName.parse(arguments.device)) as engine:
        machine = engine.describe()
    command = "python benchmarks/variants.py (each row holds its own values)"
    ground.write(RESULT, "variants", machine, arguments.commit, command, summary=effects(rows), rows=rows)


def effects(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By factor and measure: the mean at its high level less that at its low level, in points of accuracy.

    ``standard_error_...`` is an effect's, from what a linear model of the factors leaves unexplained: the spread of
    runs, and what factors do together.
    """
    rows = [row for row in rows if "levels" in row and "failed" not in row]
    found: dict[str, float] = {}
    if not rows:
        return found
    factors = list(rows[0]["levels"])
    design = np.array([[1.0, *(row["levels"][factor] - 0.5 for factor in factors)] for row in rows])
    for measure in [name for name in rows[0] if name.startswith("acc_") and not name.endswith("flipped")]:
        seen = np.array([row[measure] for row in rows])
        fitted, *_ = np.linalg.lstsq(design, seen, rcond=None)
        found.update({f"{name}_{measure}": round(float(e), 3) for name, e in zip(factors, fitted[1:], strict=True)})
        spread = float(np.sum((seen - design @ fitted) ** 2)) / (len(rows) - len(fitted))
        found[f"standard_error_{measure}"] = round(2 * (spread / len(rows)) ** 0.5, 3)
    return found


def drawn(design: dict[str, Any]) -> list[dict[str, Any]]:
    """Its runs: as listed, or the levels of all factors in each."""
    if "run" in design:
        return list(design["run"])
    factors, count = design["factor"], design["runs"]
    assert len(factors) <= len(BASIC), "too many factors"
    runs = []
    for number in range(count):
        bits = [1 if number >> place & 1 else -1 for place in range(4)]
        run: dict[str, Any] = {"seed": number, "levels": {}}
        for factor, column in zip(factors, BASIC, strict=False):
            high = int(np.prod([bits[place] for place in column])) > 0
            run["levels"][factor["name"]] = int(high)
            run.update(factor["high" if high else "low"])
        runs.append(run)
    return runs


def one(
    engine: Local, images: Pack, setting: Any, run: dict[str, Any], views: list[int], folder: Path
) -> dict[str, Any]:
    """Train and evaluate one variant."""
    usual = asdict(recipes.load(run["recipe"]))
    unknown = set(run) - set(usual) - KEYS
    assert not unknown, f"{', '.join(sorted(unknown))} would change nothing"
    changed = {key: value for key, value in run.items() if key in usual and key != "batch"}  # a recipe's is a way
    recipe = decode(Recipe, {**usual, **changed})
    setting = replace(setting, recipe=recipe, view_sizes=tuple(views), seed=run.get("seed", 0))
    candidate = Candidate(
        model=run["model"], train_px=run["px"], precision=run["precision"], layout=run.get("layout", "channels_last")
    )
    batch, began_at = run.get("batch", 256), time.monotonic()

    def pace_s(px: int) -> float:
        return batch / run.get("pace", PACE) * (px / 160) ** 2

    stages = tuple(Stage(since=since, px=px, step_s=pace_s(px)) for since, px in recipe.stages(run["px"]))
    trained = engine.run(
        TrainJob(
            setting=setting,
            candidate=candidate,
            batch=batch,
            steps=int(run["seconds"] / pace_s(run["px"])),
            folder=str(folder),
            until_at=began_at + run["seconds"],
            step_s=pace_s(run["px"]),
            validation_s=0.5,
            save_s=0.3,
            checkpoint_every_s=run["seconds"],
            stages=stages,
        ),
        until_at=began_at + run["seconds"] + 5,
        on_progress=lambda progress: None,
    )
    if not isinstance(trained, TrainResult):
        return {"failed": trained.reason}
    pairs = tuple(views_of(views, flips=True))
    done = engine.run(
        EvaluateJob(
            setting=setting,
            candidate=candidate,
            batch=batch,
            folder=str(folder),
            views=pairs,
            splits=("val",),
            until_at=time.monotonic() + 60,
        ),
        until_at=time.monotonic() + 65,
        on_progress=lambda progress: None,
    )
    if not isinstance(done, EvalResult):
        return {"failed": done.reason}
    labels = images.labels[images.indices("val")]
    logits = {view: read_logits(folder, "val", view) for view in pairs}
    every = average(logits, pairs)
    return {
        "epochs": round(trained.epochs, 1),
        "loss": trained.curve[-1]["loss"],
        "training_s": round(trained.training_s, 1),
        "wall_s": round(time.monotonic() - began_at, 1),
        "peak_bytes": trained.peak_bytes,
        "nan_restarts": trained.nan_restarts,
        **{f"acc_{view.name.replace(' ', '_')}": _accuracy(found, labels) for view, found in logits.items()},
        "acc_all": _accuracy(every, labels),
        "nll_all": round(float(-np.log(every[np.arange(len(labels)), labels] + 1e-12).mean()), 4),
    }


def _accuracy(scores: Any, labels: Any) -> float:
    return round(100 * correct(scores, labels) / len(labels), 3)


def held_out(data: Path, share: float) -> Path:
    """The same images, without `test`, and with a share of `train` in `val`; hard links beside the data."""
    folder = data.parent / f"{data.name}-held-out-{share:g}"
    if folder.is_dir():
        return folder
    temporary = Path(tempfile.mkdtemp(dir=data.parent))
    for split in ("train", "val"):
        for path in sorted((data / split).rglob("*.*")):
            drawn_as = int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16) / 2**32
            into = temporary / ("val" if split == "val" or drawn_as < share else "train") / path.parent.name
            into.mkdir(parents=True, exist_ok=True)
            os.link(path, into / path.name)
    try:
        temporary.rename(folder)
    except OSError:
        assert folder.is_dir()  # another process was first
    return folder


if __name__ == "__main__":
    main()
