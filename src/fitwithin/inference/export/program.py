"""A model as one file for other runtimes: ONNX, or a program of torch.export.

The file takes pixels and gives probabilities: normalisation, views, weights and temperature are in it. It does not
resize: each of its inputs is a batch of pictures at the size of a view, as the JSON beside it says.

Shape suffixes: B batch, C channels, H W pixels, K classes, V views.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fitwithin.data.framing import Frame
from fitwithin.errors import UsageError
from fitwithin.files import write_text_atomic
from fitwithin.inference.calibration import LEAST
from fitwithin.inference.crops import cropper
from fitwithin.inference.ensemble import Ensemble
from fitwithin.inference.export.int8 import Int8, quantize
from fitwithin.inference.model import REFERENCES, Model
from fitwithin.inference.sources import Source, image_files, sources
from fitwithin.training import model as models

#: The formats, with the file of each.
FORMATS = {"onnx": "model.onnx", "onnx-int8": "model.onnx", "torch": "model.pt2"}

#: The format that quantize makes of the float file.
INT8 = "onnx-int8"

#: What is said of an exported file, and how to prepare pictures for it.
DESCRIPTION = "model.json"

#: The batch that the program is traced with: 1 would be taken for a constant.
TRACED = 2

Uint8s = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an exported file compares with the model on the reference pictures: the largest difference of a probability
    between both in float32, and for how many pictures it names the class that ``predict`` names."""

    file: Path
    pictures: int
    max_abs_diff: float
    same_class: int
    #: The file in 8 bits, if one was asked for.
    int8: Int8 | None = None


class _Member(nn.Module):
    """A member of the ensemble: uint8 pixels [B, H, W, C] to logits [V, B, K] of views at their size."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        net, self.card = models.load(folder, torch.device("cpu"))
        self.net = net.eval()
        self.register_buffer("mean", 255 * torch.tensor(self.card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(self.card.std).view(1, 3, 1, 1))

    def forward(self, x_bhwc: torch.Tensor, flips: list[bool]) -> torch.Tensor:
        x_bchw = (x_bhwc.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        stacked = torch.cat([x_bchw.flip(3) if flip else x_bchw for flip in flips])
        logits_nk: torch.Tensor = self.net(stacked)
        return logits_nk.reshape(len(flips), -1, logits_nk.shape[-1])


class Exported(nn.Module):
    """Pixels to probabilities. Its argument is a tuple of batches, uint8 [B, P, P, 3], one for each size ascending."""

    class_weights: torch.Tensor

    def __init__(self, folder: Path, ensemble: Ensemble) -> None:
        super().__init__()
        self.members = nn.ModuleList(_Member(ensemble.folder_of(each, folder)) for each in ensemble.joined)
        self.counts = Counter(ensemble.views)
        self.views = sorted(self.counts)
        self.sizes = sorted({view.px for view in self.views})
        self.passes = [
            (place, px, views)
            for place, member in enumerate(ensemble.joined)
            for px in self.sizes
            if (views := [view for view in self.views if (view.member, view.px) == (member, px)])
        ]
        self.temperature = ensemble.temperature
        weights = ensemble.class_weights or [1.0] * len(self.cards[0].classes)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32))
        self.weighs = bool(ensemble.class_weights)

    @property
    def cards(self) -> list[models.Card]:
        """Those of the members, the winner's first."""
        return [member.card for member in self.members if isinstance(member, _Member)]

    def forward(self, images: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Probabilities [B, K]."""
        pixels, parts = dict(zip(self.sizes, images, strict=True)), []
        for place, px, views in self.passes:
            # The views of a size in one pass: the graph is smaller, and 8-bit weights are not stored for each of them.
            found_vbk = self.members[place](pixels[px], [view.flip for view in views]).softmax(-1)
            parts += [self.counts[view] * found_vbk[number] for number, view in enumerate(views)]
        mean_bk = torch.stack(parts).sum(0) / self.counts.total()
        if self.weighs:
            mean_bk = mean_bk.clamp_min(LEAST) * self.class_weights
            mean_bk = mean_bk / mean_bk.sum(1, keepdim=True)
        if self.temperature == 1.0:
            return mean_bk
        return (mean_bk.clamp_min(LEAST).log() / self.temperature).softmax(-1)


def export(model: Model, how: str, folder: Path, data: Path | None = None) -> Check:
    """Write the file and its description into ``folder``, with the reference pictures, and check it on these.

    Args:
        data: for ``onnx-int8``: pictures to calibrate on and to compare both files with (int8.py).

    Raises:
        UsageError: the format is unknown or needs no ``data``, a library is missing, or the model cannot be exported.
    """
    if how not in FORMATS:
        raise UsageError(f"{how!r} is no format; choose from {', '.join(FORMATS)}")
    if data is not None and how != INT8:
        raise UsageError(f"--data is for --format {INT8} alone: --format {how} needs no pictures")
    if data is not None:
        sources(data)  # refused now, not after the export
    if not (model.folder / REFERENCES).is_dir():
        raise UsageError(f"{model.folder} has no reference pictures to check an export on; finish the run first")
    program = Exported(model.folder, model.ensemble).eval()
    card = program.cards[0]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FORMATS[how]
    run = _export_torch(program, file) if how == "torch" else _export_onnx(program, file)
    names, crops = _references(model, program.sizes, card.frame, folder)
    with torch.inference_mode():
        expected_bk = program(tuple(torch.from_numpy(crops[px]) for px in program.sizes)).numpy()
    found_bk = run(crops)
    predicted = model.predict(model.folder / REFERENCES, device="cpu")
    answers = [card.classes.index(each.label) for each in predicted]
    check = Check(
        file=file,
        pictures=len(names),
        max_abs_diff=float(np.abs(found_bk - expected_bk).max()),
        same_class=int(sum(int(row.argmax()) == answer for row, answer in zip(found_bk, answers, strict=True))),
    )
    description = _description(model, card, program, file.name, names, expected_bk)
    write_text_atomic(folder / DESCRIPTION, json.dumps(description, indent=1, ensure_ascii=False))
    return replace(check, int8=quantize(model, folder, folder / DESCRIPTION, data)) if how == INT8 else check


def _examples(program: Exported) -> tuple[tuple[torch.Tensor, ...]]:
    return (tuple(torch.zeros((TRACED, px, px, 3), dtype=torch.uint8) for px in program.sizes),)


def _export_onnx(program: Exported, file: Path) -> Callable[[Mapping[int, Uint8s]], npt.NDArray[np.float32]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise UsageError(f"ONNX needs {error.name}: pip install fitwithin[export]") from error
    names = [f"images_{px}" for px in program.sizes]
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        made = torch.onnx.export(
            program,
            _examples(program),
            dynamo=True,
            input_names=names,
            output_names=["probabilities"],
            dynamic_shapes=(tuple({0: batch} for _ in names),),
            external_data=False,
            verbose=False,
        )
    assert made is not None
    made.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(crops: Mapping[int, Uint8s]) -> npt.NDArray[np.float32]:
        (found,) = session.run(None, {f"images_{px}": each for px, each in crops.items()})
        return np.asarray(found, dtype=np.float32)

    return run


def _export_torch(program: Exported, file: Path) -> Callable[[Mapping[int, Uint8s]], npt.NDArray[np.float32]]:
    batch = torch.export.Dim("batch")
    made = torch.export.export(program, _examples(program), dynamic_shapes=(tuple({0: batch} for _ in program.sizes),))
    torch.export.save(made, file)
    loaded = torch.export.load(file).module()

    def run(crops: Mapping[int, Uint8s]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            found = loaded(tuple(torch.from_numpy(crops[px]) for px in program.sizes))
        return np.asarray(found.numpy(), dtype=np.float32)

    return run


def _sources(model: Model) -> list[Source]:
    """The reference pictures, by name."""
    return [Source(name=path.name, content=path) for path in sorted(image_files(model.folder / REFERENCES))]


def _references(model: Model, sizes: list[int], frame: Frame, folder: Path) -> tuple[list[str], dict[int, Uint8s]]:
    """The reference pictures' names, and their pixels [B, P, P, 3] at each size. They are put beside the file."""
    given = _sources(model)
    shutil.copytree(model.folder / REFERENCES, folder / REFERENCES, dirs_exist_ok=True)
    found = cropper(",".join(map(str, sizes)), str(frame))(given)
    read = [each for each in found if isinstance(each, dict)]
    return [source.name for source in given], {px: np.stack([each[px] for each in read]) for px in sizes}


#: In words, what the frame of each kind shows.
SHOWN = {
    "crop": "the centre square with this share of the shorter side",
    "pad": "the centre square with this share of the longer side, and borders of RGB 124, 116, 104 around the picture",
    "squash": "the centre rectangle with this share of both sides",
}


def _description(
    model: Model, card: models.Card, program: Exported, file: str, names: list[str], expected_bk: npt.NDArray[Any]
) -> dict[str, Any]:
    """What a user of the file needs to know."""
    return {
        "file": file,
        "model": card.model,
        "inputs": [
            {"name": f"images_{px}", "shape": ["batch", px, px, 3], "type": "uint8", "colours": "RGB"}
            for px in program.sizes
        ],
        "outputs": [{"name": "probabilities", "shape": ["batch", len(card.classes)], "type": "float32"}],
        "classes": card.classes,
        "prepare": {
            "orientation": "as the EXIF tag says",
            "crop": SHOWN[card.frame.fit],
            "crop_share": card.frame.crop,
            "fit": card.frame.fit,
            "resize": "bilinear and antialiased, as Pillow's Image.resize(..., BILINEAR)",
        },
        "inside": {
            "mean": card.mean,
            "std": card.std,
            "members": [{"model": each.model, "mean": each.mean, "std": each.std} for each in program.cards],
            "views": [view.name for view in sorted(program.counts.elements())],
            "class_weights": model.ensemble.class_weights or None,
            "temperature": model.ensemble.temperature,
        },
        "references": {
            name: [round(float(value), 6) for value in row] for name, row in zip(names, expected_bk, strict=True)
        },
    }
