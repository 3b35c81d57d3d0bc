"""What a run hands over: its views, its probabilities, its exports, its predictions and its service.

    python benchmarks/inference.py --kind run --run RUN                   # of a run with val and test
    python benchmarks/inference.py --kind bench --run RUN                 # its passes, beside what its report says
    python benchmarks/inference.py --kind novelty --run RUN --data FOLDER --other FOLDER  # its test images, and others
    python benchmarks/inference.py --kind export                          # a dozen families to ONNX
    python benchmarks/inference.py --kind predict --run RUN --data FOLDER # beside a plain timm loop
    python benchmarks/inference.py --kind serve --run RUN --data FOLDER   # 60 s with 32 connections

Rows are added to the result; one of the same kind and name is replaced, of runs one of the same data and hardware.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import defaults
import ground
import inference_page

RESULT = ground.ROOT / "benchmarks" / "results" / "inference.json"

COMMAND = "python benchmarks/inference.py (each row holds its own values)"

FAMILIES = (
    "resnet18d",
    "resnet26t",
    "regnety_002",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "ghostnet_100",
    "repvgg_a0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "levit_128s",
    "mambaout_femto",
    "hgnetv2_b0",
    "resnest14d",
)

#: Seconds and connections of the service's load.
LOAD_S, CONNECTIONS = 60.0, 32

#: Runs of each side, one after the other.
TIMES = 3


def main() -> None:
    """Make a row, and the file and page with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[*KINDS], required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path, help="images for predictions")
    parser.add_argument("--other", type=Path, help="images of another kind, for novelty")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    arguments = parser.parse_args()
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"] if arguments.result.exists() else []
    made = KINDS[arguments.kind](arguments)
    report = arguments.run / "report.json" if arguments.run else None
    known = json.loads(report.read_text(encoding="utf-8")) if report is not None and report.is_file() else {}
    machine, commit = defaults.machine_of(known), arguments.commit or ground.head()
    for row in made:
        row |= {"kind": arguments.kind, "hardware": machine["name"], "commit": commit}
        rows = [each for each in rows if same(each) != same(row)] + [row]
        print(json.dumps(row), flush=True)
    ground.write(arguments.result, "inference", machine, commit, COMMAND, summary=summary(rows), rows=rows)
    if arguments.result == RESULT:
        inference_page.write(json.loads(RESULT.read_text(encoding="utf-8")), ground.ROOT / "docs")


def same(row: dict[str, Any]) -> tuple[str, ...]:
    """What no two rows share."""
    of_a_run = row["kind"] in ("run", "bench")
    return (row["kind"], row["name"].split()[0], row["hardware"]) if of_a_run else (row["kind"], row["name"])


def of_run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A run's views against the single one at the training size and the paper's, and its probabilities, on test."""
    report = json.loads((arguments.run / "report.json").read_text(encoding="utf-8"))
    methods = report["methods"]
    delivered = next(method for method in methods if method["delivered"])
    single = next(method for method in methods if method["method"].startswith("Symmetric"))
    paper = next(method for method in methods if "nsemble" in method["method"] and not method["delivered"])
    test = next(each for each in report["assessments"] if each["split"] == "test")
    views = [view for view in report["views"] if view["chosen"]]
    return [
        {
            "name": f"{Path(report['data']['path']).name} {delivered['candidate']}",
            "test": ground.share(delivered["test"]),
            "single": ground.share(single["test"]),
            "paper": ground.share(paper["test"]),
            "ms": sum(view["ms_per_image"] for view in views),
            "paper_ms": sum(view["ms_per_image"] for view in report["views"] if " of " not in view["name"]),
            "temperature": test["temperature"],
            **{f"{name}_before": test["raw"][name]["value"] for name in ("nll", "brier", "ece")},
            **{f"{name}_after": test["calibrated"][name]["value"] for name in ("nll", "brier", "ece")},
            "images": test["raw"]["images"],
        }
    ]


def of_bench(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Passes of what a run delivers, as its user measures them, beside the milliseconds of its report."""
    report = json.loads((arguments.run / "report.json").read_text(encoding="utf-8"))
    said_ms = sum(view["ms_per_image"] for view in report["views"] if view["chosen"])
    batch = report["usage"]["batch"]
    command = [sys.executable, "-P", "-m", "fitwithin", "bench", str(arguments.run), "--json"]
    words = ["--device", arguments.device, "--batch", f"1,{batch}"]
    found = json.loads(subprocess.run([*command, *words], check=True, capture_output=True, text=True).stdout)
    by_batch = {each["batch"]: each for each in found["passes"]}
    own_ms = by_batch[batch]["p50_ms"] / batch
    return [
        {
            "name": f"{Path(report['data']['path']).name} {report['winner']} on {found['device'].partition(':')[0]}",
            "views": found["views"],
            "batch": batch,
            "said_ms": said_ms,
            "measured_ms": own_ms,
            "error_pct": 100 * (said_ms / own_ms - 1),
            "p50_ms": by_batch[batch]["p50_ms"],
            "p99_ms": by_batch[batch]["p99_ms"],
            "images_per_s": by_batch[batch]["images_per_s"],
            "one_p50_ms": by_batch[1]["p50_ms"],
            "one_p99_ms": by_batch[1]["p99_ms"],
            "peak_bytes": by_batch[batch]["peak_bytes"],
            "said_bytes": report["usage"]["used_bytes"],
        }
    ]


#: Pictures of each side, at the most.
NOVELTY_PICTURES = 500


def of_novelty(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """How well the novelty tells test images from pictures of another kind, beside the surest probability."""
    from sklearn.metrics import roc_auc_score

    from fitwithin import Model

    model, sides = Model(arguments.run), []
    for folder in (arguments.data, arguments.other):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        some = random.Random(0).sample(files, min(NOVELTY_PICTURES, len(files)))
        found = [each for each in model.predict(some, device=arguments.device) if not each.error]
        sides.append(([each.novelty or 0.0 for each in found], [each.probability for each in found]))
    (own, own_sure), (other, other_sure) = sides
    truth = [0] * len(own) + [1] * len(other)
    return [
        {
            "name": f"{model.ensemble.candidate}: {arguments.data.parent.name} and {arguments.other.parent.name}",
            "images": len(own),
            "others": len(other),
            "auroc": roc_auc_score(truth, [*own, *other]),
            "auroc_by_probability": roc_auc_score(truth, [-each for each in (*own_sure, *other_sure)]),
            "flagged_pct": 100 * statistics.fmean(each > 1 for each in own),
            "others_flagged_pct": 100 * statistics.fmean(each > 1 for each in other),
        }
    ]


def of_export(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Families from drawn weights to ONNX: the answers of both."""
    import timm
    import torch

    from fitwithin.candidate import views_of
    from fitwithin.inference.ensemble import Ensemble
    from fitwithin.inference.export.program import export
    from fitwithin.inference.model import Model, hand_over
    from fitwithin.training import model as models

    found = []
    for name in FAMILIES:
        px = timm.get_pretrained_cfg(name).input_size[-1] if timm.get_pretrained_cfg(name).fixed_input_size else 96
        with tempfile.TemporaryDirectory() as scratch:
            run, trial = Path(scratch), Path(scratch, "candidates", "x")
            trial.mkdir(parents=True)
            torch.manual_seed(0)
            arguments_of = {"img_size": px} if "vit_" in name else {}
            net = timm.create_model(name, num_classes=10, **arguments_of)
            classes = tuple(f"class {place}" for place in range(10))
            card = models.Card(
                model=name, classes=classes, train_px=px, precision="fp32", crop=0.95, arguments=arguments_of
            )
            models.save(net, card, trial)
            views = tuple(views_of([px], flips=True))
            hand_over(
                Ensemble(candidate="x", trial="candidates/x", views=views, batch=8, temperature=0.8), run, pictures()
            )
            begun_at = time.monotonic()
            try:
                check = export(Model(run), "onnx", run / "export")
            except Exception as error:
                found.append({"name": name, "failed": str(error)[:300]})
                continue
            found.append(
                {
                    "name": name,
                    "px": px,
                    "max_abs_diff": check.max_abs_diff,
                    "same_class": check.same_class,
                    "pictures": check.pictures,
                    "export_s": round(time.monotonic() - begun_at, 2),
                }
            )
    return found


def pictures() -> dict[str, bytes]:
    """Eight pictures of coloured clouds."""
    found = {}
    for seed in range(8):
        rng, buffer = np.random.default_rng(seed), io.BytesIO()
        small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        small.resize((240, 180), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        found[f"{seed}.jpg"] = buffer.getvalue()
    return found


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(1000)),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


#: A plain timm loop over the same model and files, as its documentation has it.
LOOP = """
import sys, torch, timm
folder, data, device, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(device)
config = timm.data.resolve_model_data_config(net, use_test_size=True)
images = timm.data.create_dataset("", root=data, search_split=False)
loader = timm.data.create_loader(images, batch_size=64, is_training=False, num_workers=workers,
    use_prefetcher=device != "cpu", device=torch.device(device), **{k: config[k] for k in
    ("input_size", "interpolation", "mean", "std", "crop_pct")})
with torch.inference_mode():
    n = sum(len(net(x.to(device)).softmax(-1).argmax(-1).tolist()) for x, _ in loader)
assert n == int(sys.argv[5]), n
"""


def of_predict(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Images a second of both, their starts included."""
    device = "cpu" if arguments.device == "cpu" else "cuda:0"
    images = sum(path.is_file() for path in arguments.data.rglob("*"))
    place = arguments.data.resolve()
    name = place.name if (place / "train").is_dir() else f"{place.parent.name}/{place.name}"
    ours, theirs, alike = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        one = Path(shutil.copytree(arguments.run / "model", f"{scratch}/one"))
        ensemble = json.loads((one / "ensemble.json").read_text(encoding="utf-8"))
        single = {**ensemble, "views": ensemble["views"][:1]}
        (one / "ensemble.json").write_text(json.dumps(single), encoding="utf-8")
        for _ in range(TIMES):
            for folder, taken in ((arguments.run, ours), (one, alike)):
                command = [sys.executable, "-P", "-m", "fitwithin", "predict", str(folder), str(arguments.data)]
                taken.append(images / taken_s([*command, "-o", f"{scratch}/x.csv", "--device", device]))
            words = [str(one), str(arguments.data), device, str(os.cpu_count()), str(images)]
            theirs.append(images / taken_s([sys.executable, "-c", LOOP, *words]))
    return [
        {
            "name": f"{name} on {device.partition(':')[0]}",
            "images": images,
            "views": len(ensemble["views"]),
            "images_per_s": statistics.median(ours),
            "one_view_images_per_s": statistics.median(alike),
            "loop_images_per_s": statistics.median(theirs),
            "each": [[round(each, 1) for each in side] for side in (ours, alike, theirs)],
        }
    ]


def taken_s(command: list[str]) -> float:
    """The wall time of a command."""
    begun_at = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - begun_at


def of_serve(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The service under load, then among hostile requests."""
    import httpx

    files = [path.read_bytes() for path in sorted(arguments.data.rglob("*")) if path.is_file()][:200]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "fitwithin", "serve", str(arguments.run), "--port", str(port)]
    words = [] if arguments.device == "auto" else ["--device", arguments.device]
    with subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL) as server:
        where = f"http://127.0.0.1:{port}"
        while True:
            try:
                if httpx.get(f"{where}/readyz").status_code == 200:
                    break
            except httpx.HTTPError:
                assert server.poll() is None
            time.sleep(0.1)
        asyncio.run(_load(where, files, 5.0))  # memory settles
        before = _resident(server.pid)
        took, errors = asyncio.run(_load(where, files, LOAD_S))
        after = _resident(server.pid)
        longest_s, crashes = asyncio.run(_hostile(where, files))
        alive = server.poll() is None
        server.terminate()
    took.sort()
    return [
        {
            "name": f"{arguments.run.name} on {'cpu' if arguments.device == 'cpu' else 'cuda'}",
            "connections": CONNECTIONS,
            "seconds": LOAD_S,
            "requests": len(took),
            "errors": errors,
            "requests_per_s": len(took) / LOAD_S,
            "p50_ms": 1e3 * took[len(took) // 2],
            "p99_ms": 1e3 * took[int(0.99 * len(took))],
            "memory_growth_pct": 100 * (after / before - 1),
            "hostile_longest_good_s": longest_s,
            "hostile_crashes": crashes + (not alive),
        }
    ]


def _resident(pid: int) -> int:
    """The bytes that a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def _load(where: str, files: list[bytes], seconds: float) -> tuple[list[float], int]:
    """The seconds of each request of so many connections, and how many were not answered well."""
    import httpx

    took: list[float] = []
    errors = 0
    ends_at = time.monotonic() + seconds

    async def one(number: int) -> None:
        nonlocal errors
        rng = random.Random(number)
        async with httpx.AsyncClient(timeout=60) as client:
            while time.monotonic() < ends_at:
                begun_at = time.monotonic()
                content = rng.choice(files)
                answer = await client.post(f"{where}/predict", content=content, headers={"Content-Type": "image/jpeg"})
                took.append(time.monotonic() - begun_at)
                errors += answer.status_code != 200

    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    return took, errors


async def _hostile(where: str, files: list[bytes]) -> tuple[float, int]:
    """A thousand bad requests, and a good one after each ten: the longest of these, and answers of 500."""
    import httpx

    rng, longest_s, crashes = random.Random(0), 0.0, 0
    good, image = files[0], {"Content-Type": "image/jpeg"}

    def slow() -> Any:
        async def parts() -> Any:
            yield good[:100]
            await asyncio.sleep(20)

        return parts()

    bad = [
        lambda: {"content": good[: rng.randrange(1, len(good))], "headers": image},
        lambda: {"content": rng.randbytes(5000), "headers": image},
        lambda: {"content": bomb(), "headers": {"Content-Type": "image/png"}},
        lambda: {"content": b"{}", "headers": {"Content-Type": "application/json"}},
        lambda: {"files": [("files", (f"{n}.jpg", b"x")) for n in range(100)]},
        lambda: {"content": bytes(40 * 2**20), "headers": image},
        lambda: {"content": slow(), "headers": image},
    ]
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=200)) as client:

        async def one(number: int) -> None:
            nonlocal crashes
            try:
                answer = await client.post(f"{where}/predict", **bad[number % len(bad)]())
                crashes += answer.status_code >= 500 and answer.status_code != 503
            except httpx.HTTPError:
                pass  # the server ends a connection whose body it does not want

        async with asyncio.TaskGroup() as group:
            for number in range(1000):
                group.create_task(one(number))
                if number % 10 == 9:
                    begun_at = time.monotonic()
                    async with httpx.AsyncClient(timeout=60) as own:
                        answer = await own.post(f"{where}/predict", content=good, headers=image)
                    assert answer.status_code == 200, answer.text
                    longest_s = max(longest_s, time.monotonic() - begun_at)
    return longest_s, crashes


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The flat numbers."""
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    value: dict[str, Any] = {"rows": len(rows)}
    if runs := by_kind["run"]:
        value["ensemble_gain_points_mean"] = statistics.fmean(row["test"] - row["single"] for row in runs)
        if quick := [row["test"] - row["paper"] for row in runs if row["ms"] <= row["paper_ms"]]:
            value["vs_paper_views_points"] = statistics.fmean(quick)
        value["nll_better_on"] = sum(row["nll_after"] < row["nll_before"] for row in runs)
        value["ece_after_max"] = max(row["ece_after"] for row in runs)
    if benches := by_kind["bench"]:
        value["latency_error_pct_max"] = max(abs(row["error_pct"]) for row in benches)
    if novel := by_kind["novelty"]:
        value["novelty_auroc_min"] = min(row["auroc"] for row in novel)
        value["novelty_flagged_pct_max"] = max(row["flagged_pct"] for row in novel)
    if exports := by_kind["export"]:
        done = [row for row in exports if "failed" not in row]
        value["export_families_ok"] = sum(row["same_class"] == row["pictures"] for row in done)
        value["onnx_max_abs_diff"] = max(row["max_abs_diff"] for row in done)
        value["onnx_class_agreement"] = sum(row["same_class"] for row in done) / sum(row["pictures"] for row in done)
    if predicted := by_kind["predict"]:
        value["predict_vs_timm_loop"] = min(
            row["one_view_images_per_s"] / row["loop_images_per_s"] for row in predicted
        )
    if served := by_kind["serve"]:
        value["serve_errors"] = sum(row["errors"] for row in served)
        value["serve_p99_ms_max"] = max(row["p99_ms"] for row in served)
        value["serve_memory_growth_pct_max"] = max(row["memory_growth_pct"] for row in served)
        value["hostile_longest_good_s"] = max(row["hostile_longest_good_s"] for row in served)
        value["hostile_crashes"] = sum(row["hostile_crashes"] for row in served)
    return value


KINDS = {
    "run": of_run,
    "bench": of_bench,
    "novelty": of_novelty,
    "export": of_export,
    "predict": of_predict,
    "serve": of_serve,
}

if __name__ == "__main__":
    main()
