"""Features of images by pretrained weights, kept in the cache: for linear heads, and for finding near duplicates.

Shape suffixes: N images, D features.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fitwithin.data.framing import Frame
from fitwithin.data.pack import Pack
from fitwithin.files import write_atomic

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats

#: How the files are laid out; those of another layout are not read.
SCHEMA = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """``values`` float16 [N, D] of the images at ``positions`` [N] of a pack."""

    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.float16]

    def missing(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the ``wanted`` positions that are not there, in their order."""
        return wanted[~np.isin(wanted, self.positions)]

    def of(self, wanted: npt.NDArray[np.int64]) -> Floats:
        """Float32 values [N, D] of the ``wanted`` positions; KeyError if one is not there."""
        order = np.argsort(self.positions)
        places = np.searchsorted(self.positions, wanted, sorter=order)
        found = order[np.minimum(places, max(0, len(order) - 1))] if len(order) else np.zeros(0, np.int64)
        if len(found) != len(wanted) or (self.positions[found] != wanted).any():
            raise KeyError("features are not there")
        return np.asarray(self.values[found], dtype=np.float32)

    def plus(self, positions: npt.NDArray[np.int64], values: npt.NDArray[np.float16]) -> Features:
        """These and further ones."""
        if not len(self.positions):
            return Features(positions=positions, values=values)
        return Features(
            positions=np.concatenate([self.positions, positions]), values=np.concatenate([self.values, values])
        )


NONE = Features(positions=np.zeros(0, np.int64), values=np.zeros((0, 0), np.float16))


def path_of(folder: Path, pack: Pack, *, weights: str, px: int, frame: Frame, precision: str) -> Path:
    """The file of the features of a pack's images by weights with that SHA-256, at ``px``, in that frame."""
    about = json.dumps([SCHEMA, pack.folder.name, pack.fingerprint, weights, px, *frame, precision])
    return folder / f"{hashlib.blake2b(about.encode(), digest_size=16).hexdigest()}.npz"


def read(path: Path) -> Features:
    """The features in a file; none where there is no readable one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Features(positions=stored["positions"], values=stored["values"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return NONE


def write(path: Path, features: Features) -> None:
    """Write the features; an older file stays whole until replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(new: Path) -> None:
        with new.open("wb") as file:
            np.savez(file, positions=features.positions, values=features.values)

    write_atomic(path, save)
