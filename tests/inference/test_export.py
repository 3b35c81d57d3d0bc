"""A model as one file: it answers as the model does, whatever the batch, without timm or fitwithin."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fitwithin.candidate import View, views_of
from fitwithin.data.framing import Frame
from fitwithin.errors import UsageError
from fitwithin.inference.crops import cropper
from fitwithin.inference.ensemble import write_ensemble
from fitwithin.inference.export.program import export
from fitwithin.inference.model import REFERENCES, Model
from fitwithin.inference.sources import sources
from inference.test_handed_over import CLASSES, FAMILIES, handed_over

onnxruntime = pytest.importorskip("onnxruntime")


def model(run: Path, name: str, views: list[View]) -> Model:
    handed_over(run, name, tuple(sorted({view.px for view in views})))
    found = Model(run)
    ensemble = dataclasses.replace(
        found.ensemble, views=tuple(views), temperature=0.7, class_weights=(0.5, 1.0, 2.0, 0.5)
    )
    write_ensemble(ensemble, run / "model")
    return Model(run)


def pixels(made: Model, description: dict) -> dict[str, np.ndarray]:
    """The reference pictures as the description says."""
    sizes = ",".join(str(each["shape"][1]) for each in description["inputs"])
    shown = Frame(description["prepare"]["crop_share"], description["prepare"]["fit"])
    crops = cropper(sizes, str(shown))(list(sources(made.folder / REFERENCES)))
    return {each["name"]: np.stack([crop[each["shape"][1]] for crop in crops]) for each in description["inputs"]}


@pytest.mark.parametrize("name", FAMILIES[::4])  # all of them: benchmarks/inference.py
def test_families_are_exported_to_onnx(name: str, tmp_path: Path) -> None:
    px = 224 if name.startswith("levit") else 64
    check = export(model(tmp_path, name, [View(px=px, flip=False)]), "onnx", tmp_path / "out")
    assert check.max_abs_diff <= 1e-4
    assert check.same_class == check.pictures == 8


@pytest.mark.parametrize("how", ["onnx", "torch"])
def test_views_temperature_and_any_batch_are_in_the_file(how: str, tmp_path: Path) -> None:
    made = model(tmp_path, "test_resnet", views_of([48, 64], flips=True))
    check = export(made, how, tmp_path / "out")
    assert check.max_abs_diff <= 1e-4
    description = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert description["classes"] == list(CLASSES)
    inputs = pixels(made, description)
    expected = np.array(list(description["references"].values()))
    for row, predicted in zip(expected, made.predict(made.folder / REFERENCES, device="cpu"), strict=True):
        assert {CLASSES[int(k)]: row[k] for k in np.argsort(-row)} == pytest.approx(dict(predicted.top), abs=1e-4)
    for count in (1, 3, 8):
        some = {name: each[:count] for name, each in inputs.items()}
        if how == "onnx":
            (found,) = onnxruntime.InferenceSession(check.file).run(None, some)
        else:
            loaded = torch.export.load(check.file).module()
            found = loaded(tuple(torch.from_numpy(each) for each in some.values())).detach().numpy()
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)
    theirs = [[dict(each.top)[label] for label in CLASSES] for each in made.predict(made.folder / REFERENCES)]
    np.testing.assert_allclose(theirs, expected, atol=1e-4)


def test_the_folder_is_all_that_is_needed(tmp_path: Path) -> None:
    made = model(tmp_path / "run", "test_vit", [View(px=64, flip=False)])
    shutil.copytree(made.folder, tmp_path / "alone")
    shutil.rmtree(tmp_path / "run")
    export(Model(tmp_path / "alone"), "onnx", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["model.json", "model.onnx", "references"]


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tflite' is no format; choose from onnx, onnx-int8, torch"):
        export(model(tmp_path, "test_resnet", [View(px=64, flip=False)]), "tflite", tmp_path / "out")
