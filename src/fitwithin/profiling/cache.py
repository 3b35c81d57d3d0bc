"""Profiles kept between runs, and their export to other machines of the same kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fitwithin.candidate import Candidate
from fitwithin.data.dataset import Images
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.results import BUSY, StepTiming
from fitwithin.errors import UsageError
from fitwithin.files import decode, write_text_atomic
from fitwithin.profiling.profile import Profile

SCHEMA = 13

#: How a file of exported profiles begins.
EXPORT_BEGINNING = '{\n "schema": '

T = TypeVar("T")

#: The facts of a machine that decide memory and pace.
MACHINE_KEY_FIELDS = (
    "name", "total_bytes", "emulated_bytes", "driver", "torch", "timm", "cudnn", "allocator", "cpu", "cores",
)  # fmt: skip


def data_shape(images: Images) -> dict[str, Any]:
    """The facts of the data that decide memory and pace; mean heights and widths are rounded to 16 pixels."""
    counts = {split: len(images.indices(split)) for split in ("train", "val")}
    sides = [getattr(images, name, None) for name in ("heights", "widths")]
    means = [round(float(np.mean(side)) / 16) * 16 for side in sides if side is not None and len(side)]
    return {**counts, "classes": len(images.classes), "mean_size": means}


class ProfileCache:
    """Profiles by everything that they depend on, one JSON file each, with that key inside."""

    def __init__(self, folder: Path, machine: dict[str, Any], setting: JobSettings, shape: dict[str, Any]) -> None:
        self._folder = folder
        self.key: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "schema": SCHEMA,
                    "machine": {name: machine[name] for name in MACHINE_KEY_FIELDS if name in machine},
                    "memory_bytes": setting.memory_bytes,
                    "accounting": setting.accounting,
                    "recipe": {name: value for name, value in asdict(setting.recipe).items() if name != "name"},
                    "view_sizes": setting.view_sizes,
                    "workers": setting.workers,
                    "data_parallel": setting.data_parallel,
                    "jobs_per_host": setting.jobs_per_host,
                    "canvas_px": setting.canvas_px,
                    "data": shape,
                }
            )
        )

    def get(self, candidate: Candidate, *, quick: bool = False) -> Profile | None:
        """The stored profile, the whole one or the ``quick``; None if there is none, or if its file is damaged."""
        found = self._read(_name(candidate, quick), "profile", Profile)
        return None if found is None else replace(found, cached=True)

    def put(self, profile: Profile) -> None:
        """Store a profile, whole or not at all; not one that was made while others took much of the CPU."""
        if profile.timing.cpu_taken < BUSY:
            self._write(_name(profile.candidate, profile.quick), "profile", asdict(profile))

    def get_step_timings(self, model: str) -> dict[str, StepTiming] | None:
        """The paces of a backbone's variants, by name; None if they are not known."""
        return self._read(f"paces-{model}", "paces", dict[str, StepTiming])

    def put_step_timings(self, model: str, paces: dict[str, StepTiming]) -> None:
        """Store the paces of a backbone's variants."""
        self._write(f"paces-{model}", "paces", {name: asdict(pace) for name, pace in paces.items()})

    def _read(self, name: str, field: str, kind: type[T]) -> T | None:
        try:
            return decode(kind, json.loads(_path(self._folder, self.key, name).read_text(encoding="utf-8"))[field])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, name: str, field: str, value: dict[str, Any]) -> None:
        write(_path(self._folder, self.key, name), json.dumps({"key": self.key, field: value}))


def _name(candidate: Candidate, quick: bool) -> str:
    return f"{candidate.name}-brief" if quick else candidate.name


def _path(folder: Path, key: dict[str, Any], name: str) -> Path:
    text = json.dumps({**key, "name": name}, sort_keys=True)
    return folder / f"{name}-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.json"


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text, shared=True)


def export(found: Iterable[Profile], key: dict[str, Any], path: Path) -> int:
    """Write profiles with their key to one file for :func:`import_profiles`; returns their number."""
    entries = [{"key": key, "profile": asdict(profile)} for profile in found]
    write(path, json.dumps({"schema": SCHEMA, "profiles": entries}, indent=1))
    return len(entries)


def import_profiles(path: Path, folder: Path) -> list[tuple[dict[str, Any], Profile]]:
    """Put the profiles of an exported file into the cache, each under its own key; UsageError, and nothing is imported,
    if ``fitwithin profile --export`` of this version did not write the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise UsageError(f"{path} has schema {value['schema']}, this version reads {SCHEMA}; export it again")
        taken = [(entry["key"], decode(Profile, entry["profile"])) for entry in value["profiles"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no file that `fitwithin profile --export` wrote ({type(error).__name__}: {error})"
        ) from error
    for key, profile in taken:
        body = json.dumps({"key": key, "profile": asdict(profile)})
        write(_path(folder, key, profile.candidate.name), body)
    return taken
