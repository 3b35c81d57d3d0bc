"""An exported model under ONNX Runtime and OpenVINO, float and in 8 bits: probabilities, accuracy, time.

    fitwithin export RUN --format onnx-int8 --data DATA/val --out EXPORT
    python benchmarks/deploy.py --export EXPORT --data DATA/test       # needs onnxruntime, openvino; not torch

All sessions take turns, so that what else the machine does is shared by all. DATA holds a folder for each class.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino

import ground
from fitwithin.inference.crops import cropper
from fitwithin.inference.sources import Source, labelled_files
from fitwithin.machine import cpu_name
from fitwithin.planning.stats import Accuracy

RESULT = ground.ROOT / "benchmarks" / "results" / "deploy.json"
FILES = {"float": "model.onnx", "8 bits": "model.int8.onnx"}

#: Pictures in a pass, and passes of one picture that are timed after some that are not.
BATCH, TIMED, WARM = 32, 60, 5

Run = Callable[[dict[str, Any]], Any]


def main() -> None:
    """Make the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    about = json.loads((arguments.export / "model.json").read_text(encoding="utf-8"))
    names = {each["shape"][1]: each["name"] for each in about["inputs"]}
    crop = cropper(",".join(map(str, names)), f"{about['prepare']['crop_share']} {about['prepare']['fit']}")

    def feed(paths: list[Path]) -> dict[str, Any]:
        found = crop([Source(name=path.name, content=path) for path in paths])
        return {name: np.stack([each[px] for each in found]) for px, name in names.items()}

    runs = sessions(arguments.export)
    references = feed([arguments.export / "references" / name for name in about["references"]])
    expected = np.array(list(about["references"].values()))
    labelled = labelled_files(arguments.data, about["classes"])
    right = np.array([about["classes"].index(label) for _, label in labelled])
    batches = [feed([path for path, _ in labelled[at : at + BATCH]]) for at in range(0, len(labelled), BATCH)]
    found = {name: np.concatenate([run(batch) for batch in batches]) for name, run in runs.items()}
    taken = times_ms(runs, {name: each[:1] for name, each in references.items()})
    plain = next(iter(found.values()))
    rows = []
    for name, run in runs.items():
        accuracy = Accuracy(correct=int((found[name].argmax(1) == right).sum()), total=len(right))
        rows.append(
            {
                "name": name,
                "references_max_abs_diff": float(np.abs(run(references) - expected).max()),
                "images": accuracy.total,
                "accuracy": round(100 * accuracy.share, 2),
                "interval": [round(100 * end, 2) for end in accuracy.interval],
                "same_class": int((found[name].argmax(1) == plain.argmax(1)).sum()),
                "max_abs_diff": float(np.abs(found[name] - plain).max()),
                "median_ms": round(statistics.median(taken[name]), 2),
                "fastest_ms": round(min(taken[name]), 2),
            }
        )
        print(json.dumps(rows[-1]))
    packages = {name: version(name) for name in ("onnxruntime", "openvino", "numpy", "pillow")}
    machine = {"name": cpu_name(), "cpu": cpu_name(), "python": platform.python_version()}
    command = "python benchmarks/deploy.py --export EXPORT --data clothing10/test"
    summary = {"model": about["model"], "inputs": sorted(names), "views": about["inside"]["views"], **packages}
    summary |= {"int8": {key: value for key, value in about["int8"].items() if key not in ("file", "notes")}}
    ground.write(arguments.result, "deploy", machine, None, command, summary=summary, rows=rows)


def sessions(folder: Path) -> dict[str, Run]:
    """How each file is run, by the name of the row; the first one is what all others are compared with."""
    found: dict[str, Run] = {}
    for kind, file in FILES.items():
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        found[f"ONNX Runtime, {kind}"] = lambda feed, session=session: session.run(None, feed)[0]
    for kind, file in FILES.items():
        for precision in ("f32", "bf16"):
            compiled = openvino.Core().compile_model(folder / file, "CPU", {"INFERENCE_PRECISION_HINT": precision})
            found[f"OpenVINO, {kind}, {precision}"] = lambda feed, run=compiled: np.array(run(feed)["probabilities"])
    return found


def times_ms(runs: dict[str, Run], one: dict[str, Any]) -> dict[str, list[float]]:
    """What one picture took, each time."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM + TIMED):
        for name, run in runs.items():
            began_at = time.perf_counter()
            run(one)
            if turn >= WARM:
                taken[name].append(1e3 * (time.perf_counter() - began_at))
    return taken


if __name__ == "__main__":
    main()
