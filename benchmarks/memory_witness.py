"""Whole runs under a memory cap, watched from outside: what the driver counts for each of their processes.

    python benchmarks/memory_witness.py DATA --memory 6GiB --time 130s --gpus 0,0,0

Each run is ``fitwithin run DATA --memory CAP --time T --models NAME`` from an empty cache, for backbones of different
families; the last runs name no model, as a newcomer types it. benchmarks/watch.py reads the driver's count of every
process of its GPU every 5 ms or so. Each run has a witness of its own. Runs go on side by side, one for each GPU that
``--gpus`` names; a GPU that is named twice is shared by two. ``--append`` keeps the rows of the result file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ground
from fitwithin import units
from fitwithin.engine.local import Local
from fitwithin.machine import DeviceName
from pages import Target, minus, origin, save, table, targets, text

RESULT = ground.ROOT / "benchmarks" / "results" / "memory_witness.json"

#: Of different families: plain, depthwise, grouped and dilated convolutions, attention and mixtures of both.
MODELS = (
    "efficientnet_b0",
    "resnet18",
    "resnet50d",
    "resnest26d",
    "mobilenetv3_large_100",
    "convnext_atto",
    "regnety_008",
    "densenet121",
    "ghostnet_100",
    "mobilevit_s",
    "edgenext_small",
    "repvgg_a0",
    "mnasnet_100",
    "dla34",
    "hrnet_w18_small",
    "inception_v3",
    "poolformer_s12",
    "cspresnet50",
    "tf_efficientnetv2_b0",
    "fastvit_t8",
    "rexnet_100",
    "vgg11_bn",
)

#: What names no model, so often.
PLAIN_RUNS = 2


TARGETS = (
    Target("whole_runs", "runs that left a model", "{:.0f}", least=20),
    Target("over_cap_bytes_max", "bytes by which a process passed the cap, the largest", "{:,.0f}", most=0),
    Target(
        "receipt_below_witness_bytes_max",
        "bytes by which a receipt's peak is below the witness's, the largest",
        "{:,.0f}",
        most=0,
    ),
    Target("processes", "processes that were watched, probes and refused runs included", "{:.0f}"),
    Target("gap_ms_max", "milliseconds between two readings, the longest", "{:.0f}"),
)


def main() -> None:
    """All runs; the rows are written as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--time", default="130s")
    parser.add_argument("--gpus", default="0", help="GPUs by number, such as 0,1,2,3")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--plain", type=int, default=PLAIN_RUNS, help="runs that name no model")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--append", action="store_true", help="add to the rows of the result file")
    arguments = parser.parse_args()
    free = SimpleQueue[str]()
    gpus = arguments.gpus.split(",")
    for gpu in gpus:
        free.put(gpu)
    names = [*filter(None, arguments.models.split(",")), *([""] * arguments.plain)]
    with Local(DeviceName.parse("cuda")) as engine:
        machine = engine.describe()
    rows: list[dict[str, Any]] = []
    if arguments.append:
        rows += json.loads(arguments.result.read_text(encoding="utf-8"))["rows"]

    def one(name: str) -> None:
        gpu = free.get()
        try:
            rows.append(watched(arguments, name, gpu))
        finally:
            free.put(gpu)
        print(json.dumps(rows[-1]), flush=True)
        cap_bytes = units.size(arguments.memory)
        command = f"python benchmarks/memory_witness.py DATA --memory {arguments.memory} --time {arguments.time}"
        command += f" --gpus {arguments.gpus}"
        ground.write(
            arguments.result,
            "memory_witness",
            machine,
            arguments.commit,
            command,
            summary=summary(rows, cap_bytes),
            rows=rows,
        )

    with ThreadPoolExecutor(len(gpus)) as pool:
        list(pool.map(one, names))
    write_page(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")


def write_page(value: dict[str, Any], docs: Path) -> None:
    """docs/results/memory.md."""
    summary, rows = value["summary"], value["rows"]
    refused = [row["model"] for row in rows if row["exit_code"]]
    told = (
        f"{len(rows)} runs, each from an empty cache, under a cap of {units.format_size(summary['cap_bytes'])} for "
        f"every process. A witness reads the driver's count of every process of a run every 5 ms or so. Runs may share "
        f"a GPU. The command: `{value['command']}`."
    )
    why = f"Refused, because a profile beside other runs left too little time: {', '.join(refused)}." if refused else ""
    lines = ["# Memory, watched from outside", "", *text(told), *origin(value, "memory_witness")]
    lines += [*targets(TARGETS, summary), "## Runs", "", *text(why)]
    cells = [
        [
            row["model"],
            f"{row['witness_bytes'] / 2**20:,.0f}",
            "–" if row["receipt_bytes"] is None else f"{row['receipt_bytes'] / 2**20:,.0f}",
            minus(f"{(row['witness_bytes'] - summary['cap_bytes']) / 2**20:,.0f}"),
            str(row["processes"]),
        ]
        for row in rows
    ]
    lines += table(["Model", "Witness, MiB", "Receipt, MiB", "Over the cap, MiB", "Processes"], cells)
    save(docs / "results" / "memory.md", "\n".join(lines))


def watched(arguments: argparse.Namespace, name: str, gpu: str) -> dict[str, Any]:
    """One run on one GPU from an empty cache: how it ended, what its receipt says, and what the witness saw."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seen = folder / "watch.json"
        script = str(ground.ROOT / "benchmarks" / "watch.py")
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "FITWITHIN_CACHE": str(folder / "cache")}
        words = ["run", str(arguments.data), "--memory", arguments.memory, "--time", arguments.time]
        words += ["--models", name] if name else []
        command = [sys.executable, "-m", "fitwithin", *words, "--out", str(folder / "run")]
        began_at = time.monotonic()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        witness = subprocess.Popen([sys.executable, script, str(seen), "--index", gpu, "--of", str(run.pid)])
        _, errors = run.communicate()
        wall_s = time.monotonic() - began_at
        witness.send_signal(signal.SIGTERM)
        witness.wait(30)
        watch = json.loads(seen.read_text(encoding="utf-8"))
        receipt_path = folder / "run" / "receipt.json"
        receipt = json.loads(receipt_path.read_text(encoding="utf-8")) if receipt_path.exists() else None
    limits = {limit["name"]: limit for limit in receipt["limits"]} if receipt else {}
    peaks = [phase["peak_bytes"] for phase in receipt["phases"] if phase["peak_bytes"]] if receipt else []
    return {
        "model": name or "none named",
        "gpu": gpu,
        "exit_code": run.returncode,
        "wall_s": wall_s,
        "error": errors.strip()[-300:] if run.returncode else "",
        "receipt_bytes": max(peaks, default=None),
        "receipt_kept": {limit: value["kept"] for limit, value in limits.items()},
        "witness_bytes": max(watch["peaks"].values(), default=0),
        "processes": len(watch["peaks"]),
        "readings": watch["readings"],
        "gap_ms_median": watch["gap_ms_median"],
        "gap_ms_max": watch["gap_ms_max"],
    }


def summary(rows: list[dict[str, Any]], cap_bytes: int) -> dict[str, Any]:
    """Over all runs. A run that was refused, with its reason, counts for the cap and not as a whole run."""
    whole = [row for row in rows if row["exit_code"] == 0]
    receipts = [row for row in rows if row["receipt_bytes"] is not None]
    return {
        "cap_bytes": cap_bytes,
        "runs": len(rows),
        "whole_runs": len(whole),
        "over_cap_bytes_max": max(row["witness_bytes"] for row in rows) - cap_bytes,
        "receipt_below_witness_bytes_max": max(
            (row["witness_bytes"] - row["receipt_bytes"] for row in receipts), default=None
        ),
        "processes": sum(row["processes"] for row in rows),
        "gap_ms_max": max(row["gap_ms_max"] for row in rows),
    }


if __name__ == "__main__":
    main()
