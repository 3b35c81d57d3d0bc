"""A finished run: its report, its table, and its ensemble at work on images."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fitwithin.cli.progress import Reporter, Silent
from fitwithin.data import decode
from fitwithin.engine.jobs import CARD
from fitwithin.errors import DataError, RunFolderError, UsageError
from fitwithin.inference.ensemble import Floats, average
from fitwithin.machine import parse as parse_device
from fitwithin.pipeline import evaluate_phase
from fitwithin.planning.stats import Estimate
from fitwithin.report.schema import Report, from_json


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the ensemble says of one image: classes with probabilities, most likely first, five at the most.

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

    top1: Estimate
    top5: Estimate
    by_class: dict[str, Estimate]
    unreadable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: shares, and the interval of the first."""
        return {
            "images": self.top1.total,
            "top1": self.top1.share,
            "top1_interval": self.top1.interval,
            "top5": self.top5.share,
            "by_class": {name: estimate.share for name, estimate in self.by_class.items()},
            "unreadable": self.unreadable,
        }


@dataclass(frozen=True)
class Result:
    """A finished run in its folder."""

    folder: Path
    report: Report = field(repr=False)

    def table(self) -> list[dict[str, Any]]:
        """One plain dict per candidate, in the report's order: name, status, validation accuracy, seconds, ..."""
        rows = []
        for row in self.report.candidates:
            rows.append(
                {
                    "name": row.name,
                    "status": row.status,
                    "validation": None if row.validation is None else row.validation.share,
                    "epochs": row.epochs,
                    "batch": row.batch,
                    "parameters": row.parameters,
                    "images_per_s": row.images_per_s,
                    "predicted_s": row.predicted_s,
                    "actual_s": row.actual_s,
                    "peak_bytes": row.peak_bytes,
                    "reason": row.reason,
                }
            )
        return rows

    def predict(
        self, paths: Iterable[str | Path], *, device: str = "auto", reporter: Reporter | None = None
    ) -> list[Prediction]:
        """Predictions for image files, and for all images below folders, in order.

        Raises:
            UsageError: a path does not exist, or a folder holds no image.
        """
        return [
            _prediction(str(path), row, classes, error)
            for path, row, error, classes in self._looked_at(list(_images(paths)), device, reporter)
        ]

    def evaluate(self, data: str | Path, *, device: str = "auto", reporter: Reporter | None = None) -> Evaluation:
        """Accuracy on ``DATA/<class>/*``; the classes must be among those the model knows.

        Raises:
            DataError: no such folder, no class folders, or a class the model does not know.
        """
        labelled = _labelled(Path(data), self._classes())
        right: dict[str, list[tuple[bool, bool]]] = {}
        unreadable = []
        labels = dict(labelled)
        for path, row, _, classes in self._looked_at([path for path, _ in labelled], device, reporter):
            if row is None:
                unreadable.append(str(path))
                continue
            order = np.argsort(-row, kind="stable")[:5]
            hits = [classes[int(k)] == labels[path] for k in order]
            right.setdefault(labels[path], []).append((hits[0], any(hits)))
        every = [hit for hits in right.values() for hit in hits]
        if not every:
            raise DataError(f"none of the {len(labelled)} images in {data} can be read")
        return Evaluation(
            top1=Estimate(correct=sum(first for first, _ in every), total=len(every)),
            top5=Estimate(correct=sum(five for _, five in every), total=len(every)),
            by_class={
                name: Estimate(correct=sum(first for first, _ in hits), total=len(hits))
                for name, hits in sorted(right.items())
            },
            unreadable=tuple(unreadable),
        )

    def test_predictions(self) -> list[Prediction]:
        """Predictions for the data set's own test pictures, labelled or not, from the logits the run computed.

        Raises:
            UsageError: the data has no test pictures, or the run's time was over before they were evaluated.
        """
        ensemble = evaluate_phase.read(self.folder)
        paths = json.loads((self.folder / "test-paths.json").read_text(encoding="utf-8"))
        if not paths:
            raise UsageError(f"the data of {self.folder} has no test pictures; use predict with paths")
        folder = self.folder / ensemble.folder
        classes = self._classes()
        try:
            logits = {view: evaluate_phase.read_logits(folder, "test", view) for view in ensemble.views}
        except OSError as error:
            raise UsageError(
                "the run's time was over before the test pictures were evaluated; use predict with their paths"
            ) from error
        rows = average(logits, ensemble.views)
        return [_prediction(path, row, classes, "") for path, row in zip(paths, rows, strict=True)]

    def _classes(self) -> tuple[str, ...]:
        """The classes the model knows, in the order of its outputs."""
        card = self.folder / evaluate_phase.read(self.folder).folder / CARD
        return tuple(json.loads(card.read_text(encoding="utf-8"))["classes"])

    def _looked_at(
        self, files: Sequence[Path], device: str, reporter: Reporter | None
    ) -> Iterator[tuple[Path, Floats | None, str, tuple[str, ...]]]:
        """Each file with its probabilities, or the reason why there are none, and the classes."""
        told = reporter or Silent()
        told.begin("loading the model", len(files))
        from fitwithin.inference.predictor import Predictor

        predictor = Predictor(self.folder, evaluate_phase.read(self.folder), parse_device(device))
        told.begin("looking at images", len(files))
        for number, (path, row, error) in enumerate(predictor.files(files)):
            told.advance(number + 1, len(files))
            yield path, row, error, predictor.card.classes


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


def load(folder: str | Path) -> Result:
    """The finished run in a folder; RunFolderError if there is none."""
    path = Path(folder)
    text = path / "report.json"
    if not text.is_file():
        hint = "; `fitwithin resume` finishes it" if (path / "run.db").is_file() else ""
        raise RunFolderError(f"{path} holds no finished run (no report.json){hint}")
    return Result(folder=path, report=from_json(text.read_text(encoding="utf-8")))


def _prediction(path: str, row: Floats | None, classes: Sequence[str], error: str) -> Prediction:
    if row is None:
        return Prediction(path=path, top=(), error=error)
    order = np.argsort(-row, kind="stable")[:5]
    return Prediction(path=path, top=tuple((classes[int(k)], float(row[int(k)])) for k in order))


def _images(paths: Iterable[str | Path]) -> Iterator[Path]:
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


def _labelled(root: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
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
