"""The pace of this machine: the steps of a few reference backbones, in one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import CompareJob, JobSettings
from fitwithin.engine.results import BUSY, CompareResult, Failure, Progress, StepTiming
from fitwithin.files import decode, write_text_atomic
from fitwithin.profiling.cache import MACHINE_KEY_FIELDS

SCHEMA = 1


def reference_paces(
    candidates: Sequence[Candidate],
    setting: JobSettings,
    engine: Engine,
    *,
    folder: Path,
    until_at: float,
    begin: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    on_peak: Callable[[int | None], None],
) -> dict[str, StepTiming]:
    """The step of each reference, by its name: from the files in ``folder``, or measured now; none if that fails."""
    machine = engine.describe()
    key = {
        "schema": SCHEMA,
        "machine": {name: machine[name] for name in MACHINE_KEY_FIELDS if name in machine},
        "references": [candidate.name for candidate in candidates],
        "optimizer": setting.recipe.optimizer,
    }
    path = folder / f"machine-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"
    if (known := _read(path, key)) is not None:
        return known
    begin("measuring the pace of this machine")
    job = CompareJob(setting=setting, candidates=tuple(candidates))
    outcome = engine.run(job, until_at=until_at, on_progress=on_progress)
    assert isinstance(outcome, CompareResult | Failure)
    on_peak(outcome.peak_bytes)
    if not isinstance(outcome, CompareResult):
        return {}
    if outcome.cpu_taken < BUSY and outcome.paces:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"key": key, "paces": {name: asdict(pace) for name, pace in outcome.paces.items()}})
            write_text_atomic(path, text, shared=True)
    return outcome.paces


def _read(path: Path, key: dict[str, Any]) -> dict[str, StepTiming] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return decode(dict[str, StepTiming], stored["paces"])
    return None
