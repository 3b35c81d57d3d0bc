"""What the tests on a GPU share: an engine, and images of three classes that differ in colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from fitwithin.data import pack_builder
from fitwithin.data.pack import Pack
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.local import Local
from fitwithin.machine import DeviceName


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / str(label)).mkdir()
        for number in range(60):
            pixels = rng.integers(0, 100, (80, 90, 3)) + np.array([50 * (label == c) for c in range(3)])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(label) / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return pack_builder.build(open_dataset(folder), 72)


@pytest.fixture(scope="module")
def engine() -> Iterator[Local]:
    with Local(DeviceName(kind="cuda")) as local:
        local.prepare()
        yield local
