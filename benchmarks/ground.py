"""What several benchmarks stand on: packed images with a setting for jobs, and what a result says of its origin."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fitwithin import events
from fitwithin import request as requests
from fitwithin.data import pack, pack_builder
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.jobs import JobSettings
from fitwithin.files import cache_root
from fitwithin.machine import cpu_name
from fitwithin.store import Store

ROOT = Path(__file__).resolve().parent.parent

# The simulated machine lies beside the tests that it was written for.
sys.path.append(str(ROOT / "tests"))

#: What of the machine's description stands under "versions".
VERSIONS = ("torch", "timm", "python", "driver", "cudnn")


def prepared(folder: Path, *, device: str, memory: str, sizes: str, workers: int) -> tuple[pack.Pack, JobSettings]:
    """The images of a folder, decoded and known to runs to come, and the paper's recipe on them under a cap by the
    driver's count."""
    request = requests.parse(folder, memory=memory, time="1h", sizes=sizes, recipe="paper", device=device)
    images = pack_builder.build(open_dataset(Path(folder), cache_dir=cache_root() / "folders"), request.pack_side)
    setting = JobSettings(
        device=request.device,
        memory_bytes=request.budget.memory_bytes,
        accounting="process",
        pack=str(images.folder),
        classes=len(images.classes),
        recipe=request.recipe,
        view_sizes=request.test_sizes,
        seed=0,
        workers=workers,
        canvas_px=request.canvas_px,
    )
    return images, setting


def hardware() -> str:
    """The name of the first GPU, or of the processor where there is none."""
    with suppress(OSError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        if names := subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip():
            return names
    return cpu_name()


def with_splits(folder: Path) -> Path:
    """The folder, if it has the source's own splits: an accuracy on a split drawn at random compares with nothing."""
    missing = [split for split in ("train", "val", "test") if not (folder / split).is_dir()]
    if missing:
        raise SystemExit(f"{folder} has no folder {', '.join(missing)}: accuracies need the data set's own splits")
    return folder


def write(path: Path, theme: str, machine: Mapping[str, Any], commit: str | None, command: str, **results: Any) -> None:
    """Write a result file with where it comes from; without ``commit``, the repository's."""
    value = {
        "theme": theme,
        "date": datetime.date.today().isoformat(),
        "commit": commit or head(),
        "hardware": ", ".join(dict.fromkeys((machine["name"], machine["cpu"]))),
        "versions": {key: machine[key] for key in VERSIONS if key in machine},
        "command": command,
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def take(others: Sequence[Path], result: Path, summary: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
    """Make one result of several; each row holds the commit and the machine that it was made at."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (result, *others) if path.exists()]
    assert len({json.dumps(value["versions"]) for value in found}) == 1, "versions are not the same in all of them"
    origin = ("commit", "hardware")
    rows = [{**{name: value[name] for name in origin}, **row} for value in found for row in value["rows"]]
    hardware = "; ".join(dict.fromkeys(row["hardware"] for row in rows))
    value = {**found[-1], "hardware": hardware, "summary": summary(rows), "rows": rows}
    result.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def share(accuracy: Mapping[str, int] | None) -> float | None:
    """An accuracy of a report in per cent."""
    return 100 * accuracy["correct"] / accuracy["total"] if accuracy else None


def entries(run: Path) -> list[list[Any]]:
    """A run's books: phase, candidate, GPUs, seconds promised and seconds taken of each entry."""
    command = [sys.executable, "-m", "fitwithin", "budget", str(run), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [[entry[name] for name in ("phase", "key", "gpus", "reserved_s", "charged_s")] for entry in told["entries"]]


def turns(run: Path) -> dict[str, dict[str, Any]]:
    """How a run's turns went, by name: steps, the seconds of their start and of the steps, and how often the loss was
    no number."""
    with Store(run, write=False) as store:
        trained, _ = events.outcomes(store)
    names = ("steps", "planned_steps", "ended", "startup_s", "training_s", "nan_restarts", "evaluation_s")
    return {name: {key: getattr(one, key) for key in names} for name, one in trained.items()}


def timings(run: Path) -> dict[str, dict[str, Any]]:
    """What a run's profiles say that a turn takes beside steps, by candidate, in seconds."""
    with Store(run, write=False) as store:
        found = events.profiled(store)
    names = ("startup_s", "warmup_s", "save_s", "capture_s", "step_s", "eval_first_s", "stage_change_s")
    return {name: {key: getattr(one.timing, key) for key in names} for name, one in found.items()}


def head() -> str:
    """The repository's commit."""
    asked = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"
