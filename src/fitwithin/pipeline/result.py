"""A finished run: its report, its table, and its ensemble at work on images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitwithin.engine import results
from fitwithin.engine.results import CARD
from fitwithin.errors import DataError, RunFolderError, UsageError
from fitwithin.inference.ensemble import average, read_ensemble
from fitwithin.inference.predictions import Evaluation, Prediction, prediction
from fitwithin.inference.sources import Picture, Source, labelled_files, sources
from fitwithin.machine import resolve_device
from fitwithin.pipeline.progress import Reporter, Silent
from fitwithin.planning.stats import Accuracy
from fitwithin.report.schema import Report, from_json
from fitwithin.report.summary import headline

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats


@dataclass(frozen=True, repr=False)
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
        self, pictures: Picture | Iterable[Picture], *, device: str = "auto", reporter: Reporter | None = None
    ) -> list[Prediction]:
        """Predictions for one picture or several, in order.

        Args:
            pictures: a path of an image or of a folder of images, a PIL image, an array of uint8 [H, W, 3], the bytes
                of an image file, or any number of these.
            device: ``auto``, ``cpu`` or ``cuda:N``.
            reporter: gets the progress; by default nobody does.

        Raises:
            UsageError: a path does not exist, a folder holds no image, or something given is no picture.
        """
        return list(self.iter_predictions(pictures, device=device, reporter=reporter))

    def iter_predictions(
        self, pictures: Picture | Iterable[Picture], *, device: str = "auto", reporter: Reporter | None = None
    ) -> Iterator[Prediction]:
        """:meth:`predict`, one prediction after the other as they come."""
        for source, row, error in self._predicted(sources(pictures), device, reporter):
            yield prediction(source.name, row, self.classes, error)

    def evaluate(self, data: str | Path, *, device: str = "auto", reporter: Reporter | None = None) -> Evaluation:
        """Accuracy on ``DATA/<class>/*``; the classes must be among those the model knows.

        Raises:
            DataError: no such folder, no class folders, or a class the model does not know.
        """
        labelled = labelled_files(Path(data), self.classes)
        places: dict[str, list[int]] = {}  # by label, its place among each image's predictions, from 0
        unreadable = []
        predicted = self._predicted(sources(path for path, _ in labelled), device, reporter)
        for (source, row, _), (_, label) in zip(predicted, labelled, strict=True):
            if row is None:
                unreadable.append(source.name)
                continue
            order = [self.classes[int(k)] for k in np.argsort(-row, kind="stable")]
            places.setdefault(label, []).append(order.index(label))
        every = [place for found in places.values() for place in found]
        if not every:
            raise DataError(f"none of the {len(labelled)} images in {data} can be read")

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
        folder = self.folder / ensemble.folder
        classes = self.classes
        try:
            logits = {view: results.read_logits(folder, "test", view) for view in ensemble.views}
        except OSError as error:
            raise UsageError(
                "the run's time was over before the test pictures were evaluated; use predict with their paths"
            ) from error
        rows = average(logits, ensemble.views)
        return [prediction(path, row, classes, "") for path, row in zip(paths, rows, strict=True)]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes the model knows, in the order of its outputs."""
        card = self.folder / read_ensemble(self.folder).folder / CARD
        return tuple(json.loads(card.read_text(encoding="utf-8"))["classes"])

    def __repr__(self) -> str:
        return f"<run in {self.folder}: {headline(self.report)}>"

    def _predicted(
        self, pictures: Sequence[Source], device: str, reporter: Reporter | None
    ) -> Iterator[tuple[Source, Floats | None, str]]:
        """Each picture with its probabilities, or the reason why there are none."""
        reporter = reporter or Silent()
        reporter.begin("loading the model", len(pictures))
        from fitwithin.inference.predictor import Predictor

        predictor = Predictor(self.folder, read_ensemble(self.folder), resolve_device(device))
        reporter.begin("looking at images", len(pictures))
        for number, found in enumerate(predictor.predict(pictures)):
            reporter.advance(number + 1, len(pictures))
            yield found


def load(folder: str | Path) -> Result:
    """The finished run in a folder; RunFolderError if there is none."""
    path = Path(folder)
    text = path / "report.json"
    if not text.is_file():
        hint = "; `fitwithin resume` finishes it" if (path / "run.db").is_file() else ""
        raise RunFolderError(f"{path} holds no finished run (no report.json){hint}")
    return Result(folder=path, report=from_json(text.read_text(encoding="utf-8")))
