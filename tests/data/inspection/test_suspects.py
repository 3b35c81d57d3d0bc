"""What is said of which image: what is kept, what the list proposes, and the numbers of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitwithin.data.dataset import Dataset, Sample
from fitwithin.data.decode import CUT_SHORT
from fitwithin.data.inspection.facts import Spread, facts
from fitwithin.data.inspection.label_errors import Suspicion
from fitwithin.data.inspection.look import Seen
from fitwithin.data.inspection.suspects import KINDS, Suspect, suspects
from fitwithin.data.inspection.twins import Twins


def dataset(*rows: tuple[str, int, str]) -> Dataset:
    samples = tuple(Sample(path=path, label=label, split=split) for path, label, split in rows)
    return Dataset(
        source="/photos",
        root=Path("/photos"),
        classes=("cat", "dog"),
        samples=samples,
        fingerprint="0",
        split_why="so",
        ignored=0,
    )


def seen(side: int = 100, **more: object) -> Seen:
    return Seen(**{"size": 10, "width": side, "height": side, "format": "JPEG", "mode": "RGB", **more})


def judged(rows: list[tuple[str, int, str]], pair: Twins, sides: tuple[int, ...] = ()) -> dict[str, Suspect]:
    sights = [seen(side) for side in sides or [100] * len(rows)]
    return {f"{each.what}: {each.path}": each for each in suspects(dataset(*rows), sights, [pair], None)}


EXACT, NEAR = Twins(0, 1, 1.0, True), Twins(0, 1, 0.95, False)


@pytest.mark.parametrize(("pair", "what", "exclude"), [(EXACT, "copy", True), (NEAR, "near twin", False)])
def test_of_twins_in_one_class_and_split_the_larger_stays(pair: Twins, what: str, exclude: bool) -> None:
    found = judged([("a", 0, "train"), ("b", 0, "train")], pair, (50, 100))
    assert list(found) == [f"{what}: a"]
    assert found[f"{what}: a"].other == "b"
    assert found[f"{what}: a"].exclude == exclude


@pytest.mark.parametrize("pair", [EXACT, NEAR])
@pytest.mark.parametrize(("split", "kept"), [("val", "b"), ("test", "b")])
def test_of_a_leak_the_training_image_goes(pair: Twins, split: str, kept: str) -> None:
    found = judged([("a", 0, "train"), ("b", 0, split)], pair, (100, 50))
    assert list(found) == ["leak: a"]
    assert (found["leak: a"].other, found["leak: a"].exclude) == (kept, True)


def test_of_val_and_test_the_validation_image_goes() -> None:
    assert list(judged([("a", 0, "test"), ("b", 0, "val")], NEAR)) == ["leak: b"]


def test_two_labels_are_said_of_both_and_none_is_left_out() -> None:
    found = judged([("a", 0, "train"), ("b", 1, "train")], EXACT)
    assert list(found) == ["two labels: a", "two labels: b"]
    assert not any(each.exclude for each in found.values())
    assert "of dog in train" in found["two labels: a"].why


def test_two_labels_across_splits_are_a_leak_too() -> None:
    found = judged([("a", 0, "train"), ("b", 1, "test")], NEAR)
    assert list(found) == ["two labels: a", "two labels: b", "leak: a"]


def test_an_unlabelled_twin_in_test_is_a_leak_alone() -> None:
    assert list(judged([("a", 0, "train"), ("b", -1, "test")], EXACT)) == ["leak: a"]


def test_files_that_are_broken_or_odd_say_why() -> None:
    data = dataset(("a", 0, "train"), ("b", 0, "train"), ("c", 1, "train"), ("d", 1, "train"))
    sights = [seen(reason="truncated"), seen(remarks=(CUT_SHORT,)), seen(width=900), seen(side=12)]
    found = suspects(data, sights, [], None)
    assert [(each.what, each.path, each.exclude) for each in found] == [
        ("broken", "a", True),
        ("odd", "b", False),
        ("odd", "c", False),
        ("odd", "d", False),
    ]
    assert [each.why for each in found[:2]] == ["truncated", CUT_SHORT]


def test_labels_are_suspected_the_surest_first() -> None:
    data = dataset(("a", 0, "train"), ("b", 0, "train"), ("c", 1, "train"))
    labels = Suspicion(positions=[2, 0], better=[0, 1], log_ratios=[9.0, 6.0], expected=2)
    found = suspects(data, [seen()] * 3, [], labels)
    assert [(each.path, each.label, each.suggestion) for each in found] == [
        ("c", "dog", "look at it: cat?"),
        ("a", "cat", "look at it: dog?"),
    ]
    assert {each.what for each in found} <= set(KINDS)


def test_the_numbers_are_of_what_can_be_read() -> None:
    rows = [(f"{n}", 0, "train") for n in range(30)] + [("x", 1, "train"), ("y", 1, "val"), ("z", 1, "train")]
    sights = [seen(side=10 * n + 10) for n in range(30)] + [seen(format="PNG", mode="L"), seen(), seen(reason="cut")]
    found = facts(dataset(*rows), sights)
    assert found.counts == {"train": 32, "val": 1, "test": 0}
    assert found.unreadable == 1
    assert found.formats == {"JPEG": 31, "PNG": 1}
    assert found.modes == {"RGB": 31, "L": 1}
    assert (found.width.least, found.width.most) == (10, 300)
    assert found.ratio == Spread(least=1, median=1, most=1)
    assert found.imbalance == 30
    assert [each.name for each in found.small] == ["dog"]
