"""What a run says of near twins across splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitwithin.data import pack_builder
from fitwithin.data.inspection import leaks
from fitwithin.data.sources.door import open_dataset
from simulated.pictures import CHANGES, jpeg, picture, write


def test_near_twins_across_splits_are_counted_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    files, seed = {}, 0
    for split in ("train", "val", "test"):
        for name in "ab":
            for number in range(4):
                seed += 1
                files[f"{split}/{name}/{number}.jpg"] = jpeg(picture(seed))
    files["val/a/twin.jpg"] = jpeg(CHANGES["mirrored"](picture(1)))
    files["val/b/crop.jpg"] = jpeg(CHANGES["crop"](picture(5)))
    files["test/a/copy.jpg"] = files["train/a/1.jpg"]
    files["train/a/twin.jpg"] = jpeg(CHANGES["mirrored"](picture(3)))
    pack = pack_builder.build(open_dataset(write(tmp_path / "photos", files)), 64, workers=1)
    (note,) = leaks.near_leaks(pack)
    assert note.startswith("2 val images are near twins of training images, such as val/a/twin.jpg and train/a/0.jpg")
    assert leaks.affordable(pack, 3600)
    assert not leaks.affordable(pack, 2)
