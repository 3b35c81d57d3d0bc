"""The training engine: images/s against the device's own pace and against a plain timm loop, and accuracy in its time.

    python benchmarks/training.py --part speed --data IMAGENETTE
    python benchmarks/training.py --part accuracy --data DATA --data-set imagenette --time 90s --recipe fast --seeds 0,1
    python benchmarks/training.py --take OTHER.json ...    # rows that another GPU of the machine made meanwhile
    python benchmarks/training.py --page                   # docs/results/training.md anew from the result

Rows are added to the result file as they are made, so that a series can be made in several sittings; a row that is
there is not made again. Speed: one process after the other on the same machine, in the precision and layout that a
comparison at a small batch finds fastest, as the profile phase does. Accuracy: the command
line as a user has it, from the start of its process; the store of decoded images and the profile are there already
unless --cold. Every choice is made on `val`; `test` is read once per run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import ground
import training_page
from fitwithin import units
from fitwithin.candidate import grid
from fitwithin.engine.jobs import CompareJob, ProbeJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import CompareResult, Probe
from fitwithin.machine import DeviceName

RESULT = ground.ROOT / "benchmarks" / "results" / "training.json"

#: From this many seconds on, a run needs to use 99 % of its budget; shorter ones 97 %.
LONG_S = 600

#: What benchmarks/stalls.py found.
STALLS = RESULT.with_name("stalls.json")

#: Compared at 160 px and this batch, with so many loader processes.
SPEED_MODELS = ("resnet18", "resnet26d", "resnest50d_1s4x24d", "efficientnet_b0")
SPEED_PX, SPEED_BATCH, SPEED_WORKERS = 160, 128, 4

#: The images' shorter side in our store: that of imagenette-224's files, so that both read as many pixels.
STORE_PX = 224

#: What 16-bit training there is to choose from.
SPEED_PRECISIONS, SPEED_LAYOUTS = ("amp", "amp-bf16"), ("nchw", "channels_last")

#: The one backbone that accuracy is measured with, by the time there is (a larger one for a longer time), and its
#: precision by recipe; rows of others are summed up under their names.
MODEL, LONG_MODEL, LONG_S = "resnet26d", "resnet50d", 600.0
PRECISION = {"paper": "amp", "fast": "amp-bf16"}

#: Of which limits the store and the profile are known to be there.
PREPARED: list[list[str]] = []

#: Training sizes, and test sizes by recipe: the paper's two, and one between. A long time has room for larger images:
#: from 5 to 200 epochs imagenette's published runs gain more at 192 px than at 128 (92.50 to 95.03, 91.57 to 94.24 %).
#: It is tested larger than it was trained: on validation data the first such run had 94.7 % at 192 px, 96.1 at 256.
SIZES = {"imagenette": "160", "mini-imagenet": "64"}
LONG_SIZES = {("imagenette", "fast"): ("192", "224,256,288")}
TEST_SIZES = {
    ("imagenette", "paper"): "160,224",
    ("imagenette", "fast"): "160,192,224",
    ("mini-imagenet", "paper"): "64,84",
    ("mini-imagenet", "fast"): "64,84",
}


def main() -> None:
    """One part; its rows and the summary of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "accuracy"))
    parser.add_argument("--page", action="store_true", help="write the page of the result, measure nothing")
    parser.add_argument("--take", type=Path, nargs="+", help="take these results' rows in, measure nothing")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--data-set", choices=tuple(SIZES), default="imagenette")
    parser.add_argument("--sizes", default=None, help="training size; its usual ones without")
    parser.add_argument("--test-sizes", default=None)
    parser.add_argument("--time", default="90s")
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--model", default=None, help="the usual one for the time without")
    parser.add_argument("--precision", default=None, help="the recipe's usual one without")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--models", default=",".join(SPEED_MODELS), help="of the speed part")
    parser.add_argument("--px", type=int, default=SPEED_PX)
    parser.add_argument("--batch", type=int, default=SPEED_BATCH)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--logits", type=Path, help="a folder for what the winner's views said of every image")
    arguments = parser.parse_args()
    if arguments.page:
        training_page.write(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")
    elif arguments.take:
        ground.take(arguments.take, arguments.result, summary)
    elif arguments.part == "speed":
        for model in arguments.models.split(","):
            add(arguments, {"part": "speed", "model": model}, lambda model=model: speed(arguments, model))
    else:
        arguments.model = arguments.model or usual_model(arguments.time)
        arguments.precision = arguments.precision or PRECISION.get(recipe_name(arguments), "amp")
        for seed in (int(word) for word in arguments.seeds.split(",")):
            key = {"part": "accuracy", "data": arguments.data_set, "time": arguments.time}
            key.update(recipe=recipe_name(arguments), sizes=list(sizes(arguments)), model=arguments.model)
            key.update(precision=arguments.precision, seed=seed, cold=arguments.cold)
            add(arguments, key, lambda seed=seed: accuracy(arguments, seed))


def sizes(arguments: argparse.Namespace) -> tuple[str, str]:
    """Training and test sizes."""
    name = recipe_name(arguments)
    usual = (
        SIZES[arguments.data_set],
        TEST_SIZES.get((arguments.data_set, name), TEST_SIZES[arguments.data_set, "paper"]),
    )
    if units.duration(arguments.time) >= LONG_S:
        usual = LONG_SIZES.get((arguments.data_set, name), usual)
    return arguments.sizes or usual[0], arguments.test_sizes or usual[1]


def usual_model(time_told: str) -> str:
    """The backbone for so much time."""
    return LONG_MODEL if units.duration(time_told) >= LONG_S else MODEL


def recipe_name(arguments: argparse.Namespace) -> str:
    """Without its folder."""
    return Path(arguments.recipe).stem


def add(arguments: argparse.Namespace, key: dict[str, Any], make: Any) -> None:
    """Make the row of that key unless it is there, and write the result."""
    value = json.loads(arguments.result.read_text(encoding="utf-8")) if arguments.result.exists() else {"rows": []}
    there = [row for row in value["rows"] if all(row.get(name) == wanted for name, wanted in key.items())]
    if there:
        return
    row = {**key, "commit": arguments.commit or ground.head(), **make()}
    print(json.dumps(row), flush=True)
    rows = [*value["rows"], row]
    with Local(DeviceName.parse(arguments.device)) as engine:
        machine = engine.describe()
    command = "python benchmarks/training.py (each row holds its own arguments)"
    ground.write(arguments.result, "training", machine, arguments.commit, command, summary=summary(rows), rows=rows)


def speed(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Images/s with the real loader, with a batch that lies ready, and of a plain timm loop over the same files."""
    px, batch = arguments.px, arguments.batch
    _, setting = ground.prepared(
        arguments.data,
        device=arguments.device,
        memory=arguments.memory,
        sizes=f"{px},{STORE_PX}",
        workers=SPEED_WORKERS,
    )
    with tempfile.TemporaryDirectory() as scratch, Local(setting.device, Path(scratch) / "worker.log") as engine:
        variants = tuple(grid([model], SPEED_PRECISIONS, [px], SPEED_LAYOUTS))
        screened = engine.run(
            CompareJob(setting=setting, candidates=variants),
            until_at=time.monotonic() + 300,
            on_progress=lambda progress: None,
        )
        assert isinstance(screened, CompareResult), screened
        candidate = min(variants, key=lambda variant: screened.paces[variant.name].step_s)
        job = ProbeJob(setting=setting, candidate=candidate, batch=batch, timed=True)
        probe = engine.run(job, until_at=time.monotonic() + 300, on_progress=lambda progress: None)
    assert isinstance(probe, Probe), probe
    assert probe.timing is not None, probe.reason
    words = [model, "--data", arguments.data, "--px", px, "--batch", batch, "--workers", SPEED_WORKERS]
    command = [sys.executable, ground.ROOT / "benchmarks" / "timm_loop.py", *words, "--device", arguments.device]
    told = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
    loop = json.loads(told.strip().splitlines()[-1])
    return {
        "px": px,
        "precision": candidate.precision,
        "layout": candidate.layout,
        "batch": batch,
        "workers": SPEED_WORKERS,
        "images_per_s": batch / probe.timing.step_s,
        "device_images_per_s": batch / probe.timing.dummy_step_s,
        "loader_images_per_s": batch / probe.timing.loader_step_s,
        "timm_images_per_s": loop["images_per_s"],
        "timm_least": loop["least"],
        "timm_most": loop["most"],
    }


def accuracy(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run of the product, seen from outside."""
    data = str(ground.with_splits(arguments.data))
    train_sizes, test_sizes = sizes(arguments)
    limits = ["--memory", arguments.memory, "--models", arguments.model, "--precision", arguments.precision]
    limits += ["--sizes", train_sizes, "--test-sizes", test_sizes, "--recipe", arguments.recipe]
    limits += ["--device", arguments.device, "--seed", str(seed), "--time", arguments.time]
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(os.environ)
        if arguments.cold:
            environment["FITWITHIN_CACHE"] = str(Path(scratch) / "cache")
        elif limits[:-4] not in PREPARED:  # whatever the seed and the time
            plan = ["plan", data, *limits, "--out", str(Path(scratch) / "plan.json")]
            told = _fitwithin(plan, environment)
            assert told.returncode == 0, told.stderr
            PREPARED.append(limits[:-4])
        folder = Path(scratch) / "run"
        begun_at = time.monotonic()
        told = _fitwithin(["run", data, *limits, "--out", str(folder)], environment)
        wall_s = time.monotonic() - begun_at
        assert told.returncode == 0, told.stderr
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if arguments.logits is not None:
            named = (recipe_name(arguments), arguments.data_set, arguments.time, str(seed))
            keep_logits(folder, arguments.logits / "-".join(named))
        entries, turns, timings = ground.entries(folder), ground.turns(folder), ground.timings(folder)
    receipt, methods = report["receipt"], report["methods"]
    delivered = next(method for method in methods if method["delivered"])
    trained = next(row for row in report["candidates"] if row["name"] == report["winner"])
    return {
        "limit_s": units.duration(arguments.time),
        "wall_s": wall_s,
        "spent_s": next(limit["spent"] for limit in receipt["limits"] if limit["name"] == "time"),
        "limits_kept": all(limit["kept"] for limit in receipt["limits"]),
        "phases": {phase["phase"]: phase["spent_s"] for phase in receipt["phases"]},
        "entries": entries,
        "turns": turns,
        "timings": timings,
        "batch": trained["batch"],
        "epochs": trained["epochs"],
        "images_per_s": trained["images_per_s"],
        "val": ground.share(delivered["validation"]),
        "ensemble_test": ground.share(delivered["test"]),
        # By px, each alone; the best of them by validation is the single view that would be handed over.
        "single": {
            method["test_px"]: [ground.share(method["validation"]), ground.share(method["test"])]
            for method in methods
            if method["test_px"].isdigit()
        },
    }


def keep_logits(run: Path, folder: Path) -> None:
    """Copy the logits [N, K] of every split and view there, in the order of the packed images."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in run.glob("candidates/*/logits-*.npy"):
        shutil.copy(path, folder / path.name)


def _fitwithin(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fitwithin", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    value: dict[str, Any] = {}
    fast = [row for row in rows if row["part"] == "speed"]
    if fast:
        value["loader_bound_ratio_min"] = min(row["images_per_s"] / row["device_images_per_s"] for row in fast)
        value["speed_vs_timm_loop_min"] = min(row["images_per_s"] / row["timm_images_per_s"] for row in fast)
    runs = [row for row in rows if row["part"] == "accuracy"]
    if runs:
        # By the receipt, and seen from outside, with Python's own start and end.
        value["overrun_s_max"] = max(
            max(0.0, row["spent_s"] - row["limit_s"], row["wall_s"] - row["limit_s"]) for row in runs
        )
        if long := [100 * row["spent_s"] / row["limit_s"] for row in runs if row["limit_s"] >= LONG_S]:
            value["budget_used_pct_min_long"] = min(long)
        used = [(row["recipe"], 100 * row["spent_s"] / row["limit_s"]) for row in runs]
        value["budget_used_pct_min"] = min(share for _, share in used)
        for name in dict.fromkeys(recipe for recipe, _ in used):
            value[f"{name.replace('-', '_')}_budget_used_pct_min"] = min(
                share for recipe, share in used if recipe == name
            )
    if STALLS.exists():
        stalls = json.loads(STALLS.read_text(encoding="utf-8"))["summary"]
        value.update({key: stalls[key] for key in ("stalls", "overrun_s_max_stalls")})
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in runs:
        words = [row["data"], row["time"], row["recipe"]]
        if (row["model"], row["precision"]) != (usual_model(row["time"]), PRECISION.get(row["recipe"])):
            words += [row["model"], row["precision"]]
        words += ["cold"] if row["cold"] else []
        groups.setdefault("_".join(words).replace("-", "_"), []).append(row)
    for name, group in groups.items():
        tested = [row for row in group if row["ensemble_test"] is not None]
        value[f"{name}_seeds"] = len(tested)
        if len(tested) < len(group):  # the evaluation of test came to no end in time
            value[f"{name}_untested"] = len(group) - len(tested)
        if tested:
            value[f"{name}_ensemble_test_mean"] = mean(row["ensemble_test"] for row in tested)
            value[f"{name}_single_test_mean"] = mean(
                max(row["single"].values(), key=lambda found: found[0])[1] for row in tested
            )
    return value


if __name__ == "__main__":
    main()
