"""A model in 8 bits: what is quantized, on which pictures, and whether its cost is told as it is."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fitwithin.candidate import View, views_of
from fitwithin.cli.main import app
from fitwithin.errors import DataError, UsageError
from fitwithin.inference.crops import cropper
from fitwithin.inference.export.int8 import Int8, pictures, quantize, reduced_range
from fitwithin.inference.export.program import export
from fitwithin.inference.model import Model
from fitwithin.planning.stats import Accuracy, paired_interval
from inference.test_export import model
from inference.test_handed_over import REFERENCE, handed_over, picture

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, and a picture that cannot be read."""
    folder = tmp_path_factory.mktemp("data")
    for seed in range(10, 24):
        place = folder / ("cat" if seed % 2 else "dog") / f"{seed}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(picture(seed))
    (folder / "cat" / "broken.jpg").write_bytes(picture(1)[:200])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Model, Path, dict]:
    """An export by its command, of four views at two sizes: the model, the folder, and what was printed."""
    run, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out")
    found = model(run, "test_resnet", views_of([48, 64], flips=True))
    words = ["export", run, "--format", "onnx-int8", "--data", data, "--out", out, "--json"]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found, out, json.loads(done.stdout.splitlines()[-1])


def probabilities(out: Path, name: str, sources: list) -> np.ndarray:
    about = json.loads((out / "model.json").read_text(encoding="utf-8"))
    crops = cropper("48,64", f"{about['prepare']['crop_share']} crop")(sources)
    feed = {f"images_{px}": np.stack([each[px] for each in crops]) for px in (48, 64)}
    return onnxruntime.InferenceSession(out / name).run(None, feed)[0]


def test_the_cost_that_is_told_is_the_cost(made: tuple[Model, Path, dict], data: Path) -> None:
    found, out, told = made
    assert (told["pictures"], told["same_class"]) == (8, 8)  # the check of the float file
    _, compared, _ = pictures(found, data)
    compared = [each for each in compared if "broken" not in each[0].name]
    before, after = (probabilities(out, name, [s for s, _ in compared]) for name in ("model.onnx", "model.int8.onnx"))
    int8 = told["int8"]
    assert int8["pictures"] == len(compared) >= 10
    assert int8["same_class"] == (before.argmax(1) == after.argmax(1)).sum()
    assert 0 < int8["max_abs_diff"] == pytest.approx(abs(before - after).max(), abs=1e-6)
    labels = np.array([found.classes.index(label) for _, label in compared])
    assert int8["float_accuracy"] == {"correct": (before.argmax(1) == labels).sum(), "total": len(labels)}
    assert int8["int8_accuracy"] == {"correct": (after.argmax(1) == labels).sum(), "total": len(labels)}
    assert min(int8["int8_ms"], int8["float_ms"]) > 0
    assert "not readable: 1 of the pictures" in int8["notes"]
    about = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert about["int8"]["file"] == "model.int8.onnx"
    assert about["int8"]["same_class"] == int8["same_class"]


def test_the_file_holds_each_weight_once_in_8_bits(made: tuple[Model, Path, dict]) -> None:
    _, out, told = made
    assert told["int8"]["int8_bytes"] == (out / "model.int8.onnx").stat().st_size < 0.3 * told["int8"]["float_bytes"]


def test_channels_have_scales_of_their_own_and_the_last_layer_is_float(made: tuple[Model, Path, dict]) -> None:
    loaded = onnx.load(made[1] / "model.int8.onnx")
    assert [each.domain for each in loaded.opset_import] == [""]
    graph = loaded.graph
    makers = {name: node for node in graph.node for name in node.output}
    scales = {each.name: each.dims for each in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        weight = makers[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert scales[weight.input[1]][0] > 1
    last = [node for node in graph.node if node.op_type == "Gemm"]
    assert last
    assert not any(
        name in makers and makers[name].op_type == "DequantizeLinear" for node in last for name in node.input
    )


def test_without_data_the_reference_pictures_are_all_there_is(tmp_path: Path) -> None:
    int8 = export(model(tmp_path, "test_resnet", [View(px=64, flip=False)]), "onnx-int8", tmp_path / "out").int8
    assert int8 is not None
    assert (int8.calibrated_on, int8.pictures, int8.int8_accuracy) == (8, 8, None)
    assert int8.same_class >= 6
    assert "give more with --data" in int8.notes[1]
    assert "give --data with class folders" in int8.verdict


def test_ranges_are_found_on_pictures_that_are_not_compared(tmp_path: Path, data: Path) -> None:
    handed_over(tmp_path, "test_resnet")
    calibrating, compared, notes = pictures(Model(tmp_path), data)
    names = [[source.name for source, _ in some] for some in (calibrating, compared)]
    assert names[0][: len(REFERENCE)] == sorted(REFERENCE)
    assert not set(names[0]) & set(names[1])
    assert len(names[0]) + len(names[1]) == len(REFERENCE) + 15
    assert {label for _, label in compared} == {"cat", "dog"}
    assert not notes


def test_pictures_without_the_models_classes_give_no_accuracy_and_that_is_said(tmp_path: Path, data: Path) -> None:
    handed_over(tmp_path, "test_resnet")
    _, compared, notes = pictures(Model(tmp_path), data / "cat")
    assert {label for _, label in compared} == {None}
    assert "accuracy is not measured" in notes[0]
    one = data / "dog" / "10.jpg"
    assert [source.content for source, _ in pictures(Model(tmp_path), one)[1]] == [one]
    with pytest.raises(UsageError, match="there is no file or folder"):
        pictures(Model(tmp_path), tmp_path / "nowhere")


def test_pictures_that_cannot_be_read_are_no_comparison(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(picture(1)[:200])
    with pytest.raises(DataError, match="none of the 1 pictures to compare with can be read"):
        export(model(tmp_path, "test_resnet", [View(px=64, flip=False)]), "onnx-int8", tmp_path / "out", broken)


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [("avx2 avx512_vnni", "x86_64", False), ("avx2", "x86_64", True), ("asimddp", "aarch64", False)],
)
def test_weights_have_7_bits_where_sums_would_overflow(
    tmp_path: Path, flags: str, machine: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags: {flags}\n")
    assert reduced_range(tmp_path / "cpuinfo", machine)[0] is expected


@pytest.mark.parametrize(
    ("lost", "won", "words"),
    [
        (30, 2, "INT8 costs accuracy: 93.0 % before, 90.2 % after, on 1,000 pictures (change -2.8 points"),
        (3, 2, "INT8 seems to cost accuracy, which so few pictures cannot prove"),
        (2, 3, "INT8 shows no loss of accuracy, but one of 0.4 points is possible"),
        (0, 9, "INT8 shows no loss of accuracy: "),
    ],
)
def test_a_cost_is_said_plainly(lost: int, won: int, words: str) -> None:
    found = Int8(
        file=Path("x"),
        int8_bytes=1,
        float_bytes=4,
        calibrated_on=8,
        pictures=1000,
        same_class=1000 - lost - won,
        max_abs_diff=0.1,
        int8_accuracy=Accuracy(correct=930 - lost + won, total=1000),
        float_accuracy=Accuracy(correct=930, total=1000),
        change_interval=paired_interval(lost=lost, won=won, total=1000),
        int8_ms=1.0,
        float_ms=2.0,
        notes=(),
    )
    assert found.verdict.startswith(words)
    assert not any("not faster" in line for line in found.lines)
    assert "INT8 is not faster here" in dataclasses.replace(found, int8_ms=2.0).lines[-1]


def test_without_onnxruntime_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(tmp_path, "test_resnet", [View(px=64, flip=False)])
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(UsageError, match=r"INT8 needs onnxruntime.quantization: pip install fitwithin\[export\]"):
        quantize(made, tmp_path / "out", tmp_path / "out" / "model.json", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"ONNX needs onnxruntime: pip install fitwithin\[export\]"):
        export(made, "onnx-int8", tmp_path / "out")


def test_data_of_no_use_is_refused_before_anything_is_written(tmp_path: Path, data: Path) -> None:
    made, out = model(tmp_path, "test_resnet", [View(px=64, flip=False)]), tmp_path / "out"
    with pytest.raises(UsageError, match="--data is for --format onnx-int8 alone"):
        export(made, "torch", out, data)
    with pytest.raises(UsageError, match="there is no file or folder"):
        export(made, "onnx-int8", out, tmp_path / "nowhere")
    assert not out.exists()
    with pytest.raises(UsageError, match="there is no file or folder"):
        export(
            model(tmp_path / "b", "test_resnet", [View(px=64, flip=False)]), "onnx-int8", tmp_path / "o", tmp_path / "c"
        )
