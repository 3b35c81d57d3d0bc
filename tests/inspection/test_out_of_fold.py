"""Probabilities out of fold: no image is judged by a head that saw it or a twin of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.data import pack_builder
from fitwithin.data.dataset import Dataset
from fitwithin.data.framing import Frame
from fitwithin.data.sources.door import open_dataset
from fitwithin.inspection import out_of_fold
from fitwithin.machine import CPU
from simulated.pictures import jpeg, picture, write
from simulated.weights import drawn


@given(labels=st.lists(st.integers(0, 3), min_size=5, max_size=80), data=st.data())
def test_families_stay_together_and_classes_are_dealt_out(labels: list[int], data: st.DataObject) -> None:
    family = np.array([data.draw(st.integers(0, len(labels))) for _ in labels])
    fold = out_of_fold.folds(np.array(labels), family)
    for number in np.unique(family):
        assert len(set(fold[family == number].tolist())) == 1
    alone = out_of_fold.folds(np.array(labels), np.arange(len(labels)))
    for label in set(labels):
        counts = np.bincount(alone[np.array(labels) == label], minlength=out_of_fold.FOLDS)
        assert counts.max() - counts.min() <= 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Bright and dark pictures."""
    files = {}
    for split, count in (("train", 20), ("val", 6), ("test", 6)):
        for place, name in enumerate(("bright", "dark")):
            for number in range(count):
                seed = 1000 * place + 100 * len(split) + number
                light = picture(seed, 64, 64).point(lambda value, dark=place: value // (1 + 3 * dark))
                files[f"{split}/{name}/{number}.jpg"] = jpeg(light)
    return open_dataset(write(tmp_path_factory.mktemp("photos"), files))


def test_a_wrong_label_is_not_learnt_by_heart(photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    pack = pack_builder.build(photos, 64, workers=1)
    weights = drawn("test_efficientnet.r160_in1k", tmp_path)
    said: list[str] = []
    families = np.arange(len(pack))
    found = out_of_fold.out_of_fold(pack, families, [weights], CPU, lambda what, done, total: said.append(what))
    truth = pack.labels[found.positions]
    assert found.weights == (weights.name,)
    assert found.probabilities.shape == (len(pack), 2)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert (found.probabilities.argmax(1) == truth).mean() > 0.9
    assert set(found.tested) == {*pack.indices("val").tolist(), *pack.indices("test").tolist()}
    assert any(what.startswith("features by") for what in said)

    # A family of twins with a label of its own is judged by the others alone, and its features come from the cache.
    twins = np.flatnonzero(truth == 0)[:4]
    wrong = pack.labels.copy()
    wrong[twins] = 1
    families[twins] = twins[0]
    said.clear()
    again = out_of_fold.out_of_fold(
        replace(pack, labels=wrong), families, [weights], CPU, lambda what, done, total: said.append(what)
    )
    assert not any(what.startswith("features by") for what in said)
    assert (again.probabilities[twins].argmax(1) == 0).all()


def test_small_images_are_enlarged_but_not_beyond_what_weights_know(photos: Dataset, tmp_path: Path) -> None:
    pack = pack_builder.build(photos, 64, workers=1)
    assert out_of_fold.size_for(pack, 224) == 160
    assert out_of_fold.size_for(pack, 96) == 96


@pytest.mark.parametrize(("wide", "fit"), [(100, "crop"), (150, "crop"), (170, "squash"), (300, "squash")])
def test_of_long_pictures_all_is_looked_at(photos: Dataset, wide: int, fit: str) -> None:
    pack = pack_builder.build(photos, 64, workers=1)
    for high, across in ((100, wide), (wide, 100)):
        sides = {"heights": np.full(len(pack), high, np.int32), "widths": np.full(len(pack), across, np.int32)}
        assert out_of_fold.frame_for(replace(pack, **sides)) == Frame(1.0, fit)
