"""A finished run: its report, its table, and its ensemble at work on images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitwithin.engine import results
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.inference.model import Model
from fitwithin.inference.predictions import Answer, Evaluation, Prediction, prediction
from fitwithin.inference.sources import Picture
from fitwithin.report.schema import Report, from_json
from fitwithin.report.summary import headline

if TYPE_CHECKING:
    pass


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

    @cached_property
    def model(self) -> Model:
        """What the run handed over, at work on pictures."""
        return Model(self.folder)

    def predict(self, pictures: Picture | Iterable[Picture], *, device: str = "auto") -> list[Prediction]:
        """Predictions for one picture or several, in order: those of :meth:`Model.predict`."""
        return self.model.predict(pictures, device=device)

    def iter_predictions(self, pictures: Picture | Iterable[Picture], *, device: str = "auto") -> Iterator[Prediction]:
        """:meth:`predict`, one prediction after the other as they come."""
        return self.model.iter_predictions(pictures, device=device)

    def evaluate(
        self, data: str | Path, *, columns: Mapping[str, str] | None = None, device: str = "auto"
    ) -> Evaluation:
        """Accuracy on labelled data: that of :meth:`Model.evaluate`."""
        return self.model.evaluate(data, columns=columns, device=device)

    def test_predictions(self) -> list[Prediction]:
        """Predictions for the data's own test pictures, labelled or not, from the logits of the run.

        Raises:
            UsageError: the data has no test pictures, or the run's time was over before they were evaluated.
        """
        ensemble = self.model.ensemble
        paths = json.loads((self.folder / "test-paths.json").read_text(encoding="utf-8"))
        if not paths:
            raise UsageError(f"the data of {self.folder} has no test pictures; use predict with paths")
        classes = self.model.classes
        try:
            logits = {
                view: results.read_logits(self.folder / ensemble.trial_of(view.member), "test", view)
                for view in set(ensemble.views)
            }
        except OSError as error:
            raise UsageError(
                "the run's time was over before the test pictures were evaluated; use predict with their paths"
            ) from error
        rows = ensemble.probabilities(logits)
        return [prediction(path, Answer(row), classes, "") for path, row in zip(paths, rows, strict=True)]

    def __repr__(self) -> str:
        return f"<run in {self.folder}: {headline(self.report)}>"


def load(folder: str | Path) -> Result:
    """The finished run in a folder; RunFolderError if there is none."""
    path = Path(folder)
    text = path / "report.json"
    if not text.is_file():
        hint = "; `fitwithin resume` finishes it" if (path / "run.db").is_file() else ""
        raise RunFolderError(f"{path} holds no finished run (no report.json){hint}")
    return Result(folder=path, report=from_json(text.read_text(encoding="utf-8")))
