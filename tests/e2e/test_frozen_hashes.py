"""Training is the same to the last bit: three tiny backbones by a fixed plan, killed in the middle, against hashes.

The hashes were recorded before the code moved into packages. A change that is meant to keep the numbers must keep them.
A change that is meant to change them records new ones: ``FITWITHIN_RECORD=1 pytest tests/e2e/test_frozen_hashes.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from e2e.door import Alive, Door

HERE = Path(__file__).parent
PLAN, RECORDED = HERE / "frozen_plan.json", HERE / "frozen_hashes.json"

#: The same arithmetic on every x86 processor: no instruction set beyond SSE4.1, whatever the machine has.
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}

#: The run is killed while this model is trained.
KILLED_IN = "test_efficientnet-fp32-48"


def write_noise(root: Path) -> Path:
    """Three classes of coloured noise as PNG files: 24 images each to train on, 8 to validate and 8 to test."""
    rng = np.random.default_rng(7)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for name, low in (("bright", 110), ("dark", 0), ("green", 40)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(low, low + 140, (40, 44, 3), dtype=np.uint8)
                if name == "green":
                    pixels[..., 1] += 60
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return root


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of each model's tensors and of each array of logits, by the file's place in the run."""
    found = {}
    for path in sorted((run / "candidates").rglob("*.safetensors")):
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            digest.update(name.encode())
            digest.update(tensor.tobytes())
        found[path.parent.name] = digest.hexdigest()
    for path in sorted(run.rglob("logits-*.npy")):
        found[path.stem] = hashlib.sha256(np.load(path, allow_pickle=False).tobytes()).hexdigest()
    return found


def test_weights_and_logits_are_those_recorded(tmp_path: Path) -> None:
    """Killed after the second model's first checkpoint and resumed."""
    (tmp_path / "cwd").mkdir()
    door = Door(tmp_path / "cache", tmp_path / "cwd")
    door.environment.update(PORTABLE)
    data, run = write_noise(tmp_path / "data"), tmp_path / "run"
    with Alive(door, tmp_path / "alive.log", "run", data, "--plan", PLAN, "--out", run) as alive:
        alive.when(lambda: any(run.glob(f"*/{KILLED_IN}/checkpoint.pt")), why="the second model's first checkpoint")
        alive.kill()
        alive.nothing_left()
    done_before = {path.parent.name for path in run.rglob("*.safetensors")}
    assert KILLED_IN in done_before
    assert len(done_before) == 2
    door.fine("resume", run)
    versions = {name: metadata.version(name) for name in ("torch", "timm", "pillow", "numpy")}
    found = {"versions": versions, "hashes": hashes(run)}
    if os.environ.get("FITWITHIN_RECORD"):
        RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert set(found["hashes"]) == set(recorded["hashes"])
    if recorded["versions"] != versions:
        pytest.skip(f"the hashes are those of {recorded['versions']}, here are {versions}")
    assert found["hashes"] == recorded["hashes"]
