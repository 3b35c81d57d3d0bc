"""A model that a run handed over, at work on pictures: it needs its own folder and nothing else of the run.

The folder is timm's local directory (``config.json``, ``model.safetensors``), with a model card (``README.md``), which
views to average (``ensemble.json``) and some pictures (``references``).
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fitwithin.candidate import View
from fitwithin.data.framing import Frame
from fitwithin.data.sources.tree import RUN_FILE
from fitwithin.engine.results import CARD, NOVELTY, WEIGHTS
from fitwithin.errors import DataError, RunFolderError
from fitwithin.files import write_atomic, write_text_atomic
from fitwithin.inference.crops import read_all
from fitwithin.inference.ensemble import MODEL, Ensemble, model_folder, read_ensemble, write_ensemble
from fitwithin.inference.predictions import MOST_CLASSES, Answer, Evaluation, Prediction, prediction
from fitwithin.inference.sources import Picture, Source, from_file, labelled, sources
from fitwithin.machine import resolve_device
from fitwithin.planning.stats import Accuracy

#: Images in a pass of the model of a run that has not finished.
UNFINISHED_BATCH = 32

#: The folder of the reference pictures.
REFERENCES = "references"


@dataclass(frozen=True)
class Model:
    """A model at work. ``folder`` is a run's, or that of its model alone (``RUN/model``), wherever it was copied to.

    Raises:
        RunFolderError: there is no finished model in the folder.
    """

    folder: Path
    #: The views to average, and the temperature of their mean.
    ensemble: Ensemble = field(init=False)
    #: What is to be said of it: that its run has not finished.
    note: str = field(init=False)

    def __post_init__(self) -> None:
        folder = Path(self.folder)
        try:
            found = model_folder(folder), read_ensemble(folder), ""
        except RunFolderError:
            unfinished = _unfinished(folder)
            if unfinished is None:
                raise
            found = unfinished
        for name, value in zip(("folder", "ensemble", "note"), found, strict=True):
            object.__setattr__(self, name, value)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes the model knows, in the order of its outputs."""
        return tuple(json.loads((self.folder / CARD).read_text(encoding="utf-8"))["label_names"])

    def predict(self, pictures: Picture | Iterable[Picture], *, device: str = "auto") -> list[Prediction]:
        """Predictions for one picture or several, in order.

        Args:
            pictures: a path of an image or of a folder of images, a list of paths (.txt, .csv), a pattern, a PIL image,
                an array of uint8 [H, W, 3], the bytes of an image file, or any number of these.
            device: ``auto``, ``cpu`` or ``cuda:N``.

        Raises:
            UsageError: a path does not exist, a folder holds no image, or something given is no picture.
        """
        return list(self.iter_predictions(pictures, device=device))

    def iter_predictions(
        self,
        pictures: Picture | Iterable[Picture],
        *,
        device: str = "auto",
        top: int = MOST_CLASSES,
        skip: int = 0,
    ) -> Iterator[Prediction]:
        """:meth:`predict`, one prediction after the other as they come, each with ``top`` classes; without the first
        ``skip`` pictures. However many they are, a few batches are held at a time."""
        coming = islice(sources(pictures), skip, None)
        for source, answer, error in self._answers(coming, device):
            yield prediction(source.name, answer, self.classes, error, top)

    def evaluate(
        self,
        data: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        device: str = "auto",
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Evaluation:
        """Accuracy on any labelled data that a run takes; the classes must be among those the model knows. ``columns``
        says what those of a table are, by role.

        Raises:
            DataError: no such data, no labels in it, or a class the model does not know.
        """
        found = labelled(data, self.classes, columns)
        rows = self._answers((from_file(path) for path, _ in found), device, len(found))

        def counted() -> Iterator[tuple[Source, Answer | None, str]]:
            for done, each in enumerate(rows, 1):
                on_progress(done, len(found))
                yield each

        return _evaluation(counted(), [label for _, label in found], self.classes, data)

    def _answers(
        self, pictures: Iterable[Source], device: str, total: int | None = None
    ) -> Iterator[tuple[Source, Answer | None, str]]:
        """Each picture with the model's answer, or None and the reason why it cannot be read."""
        config = json.loads((self.folder / CARD).read_text(encoding="utf-8"))
        sizes = {view.px for view in self.ensemble.views}
        with closing(read_all(pictures, [*sizes], Frame.of_config(config["pretrained_cfg"]), total=total)) as read:
            with _no_collection():
                from fitwithin.inference.predictor import Predictor  # torch is imported while pictures are read

            yield from Predictor(self.folder, self.ensemble, resolve_device(device)).predict(read)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected: it took 0.6 of the 2.9 s of importing torch and timm (two cores)."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _evaluation(
    found: Iterable[tuple[Source, Answer | None, str]], labels: Sequence[str], classes: Sequence[str], data: str | Path
) -> Evaluation:
    """The accuracy of those probabilities by the labels; DataError if no image of ``data`` could be read."""
    places: dict[str, list[int]] = {}  # by label, its place among each image's predictions, from 0
    unreadable = []
    for (source, answer, _), label in zip(found, labels, strict=True):
        if answer is None:
            unreadable.append(source.name)
            continue
        order = [classes[int(k)] for k in np.argsort(-answer.probabilities, kind="stable")]
        places.setdefault(label, []).append(order.index(label))
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


def _unfinished(run: Path) -> tuple[Path, Ensemble, str] | None:
    """Of a run that has not finished, the folder of the model that was saved last, how it is used, and what is to be
    said of it."""
    if not (run / RUN_FILE).is_file():
        return None
    saved = [each.parent for each in (run / "candidates").glob(f"*/{WEIGHTS}") if (each.parent / CARD).is_file()]
    if not saved:
        return None
    last = max(saved, key=lambda folder: (folder / WEIGHTS).stat().st_mtime_ns)
    try:
        px = json.loads((last / CARD).read_text(encoding="utf-8"))["fitwithin"]["train_px"]
    except (ValueError, KeyError, TypeError):
        return None
    view = View(px=px, flip=False)
    ensemble = Ensemble(candidate=last.name, trial=f"candidates/{last.name}", views=(view,), batch=UNFINISHED_BATCH)
    note = (
        f"{run} has not finished: this is the model of {last.name} as it was saved last; "
        f"`fitwithin resume {run}` goes on"
    )
    return last, ensemble, note


def hand_over(ensemble: Ensemble, run: Path, references: Mapping[str, bytes]) -> None:
    """Make the folder of a run's model, with some reference pictures by their file names, by which a copy in another
    format is checked. It is complete when ``ensemble.json`` is there, which is written last."""
    trained = run / ensemble.trial
    folder = run / MODEL
    for member in ensemble.joined:
        place, made = ensemble.folder_of(member, folder), run / ensemble.trial_of(member)
        place.mkdir(parents=True, exist_ok=True)
        weights = place / WEIGHTS
        if not (weights.exists() and weights.samefile(made / WEIGHTS)):  # renaming a file to itself would do nothing
            write_atomic(weights, partial(_link, made / WEIGHTS))
        if member:
            shutil.copyfile(made / CARD, place / CARD)
    if ensemble.novelty is not None:
        write_atomic(folder / NOVELTY, lambda new: _link(trained / NOVELTY, new))
    config: dict[str, Any] = json.loads((trained / CARD).read_text(encoding="utf-8"))
    px = ensemble.views[0].px
    config.setdefault("pretrained_cfg", {})["test_input_size"] = (3, px, px)
    write_text_atomic(folder / CARD, json.dumps(config, indent=1))
    (folder / REFERENCES).mkdir(exist_ok=True)
    for name, content in references.items():
        (folder / REFERENCES / name).write_bytes(content)
    write_ensemble(ensemble, folder)


def _link(file: Path, new: Path) -> None:
    """The same file under another name, or a copy where that cannot be."""
    new.unlink(missing_ok=True)
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)
