"""How well timm backbones learn by the number of images they have seen, and what a step of each costs: for the prior.

    python benchmarks/prior.py --data CLOTHING10 --px 128 --seen 25000,100000 [--minutes 9] [--only PATTERN ...]

Every trial is a complete schedule of recipe ``fast`` from scratch with a fixed number of steps of BATCH images.
Accuracy by images seen does not depend on the machine. The pace is measured before, each backbone alone: a quick timed
probe at the largest size, which times the smaller sizes of progressive resizing too. Trials side by side on one GPU
(``--at-once``) gain no time, and some fail (docs/log.md).
A quarter of ``train`` is held out beside ``val``; ``test`` is not looked at. Rows that are in the result are not made
again, unless they failed, so the work can be split over several calls.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

import ground
from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate
from fitwithin.data.pack import Pack
from fitwithin.engine.jobs import JobSettings, ProbeJob, Stage, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import Probe, TrainResult
from fitwithin.training.model import depthwise
from variants import HELD_OUT, held_out

RESULT = ground.ROOT / "benchmarks" / "results" / "prior.json"

#: The backbones that are tried, those first of which most is expected between a minute and some hours.
POOL = (
    *("resnet26d", "resnet18d", "resnet50d", "resnet18", "resnet50", "resnet34d", "resnet26", "resnet14t", "resnet10t"),
    *("ecaresnet26t", "resnest26d", "regnety_008", "regnetx_008", "regnety_004", "repvgg_a0", "repvgg_a1"),
    *("efficientnet_b0", "mobilenetv3_large_100", "efficientnet_b1", "tf_efficientnetv2_b0", "tf_efficientnet_lite0"),
    *("ghostnet_100", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_small_050", "mnasnet_100", "lcnet_100"),
    *("convnext_atto", "convnext_pico", "mobilevit_xs", "edgenext_xx_small", "fastvit_t8", "vit_tiny_patch16_224"),
    *("resnest50d_1s4x24d", "resnest50d", "resnest50d_4s2x40d", "resnet101", "resnet101d", "ecaresnet50t"),
    *("regnety_016", "regnety_002", "regnetx_004", "repvgg_b0", "hgnetv2_b0", "hgnetv2_b1", "gernet_s", "gernet_m"),
    *("dla34", "densenet121", "vgg11_bn", "cspresnet50", "selecsls42b", "ese_vovnet19b_dw", "rexnet_100", "mixnet_s"),
    *("poolformer_s12", "mobilenetv4_conv_small", "repvit_m0_9", "mobileone_s0", "skresnet18", "seresnet50"),
)

COMMAND = "python benchmarks/prior.py (each row holds its own values)"

BATCH = 128

#: The cap of each process: far more than the steps of BATCH images need.
MEMORY = "16GiB"

#: No probe and no trial takes longer, in seconds.
PROBE_S, TRIAL_S = 60.0, 1800.0


def main() -> None:
    """Make the rows that are missing, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train and val")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--what", default="pace,curve", help="measure paces, train for curves, or both")
    parser.add_argument("--seen", default="25000,100000", help="images seen by a trial")
    parser.add_argument("--only", nargs="*", default=["*"], help="names or patterns of the pool")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing later")
    parser.add_argument("--at-once", type=int, default=1, help="trials that share the GPU")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of a trial")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    arguments = parser.parse_args()
    ends_at = time.monotonic() + 60 * arguments.minutes
    names = [name for name in POOL if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only)]
    images, setting = ground.prepared(
        held_out(arguments.data, HELD_OUT),
        device=arguments.device,
        memory=MEMORY,
        sizes=str(arguments.px),
        workers=arguments.workers,
    )
    setting = replace(setting, recipe=recipes.load("fast"), view_sizes=(arguments.px,))
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"] if arguments.result.exists() else []
    with tempfile.TemporaryDirectory() as scratch, Local(setting.device, Path(scratch) / "worker.log") as engine:
        machine = engine.describe()
        engine.prepare()

        def keep(row: dict[str, Any]) -> None:
            commit = arguments.commit or ground.head()
            rows.append({"data": arguments.data.name, "px": arguments.px, **row, "commit": commit})
            print(json.dumps(rows[-1]), flush=True)
            ground.write(arguments.result, "prior", machine, commit, COMMAND, summary=summary(rows), rows=rows)

        def there(**values: Any) -> bool:
            return any(
                all(row.get(key) == value for key, value in values.items()) and not row.get("failed")
                for row in rows
                if row["data"] == arguments.data.name and row["px"] == arguments.px
            )

        what = arguments.what.split(",")
        for name in names if "pace" in what else ():
            if time.monotonic() < ends_at and not there(what="pace", model=name, device=machine["name"]):
                keep({"what": "pace", "model": name, "device": machine["name"], **pace(engine, setting, name)})
        seen = [int(word) for word in arguments.seen.split(",")]
        pairs = [(n, name) for n in seen for name in names] if "curve" in what else []
        wanted = [(n, name) for n, name in pairs if not there(what="curve", model=name, images=n)]

        def one(place: int) -> None:
            images_seen, name = wanted[place]
            if time.monotonic() < ends_at:
                folder = Path(scratch) / f"{name}-{images_seen}"
                found = trial(engine, images, setting, name, images_seen, folder)
                keep({"what": "curve", "model": name, "images": images_seen, **found})

        with ThreadPoolExecutor(arguments.at_once) as pool:
            list(pool.map(one, range(len(wanted))))


def candidate_of(name: str, setting: JobSettings) -> Candidate:
    """In bfloat16 on a GPU. Depthwise kernels of other layouts than nchw are built at run time."""
    if not setting.device.is_cuda:
        return Candidate(model=name, train_px=setting.view_sizes[0], precision="fp32")
    layout = "nchw" if depthwise(timm.create_model(name)) else "channels_last"
    return Candidate(model=name, train_px=setting.view_sizes[0], precision="amp-bf16", layout=layout)


def pace(engine: Local, setting: JobSettings, name: str) -> dict[str, Any]:
    """What the backbone costs alone on the device: its start, its first steps, steps by size, memory, an evaluation."""
    candidate = candidate_of(name, setting)
    job = ProbeJob(setting=setting, candidate=candidate, batch=BATCH, timed=True, quick=True)
    found = engine.run(job, until_at=time.monotonic() + PROBE_S, on_progress=lambda progress: None)
    if not isinstance(found, Probe) or found.timing is None:
        return {"failed": found.reason, "layout": candidate.layout}
    timing, px = found.timing, candidate.train_px
    return {
        "layout": candidate.layout,
        "parameters": found.parameters,
        "wall_s": round(found.wall_s, 2),
        "startup_s": round(timing.startup_s, 3),
        "warmup_s": round(timing.warmup_s, 3),
        "capture_s": round(timing.capture_s, 3),
        "image_us": {str(size): round(1e6 * s / BATCH, 2) for size, s in paces(timing.stage_step_s, px, timing.step_s)},
        "dummy_image_us": round(1e6 * timing.dummy_step_s / BATCH, 2),
        "change_s": round(sum(timing.stage_change_s.values()), 3),
        "eval_image_us": round(1e6 * timing.eval_image_s[px], 2),
        "peak_bytes": found.peak_bytes,
    }


def paces(smaller: dict[int, float], px: int, step_s: float) -> list[tuple[int, float]]:
    """Seconds of a step at each size."""
    return sorted({**smaller, px: step_s}.items())


def trial(
    engine: Local, images: Pack, setting: JobSettings, name: str, images_seen: int, folder: Path
) -> dict[str, Any]:
    """Train so many images; how many of the validation images are right after the last step."""
    candidate, steps = candidate_of(name, setting), images_seen // BATCH
    epochs = images_seen / len(images.indices("train"))
    stages = tuple(Stage(since=since, px=px, step_s=0.1) for since, px in setting.recipe.stages(candidate.train_px))
    began_at = time.monotonic()
    trained = engine.run(
        TrainJob(
            setting=replace(setting, recipe=setting.recipe.for_epochs(epochs)),
            candidate=candidate,
            batch=BATCH,
            steps=steps,
            folder=str(folder),
            until_at=began_at + TRIAL_S,
            step_s=0.1,
            validation_s=5.0,
            save_s=0.5,
            checkpoint_every_s=math.inf,
            stages=stages,
            frozen=True,
        ),
        until_at=began_at + TRIAL_S,
        on_progress=lambda progress: None,
    )
    if not isinstance(trained, TrainResult) or trained.best is None:
        return {"failed": trained.reason if not isinstance(trained, TrainResult) else "no validation"}
    return {
        "epochs": round(trained.epochs, 2),
        "correct": trained.validations[-1]["accuracy"]["correct"],
        "total": len(images.indices("val")),
        "classes": len(images.classes),
        "train_images": len(images.indices("train")),
        "loss": round(trained.curve[-1]["loss"], 4),
        "training_s": round(trained.training_s, 1),
        "nan_restarts": trained.nan_restarts,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How much there is."""
    curves = [row for row in rows if row["what"] == "curve" and "failed" not in row]
    return {
        "backbones": len({row["model"] for row in curves}),
        "data_sets": len({row["data"] for row in curves}),
        "trials": len(curves),
        "paces": sum(row["what"] == "pace" and "failed" not in row for row in rows),
        "failed": sum("failed" in row for row in rows),
    }


if __name__ == "__main__":
    main()
