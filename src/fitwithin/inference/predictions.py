"""Predictions for images, and the accuracy on a labelled folder."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitwithin.data import decode
from fitwithin.errors import DataError, UsageError
from fitwithin.planning.stats import Accuracy

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The ensemble's answer for one image: classes with probabilities, most likely first, five at the most.

    ``path`` is as given; ``error`` says why an image could not be read (then ``top`` is empty).
    """

    path: str
    top: tuple[tuple[str, float], ...]
    error: str = ""

    @property
    def label(self) -> str:
        """The most likely class; empty if the image could not be read."""
        return self.top[0][0] if self.top else ""

    @property
    def probability(self) -> float:
        """Its probability; 0 if the image could not be read."""
        return self.top[0][1] if self.top else 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy on a labelled folder: overall, within the first five, and by class."""

    top1: Accuracy
    top5: Accuracy
    by_class: dict[str, Accuracy]
    unreadable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: shares, and the interval of the first."""
        return {
            "images": self.top1.total,
            "top1": self.top1.share,
            "top1_interval": self.top1.interval,
            "top5": self.top5.share,
            "by_class": {name: accuracy.share for name, accuracy in self.by_class.items()},
            "unreadable": self.unreadable,
        }


def write_csv(predictions: Sequence[Prediction], path: Path) -> None:
    """One line per image: path, class, probability, then the second to fifth with theirs."""
    width = max((len(prediction.top) for prediction in predictions), default=1)
    header = ["path", "class", "probability"]
    for rank in range(2, width + 1):
        header += [f"class_{rank}", f"probability_{rank}"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for prediction in predictions:
            cells = [cell for name, share in prediction.top for cell in (name, f"{share:.6f}")]
            writer.writerow([prediction.path, *cells])


def prediction(path: str, row: Floats | None, classes: Sequence[str], error: str) -> Prediction:
    """The prediction that a row of probabilities [K] means, or the ``error`` where there is none."""
    if row is None:
        return Prediction(path=path, top=(), error=error)
    order = np.argsort(-row, kind="stable")[:5]
    return Prediction(path=path, top=tuple((classes[int(k)], float(row[int(k)])) for k in order))


def image_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The files given, and those with an image's ending below the folders given."""
    endings = decode.image_extensions()
    for path in (Path(path) for path in paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
            if not found:
                raise UsageError(f"{path} holds no images")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UsageError(f"there is no file or folder {str(path)!r}")


def labelled_files(root: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
    """The images in the class folders of ``root``, each with its class.

    Raises:
        DataError: there is no such folder, no image in it, or a class that is not among ``classes``.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {str(root)!r}; give one with a folder of images for each class")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    unknown = [name for name in names if name not in classes]
    if unknown or not names:
        what = f"classes the model does not know ({', '.join(unknown[:5])})" if unknown else "no class folders"
        raise DataError(
            f"{root} has {what}; the model's classes are {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
        )
    endings = decode.image_extensions()
    found = [(p, name) for name in names for p in sorted((root / name).rglob("*")) if p.suffix.lower() in endings]
    if not found:
        raise DataError(f"{root} holds no images")
    return found
