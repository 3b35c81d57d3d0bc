"""The code of the pages about deployment runs as it stands, on an export, without torch and fitwithin."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitwithin.candidate import views_of
from fitwithin.data.framing import Frame
from fitwithin.inference.crops import cropper
from fitwithin.inference.export.program import export
from fitwithin.inference.model import Model
from fitwithin.inference.sources import sources
from inference.test_export import model
from inference.test_handed_over import CLASSES, picture

pytest.importorskip("onnxruntime")

DOCS = Path(__file__).parents[2] / "docs"

#: Run before each program: what it does not need is not there.
BLOCKED = "import sys\nfor name in ('torch', 'timm', 'fitwithin', 'torchvision'): sys.modules[name] = None\n"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model of four views at two sizes, and its export with ``prepare.py``."""
    folder = tmp_path_factory.mktemp("deploy")
    found, out = model(folder / "run", "test_resnet", views_of([48, 64], flips=True)), folder / "export"
    export(found, "onnx", out)
    (out / "prepare.py").write_text(blocks("deploy-onnxruntime.md")[0], encoding="utf-8")
    return found, out


def run(program: str, folder: Path, *words: str) -> str:
    (folder / "program.py").write_text(BLOCKED + program, encoding="utf-8")
    command = [sys.executable, "program.py", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def odd_pictures(folder: Path) -> list[Path]:
    """A large JPEG, which is decoded at a fraction, one that lies on its side, and a picture with transparency."""
    large = folder / "large.jpg"
    large.write_bytes(picture(1))
    with Image.open(large) as opened:
        big = opened.resize((900, 700), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    big.save(large)
    big.resize((90, 61)).save(folder / "turned.jpg", exif=exif)
    clear = big.resize((70, 80)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "clear.png")
    big.convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


def test_pictures_are_prepared_pixel_by_pixel_as_fitwithin_does(made: tuple[Model, Path], tmp_path: Path) -> None:
    found, out = made
    paths = [*odd_pictures(tmp_path), *sorted((out / "references").iterdir())]
    program = "import numpy, sys\nfrom prepare import batch\nnumpy.savez('pixels.npz', **batch(sys.argv[1:]))\n"
    run(program, out, *map(str, paths))
    config = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    ours = cropper("48,64", str(Frame.of_config(config)))(list(sources(paths)))
    with np.load(out / "pixels.npz") as theirs:
        for px in (48, 64):
            np.testing.assert_array_equal(theirs[f"images_{px}"], np.stack([each[px] for each in ours]))


def test_the_page_of_onnx_runtime_classifies_as_predict_does(made: tuple[Model, Path], tmp_path: Path) -> None:
    found, out = made
    paths = odd_pictures(tmp_path)
    lines = run(blocks("deploy-onnxruntime.md")[1], out, *map(str, paths)).splitlines()
    expected = [f"{each.path} {each.label} {each.probability:.3f}" for each in found.predict(paths, device="cpu")]
    assert lines == expected


@pytest.mark.parametrize(
    ("page", "block", "needs"),
    [("deploy-onnxruntime.md", 2, "onnxruntime"), ("deploy-openvino.md", 0, "openvino")],
)
def test_the_check_of_a_page_passes(made: tuple[Model, Path], page: str, block: int, needs: str) -> None:
    pytest.importorskip(needs)
    said = run(blocks(page)[block], made[1])
    difference = re.search(r"largest difference of a probability: (\S+)", said)
    assert difference
    assert float(difference[1]) <= 1e-4


def test_tritons_configuration_names_what_the_file_has(made: tuple[Model, Path], tmp_path: Path) -> None:
    (tmp_path / "export").symlink_to(made[1])
    run(blocks("deploy-triton.md")[0], tmp_path)
    config = (tmp_path / "models" / "photos" / "config.pbtxt").read_text(encoding="utf-8")
    tensors = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[([\d, ]+)\]', config)
    import onnxruntime

    session = onnxruntime.InferenceSession(made[1] / "model.onnx")
    kinds = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    theirs = [
        (each.name, kinds[each.type], ", ".join(map(str, each.shape[1:])))
        for each in (*session.get_inputs(), *session.get_outputs())
    ]
    assert sorted(tensors) == sorted(theirs)
    labels = (tmp_path / "models" / "photos" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == list(CLASSES)
