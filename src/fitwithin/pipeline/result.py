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
        return [
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
            for row in self.report.candidates
        ]

    def predict(
        self, paths: Iterable[str | Path], *, device: str = "auto", reporter: Reporter | None = None
    ) -> list[Prediction]:
        """Predictions for image files, and for all images below folders, in order.

        Raises:
            UsageError: a path does not exist, or a folder holds no image.
        """
        classes = self._classes()
        predicted = self._predicted(list(image_files(paths)), device, reporter)
        return [prediction(str(path), row, classes, error) for path, row, error in predicted]

    def evaluate(self, data: str | Path, *, device: str = "auto", reporter: Reporter | None = None) -> Evaluation:
        """Accuracy on ``DATA/<class>/*``; the classes must be among those the model knows.

        Raises:
            DataError: no such folder, no class folders, or a class the model does not know.
        """
        classes = self._classes()
        labels = dict(labelled_files(Path(data), classes))
        places: dict[str, list[int]] = {}  # by label, its place among each image's predictions, from 0
        unreadable = []
        for path, row, _ in self._predicted(list(labels), device, reporter):
            if row is None:
                unreadable.append(str(path))
                continue
            order = [classes[int(k)] for k in np.argsort(-row, kind="stable")]
            places.setdefault(labels[path], []).append(order.index(labels[path]))
        every = [place for found in places.values() for place in found]
        if not every:
            raise DataError(f"none of the {len(labels)} images in {data} can be read")

        def within(found: list[int], first: int) -> Accuracy:
            return Accuracy(correct=sum(place < first for place in found), total=len(found))

        return Evaluation(
            top1=within(every, 1),
            top5=within(every, 5),
            by_class={name: within(found, 1) for name, found in sorted(places.items())},
            unreadable=tuple(unreadable),
        )

    def test_predictions(self) -> list[Prediction]:
        """Predictions for the data's own test pictures, labelled or not, from the logits of the run.

        Raises:
            UsageError: the data has no test pictures, or the run's time was over before they were evaluated.
        """
        ensemble = read_ensemble(self.folder)
        paths = json.loads((self.folder / "test-paths.json").read_text(encoding="utf-8"))
        if not paths:
            raise UsageError(f"the data of {self.folder} has no test pictures; use predict with paths")
        folder, classes = self.folder / ensemble.folder, self._classes()
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
    ) -> Iterator[tuple[Path, Floats | None, str]]:
        """Each file with its probabilities, or None and the reason."""
        reporter = reporter or Silent()
        reporter.begin("loading the model", len(files))
        from fitwithin.inference.predictor import Predictor

        predictor = Predictor(self.folder, read_ensemble(self.folder), resolve_device(device))
        reporter.begin("looking at images", len(files))
        for number, found in enumerate(predictor.files(files), 1):
            reporter.advance(number, len(files))
            yield found


def load(folder: str | Path) -> Result:
    """The finished run in a folder; RunFolderError if there is none."""
    path = Path(folder)
    text = path / "report.json"
    if not text.is_file():
        hint = "; `fitwithin resume` finishes it" if (path / "run.db").is_file() else ""
        raise RunFolderError(f"{path} holds no finished run (no report.json){hint}")
    return Result(folder=path, report=from_json(text.read_text(encoding="utf-8")))
