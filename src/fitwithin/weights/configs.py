"""What timm knows of pretrained weights, kept in the cache: importing timm takes seconds, reading a file does not."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fitwithin.files import cache_root, decode, write_text_atomic
from fitwithin.weights.licences import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Config:
    """What holds for the weights of one name: their licence, their place on the Hub, and how images are prepared.

    ``px`` is the size they were trained for, ``test_px`` a larger one at which they are better, if any.
    """

    name: str
    licence: str
    repo: str
    px: int
    test_px: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float


def config_of(name: str) -> Config | None:
    """What timm knows of the weights ``<model>.<tag>``, or of a model's default ones; None if timm has no such name."""
    found = _known(cache_root()).get(name)
    return None if found is None else decode(Config, found)


def repositories() -> dict[str, str]:
    """The place on the Hub of each ``<model>.<tag>`` that has one."""
    return {name: each["repo"] for name, each in _known(cache_root()).items() if each["name"] == name and each["repo"]}


def near(name: str) -> str:
    """``; did you mean resnet50.a1_in1k?``, or nothing where no name is like it."""
    found = difflib.get_close_matches(name, _known(cache_root()), n=3, cutoff=0.7)
    return f"; did you mean {', '.join(found)}?" if found else ""


def keep() -> None:
    """Have the configs in the cache; where they are not, this imports timm, and takes 0.35 s with it imported."""
    _known(cache_root())


@cache
def _known(root: Path) -> dict[str, dict[str, Any]]:
    """The configs of the installed timm by name: each ``<model>.<tag>``, and each ``<model>`` for its default tag.

    ``root`` is the folder of the cache.
    """
    path = root / "weights" / f"timm-{metadata.version('timm')}.json"
    with suppress(OSError, ValueError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    import timm

    found: dict[str, Config] = {}
    for model in timm.list_models():
        cfgs = timm.models.get_arch_pretrained_cfgs(model)
        default = timm.models.get_pretrained_cfg(model)
        for name, cfg in ((model, default), *cfgs.items()):
            full = f"{model}.{cfg.tag}" if cfg is not None and cfg.tag else model
            with suppress(ValueError):  # a few take oblong images: of no use here
                found[name] = own_config(full, cfg.to_dict(remove_source=False) if cfg is not None else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: vars(each) for name, each in found.items()}
    write_text_atomic(path, json.dumps(values), shared=True)
    return values


def own_config(name: str, cfg: Mapping[str, Any], base: Config | None = None) -> Config:
    """The config in ``cfg``, a dict with timm's keys; what it leaves out is ``base``'s, else timm's default.

    Raises:
        ValueError: a value in it is none.
    """
    base = base or Config(
        name=name,
        licence=UNKNOWN,
        repo="",
        px=224,
        test_px=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
        crop_pct=0.875,
    )
    given: dict[str, Any] = {field: cfg[key] for field, key in _KEYS.items() if cfg.get(key) is not None}
    if "licence" in given:
        given["licence"] = str(given["licence"]).lower()
    for field in ("px", "test_px"):
        if field in given:
            given[field] = _pixels(given[field])
    if "px" in given:  # else the larger size of another one would stay
        given.setdefault("test_px", None)
    return decode(Config, {**vars(replace(base, name=name)), **given})


#: The keys of timm's dict.
_KEYS = {
    "licence": "license",
    "repo": "hf_hub_id",
    "px": "input_size",
    "test_px": "test_input_size",
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
    "crop_pct": "crop_pct",
}


def _pixels(size: Any) -> int:
    """The side of ``(3, 224, 224)``; ValueError if images of that size are not square, or have no three colours."""
    if not (isinstance(size, list | tuple) and len(size) == 3 and size[0] == 3 and size[1] == size[2]):
        raise ValueError(f"images of size {size} are not square ones in three colours")
    return int(size[2])


#: Pieces of tags, and the data that they stand for.
_DATA = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "ig1b": "Instagram-1B",
    "yfcc100m": "YFCC-100M",
    "jft": "JFT-300M",
    "inat21": "iNaturalist 2021",
    "openai": "OpenAI's 400 million images with captions",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
    "datacompxl": "DataComp-1B",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "metaclip": "MetaCLIP",
    "webli": "WebLI",
    "m30m": "Merged-30M",
    "m38m": "Merged-38M",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "mae": "ImageNet-1k",
    "fcmae": "ImageNet-1k",
    "dino": "ImageNet-1k",
}


def trained_on(name: str) -> str:
    """The data that a tag names, as in ``ImageNet-22k, then ImageNet-1k``; nothing where it names none we know."""
    pieces = re.split(r"[._]", name.partition(".")[2])
    return ", then ".join(dict.fromkeys(_DATA[piece] for piece in pieces if piece in _DATA))
