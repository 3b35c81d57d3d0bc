"""Splits by group and by order: laws, against what a split without them does."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fitwithin.data.dataset import Sample
from fitwithin.data.fingerprint import digest
from fitwithin.data.sources.splits import ordered_split, random_split

#: For each sample its class, and its group (0: none).
drawn = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=4, max_size=120)


def samples(kinds: list[tuple[int, int]]) -> tuple[list[Sample], dict[str, str]]:
    """Samples of those classes, with the group of each that has one."""
    made = [
        Sample(path=f"{place}.png", label=label, split="train", content=digest(b"%d" % place) * 2)
        for place, (label, _) in enumerate(kinds)
    ]
    return made, {f"{place}.png": f"g{group}" for place, (_, group) in enumerate(kinds) if group}


def placed(split: list[Sample]) -> dict[str, str]:
    return {sample.path: sample.split for sample in split}


@given(kinds=drawn, seed=st.integers(0, 3), with_test=st.booleans(), ordered=st.booleans())
def test_a_group_is_on_one_side_and_no_class_leaves_train(
    kinds: list[tuple[int, int]], seed: int, with_test: bool, ordered: bool
) -> None:
    before, group_of = samples(kinds)
    if ordered:
        order = {sample.path: place for place, sample in enumerate(before)}
        after = ordered_split(before, order=order, with_test=with_test, group_of=group_of)
    else:
        after = random_split(before, seed=seed, with_test=with_test, group_of=group_of)
    assert [(s.path, s.label) for s in after] == [(s.path, s.label) for s in before] or not group_of
    sides: dict[str, set[str]] = {}
    for sample in after:
        if sample.path in group_of:
            sides.setdefault(group_of[sample.path], set()).add(sample.split)
    assert all(len(found) == 1 for found in sides.values())
    assert {s.label for s in after if s.split == "train"} == {s.label for s in before}
    assert with_test or all(sample.split != "test" for sample in after)


@given(order=st.permutations(range(40)), seed=st.integers(0, 3))
def test_groups_are_drawn_in_one_order_wherever_their_samples_stand(order: list[int], seed: int) -> None:
    before, group_of = samples([(place % 2, place // 4 + 1) for place in range(40)])
    once = random_split(before, seed=seed, with_test=True, group_of=group_of)
    again = random_split([before[place] for place in order], seed=seed, with_test=True, group_of=group_of)
    assert placed(once) == placed(again)


@given(labels=st.lists(st.integers(0, 2), min_size=6, max_size=80), seed=st.integers(0, 3), with_test=st.booleans())
def test_groups_of_one_are_no_groups(labels: list[int], seed: int, with_test: bool) -> None:
    """As many of each class go to each part as without, whichever they are."""
    before, _ = samples([(label, 0) for label in labels])
    alone = {sample.path: sample.path for sample in before}

    def counts(split: list[Sample]) -> Counter[tuple[int, str]]:
        return Counter((sample.label, sample.split) for sample in split)

    bare = random_split(before, seed=seed, with_test=with_test)
    assert counts(random_split(before, seed=seed, with_test=with_test, group_of=alone)) == counts(bare)
    few = dict(list(alone.items())[:1])
    assert counts(random_split(before, seed=seed, with_test=with_test, group_of=few)) == counts(bare)
    order = {sample.path: place for place, sample in enumerate(before)}
    last = ordered_split(before, order=order, with_test=with_test)
    assert placed(ordered_split(before, order=order, with_test=with_test, group_of=alone)) == placed(last)


def test_groups_of_usual_sizes_fill_what_is_asked_for() -> None:
    """Ten of a hundred patients, each with eight pictures of both classes."""
    before, group_of = samples([(place % 2, place // 8 + 1) for place in range(800)])
    counts = Counter(sample.split for sample in random_split(before, seed=0, with_test=True, group_of=group_of))
    assert counts == {"train": 640, "val": 80, "test": 80}


def test_groups_that_are_too_large_still_leave_something_to_validate_on() -> None:
    """Three patients a class: a third is far more than a tenth, and better than nothing."""
    before, group_of = samples([(place % 2, place % 6 + 1) for place in range(60)])
    counts = Counter((s.label, s.split) for s in random_split(before, seed=0, with_test=True, group_of=group_of))
    assert counts == {(label, split): 10 for label in (0, 1) for split in ("train", "val", "test")}


@given(labels=st.lists(st.integers(0, 1), min_size=20, max_size=80), with_test=st.booleans())
def test_the_last_of_each_class_are_tested_and_those_before_validated(labels: list[int], with_test: bool) -> None:
    before, _ = samples([(label, 0) for label in labels])
    order = {sample.path: -place for place, sample in enumerate(before)}
    after = ordered_split(before, order=order, with_test=with_test)
    for label in {*labels}:
        mine = sorted((s for s in after if s.label == label), key=lambda s: order[s.path])
        rank = {"train": 0, "val": 1, "test": 2}
        assert [rank[s.split] for s in mine] == sorted(rank[s.split] for s in mine)
        if len(mine) >= 2:
            assert sum(s.split == "val" for s in mine) == max(1, round(len(mine) / 10))
