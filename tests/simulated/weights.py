"""Pretrained weights that are nowhere, or somewhere else than real ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from fitwithin.weights.find import Weights


def weights(name: str, path: Path | str = "/nowhere/weights", *, px: int = 224, sha256: str = "0" * 64) -> Weights:
    """Weights of that name in a file, with means and deviations of their own."""
    return Weights(
        name=name,
        path=str(path),
        sha256=sha256,
        licence="mit",
        source=f"folder {Path(path).parent}",
        trained_on="ImageNet-1k",
        px=px,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        interpolation="bilinear",
        crop_pct=0.95,
        test_px=None,
    )


def drawn(name: str, folder: Path) -> Weights:
    """A file with drawn weights of that name, as if they were somebody's."""
    path = folder / f"{name}.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(name.partition(".")[0]).state_dict(), path)
    return weights(name, path, px=160, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
