"""Profiles kept between runs, and handed from one machine to another of its kind: a team profiles once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fitwithin.candidate import Candidate
from fitwithin.data.dataset import Images
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.results import StepTiming
from fitwithin.errors import UsageError
from fitwithin.files import decode, write_text_atomic
from fitwithin.profiling.profile import Profile

SCHEMA = 13

#: What of a machine decides memory and pace. Not its number among others, its Python, or its operating system's name.
MACHINE_KEY_FIELDS = (
    "name", "total_bytes", "emulated_bytes", "driver", "torch", "timm", "cudnn", "allocator", "cpu", "cores",
)  # fmt: skip


def data_shape(images: Images) -> dict[str, Any]:
    """What of the data decides memory and pace: how many images of which sizes, not which ones.

    Mean heights and widths are rounded to 16 pixels.
    """
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
        try:
            name = _name(candidate, quick)
            stored = json.loads(_path(self._folder, self.key, name).read_text(encoding="utf-8"))
            return replace(decode(Profile, stored["profile"]), cached=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, profile: Profile) -> None:
        """Store a profile, whole or not at all."""
        self._write(_name(profile.candidate, profile.quick), {"key": self.key, "profile": asdict(profile)})

    def get_step_timings(self, model: str) -> dict[str, StepTiming] | None:
        """The paces of a backbone's variants, by name; None if they are not known."""
        try:
            stored = json.loads(_path(self._folder, self.key, f"paces-{model}").read_text(encoding="utf-8"))
            return decode(dict[str, StepTiming], stored["paces"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put_step_timings(self, model: str, paces: dict[str, StepTiming]) -> None:
        """Store the paces of a backbone's variants."""
        body = {name: asdict(pace) for name, pace in paces.items()}
        self._write(f"paces-{model}", {"key": self.key, "paces": body})

    def _write(self, name: str, body: dict[str, Any]) -> None:
        write(_path(self._folder, self.key, name), json.dumps(body))


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
    """Write profiles with their key to one file for :func:`import_profiles` elsewhere; how many."""
    entries = [{"key": key, "profile": asdict(profile)} for profile in found]
    write(path, json.dumps({"schema": SCHEMA, "profiles": entries}, indent=1))
    return len(entries)


def import_profiles(path: Path, folder: Path) -> list[tuple[dict[str, Any], Profile]]:
    """Put the profiles of an exported file into the cache, each under its own key: a run finds those that apply to it.

    Raises:
        UsageError: the file is none that ``fitwithin profile --export`` of this version wrote; nothing was imported.
    """
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
