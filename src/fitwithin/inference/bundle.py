"""What a run delivers, and how it is read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fitwithin.candidate import View
from fitwithin.errors import RunFolderError
from fitwithin.files import read_json, to_json, write_text_atomic

ENSEMBLE = "ensemble.json"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What is delivered: the winner's folder within the run, the views to average, and the images in a forward pass."""

    candidate: str
    folder: str
    views: tuple[View, ...]
    batch: int


def write(ensemble: Ensemble, run: Path) -> None:
    """Keep the ensemble in the run's folder."""
    write_text_atomic(run / ENSEMBLE, to_json(ensemble, indent=1))


def read(run: Path) -> Ensemble:
    """The ensemble that a run delivered; RunFolderError if it has not (yet)."""
    ensemble = read_json(Ensemble, run / ENSEMBLE)
    if ensemble is None:
        raise RunFolderError(f"{run} holds no finished model (no {ENSEMBLE}); `fitwithin resume {run}` finishes a run")
    return ensemble
