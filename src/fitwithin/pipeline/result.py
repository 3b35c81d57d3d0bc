"""A finished run: its report, its table, and its ensemble at work on images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitwithin.engine import results
from fitwithin.engine.results import CARD
from fitwithin.errors import DataError, RunFolderError, UsageError
from fitwithin.inference.ensemble import average, read_ensemble
from fitwithin.inference.predictions import Evaluation, Prediction, image_files, labelled_files, prediction
from fitwithin.machine import resolve_device
from fitwithin.pipeline.progress import Reporter, Silent
from fitwithin.planning.stats import Accuracy
from fitwithin.report.schema import Report, from_json

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats


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
            prediction(str(path), row, classes, error)
            for path, row, error, classes in self._predicted(list(image_files(paths)), device, reporter)
        ]

    def evaluate(self, data: str | Path, *, device: str = "auto", reporter: Reporter | None = None) -> Evaluation:
        """Accuracy on ``DATA/<class>/*``; the classes must be among those the model knows.

        Raises:
            DataError: no such folder, no class folders, or a class the model does not know.
        """
        labelled = labelled_files(Path(data), self._classes())
        right: dict[str, list[tuple[bool, bool]]] = {}
        unreadable = []
        labels = dict(labelled)
        for path, row, _, classes in self._predicted([path for path, _ in labelled], device, reporter):
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
            top1=Accuracy(correct=sum(first for first, _ in every), total=len(every)),
            top5=Accuracy(correct=sum(five for _, five in every), total=len(every)),
            by_class={
                name: Accuracy(correct=sum(first for first, _ in hits), total=len(hits))
                for name, hits in sorted(right.items())
            },
            unreadable=tuple(unreadable),
        )

    def test_predictions(self) -> list[Prediction]:
        """Predictions for the data set's own test pictures, labelled or not, from the logits the run computed.

        Raises:
            UsageError: the data has no test pictures, or the run's time was over before they were evaluated.
        """
        ensemble = read_ensemble(self.folder)
        paths = json.loads((self.folder / "test-paths.json").read_text(encoding="utf-8"))
        if not paths:
            raise UsageError(f"the data of {self.folder} has no test pictures; use predict with paths")
        folder = self.folder / ensemble.folder
        classes = self._classes()
        try:
            logits = {view: results.read_logits(folder, "test", view) for view in ensemble.views}
        except OSError as error:
            raise UsageError(
                "the run's time was over before the test pictures were evaluated; use predict with their paths"
            ) from error
        rows = average(logits, ensemble.views)
        return [prediction(path, row, classes, "") for path, row in zip(paths, rows, strict=True)]

    def _classes(self) -> tuple[str, ...]:
        """The classes the model knows, in the order of its outputs."""
        card = self.folder / read_ensemble(self.folder).folder / CARD
        return tuple(json.loads(card.read_text(encoding="utf-8"))["classes"])

    def _predicted(
        self, files: Sequence[Path], device: str, reporter: Reporter | None
    ) -> Iterator[tuple[Path, Floats | None, str, tuple[str, ...]]]:
        """Each file with its probabilities, or the reason why there are none, and the classes."""
        reporter = reporter or Silent()
        reporter.begin("loading the model", len(files))
        from fitwithin.inference.predictor import Predictor

        predictor = Predictor(self.folder, read_ensemble(self.folder), resolve_device(device))
        reporter.begin("looking at images", len(files))
        for number, (path, row, error) in enumerate(predictor.files(files)):
            reporter.advance(number + 1, len(files))
            yield path, row, error, predictor.card.classes


def load(folder: str | Path) -> Result:
    """The finished run in a folder; RunFolderError if there is none."""
    path = Path(folder)
    text = path / "report.json"
    if not text.is_file():
        hint = "; `fitwithin resume` finishes it" if (path / "run.db").is_file() else ""
        raise RunFolderError(f"{path} holds no finished run (no report.json){hint}")
    return Result(folder=path, report=from_json(text.read_text(encoding="utf-8")))
