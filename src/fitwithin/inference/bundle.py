"""What a run delivers, and how it is read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitwithin.candidate import View
from fitwithin.errors import RunFolderError
from fitwithin.files import write_text_atomic

ENSEMBLE = "ensemble.json"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What is delivered: the winner's folder within the run, the views to average, and the images in a forward pass."""

    candidate: str
    folder: str
    views: tuple[View, ...]
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; :func:`read` is its inverse."""
        return asdict(self)


def write(ensemble: Ensemble, run: Path) -> None:
    """Keep the ensemble in the run's folder."""
    write_text_atomic(run / ENSEMBLE, json.dumps(ensemble.to_dict(), indent=1))


def read(run: Path) -> Ensemble:
    """The ensemble that a run delivered; RunFolderError if it has not (yet)."""
    path = run / ENSEMBLE
    if not path.is_file():
        raise RunFolderError(f"{run} holds no finished model (no {ENSEMBLE}); `fitwithin resume {run}` finishes a run")
    value = json.loads(path.read_text(encoding="utf-8"))
    return Ensemble(**{**value, "views": tuple(View(**view) for view in value["views"])})
