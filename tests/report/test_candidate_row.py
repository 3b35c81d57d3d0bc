"""Laws of the Pareto front: what is on it nothing beats, what is not is beaten by what it names."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fitwithin.report.candidate_row import dominated_by, dominates, known_objectives, with_pareto
from report.test_schema import trained, untrained
from simulated.run import tries

few = st.integers(0, 4)  # so few that ties abound
objectives = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.tuples(few, few, few, few), max_size=12)


@tries(300)
@given(objectives)
def test_the_front_is_exactly_what_nothing_beats(found: dict[str, tuple[int, ...]]) -> None:
    by = dominated_by(found)
    assert set(by) == set(found)
    for name, other in by.items():
        if other is None:
            assert not any(dominates(rival, found[name]) for rival in found.values())
        else:
            assert dominates(found[other], found[name])
            assert by[other] is None, "it names one that is on the front itself"
    assert not found or None in by.values()


@tries(200)
@given(objectives, st.tuples(few, few, few, few))
def test_another_candidate_puts_nobody_on_the_front(found: dict[str, tuple[int, ...]], new: tuple[int, ...]) -> None:
    before, after = dominated_by(found), dominated_by({**found, "new": new})
    assert all(after[name] is not None for name, other in before.items() if other is not None)


@tries(200)
@given(objectives, st.permutations(range(4)))
def test_the_front_does_not_depend_on_the_order_of_merits(found: dict[str, tuple[int, ...]], order: list[int]) -> None:
    shuffled = dominated_by({name: tuple(each[place] for place in order) for name, each in found.items()})
    assert {name: other is None for name, other in shuffled.items()} == {
        name: other is None for name, other in dominated_by(found).items()
    }


def test_candidates_that_were_tried_are_marked_and_no_others() -> None:
    best = trained("best", "amp", 160, 950, allotted_s=100.0, inference_ms=1.0, peak_bytes=100)
    quick = trained("quick", "amp", 160, 900, allotted_s=10.0, inference_ms=1.0, peak_bytes=100)
    worse = trained("worse", "amp", 160, 890, allotted_s=10.0, inference_ms=2.0, peak_bytes=100)
    same = replace(quick, name="same", model="same")
    rows = {
        row.name: row for row in with_pareto([best, quick, worse, same, untrained("x", "amp", 160, "rejected", "no")])
    }
    assert {name: row.front for name, row in rows.items()} == {
        "best-amp-160": True,
        "quick-amp-160": True,
        "worse-amp-160": False,
        "same": True,
        "x-amp-160": None,
    }
    assert rows["worse-amp-160"].dominated_by in ("quick-amp-160", "same")
    assert rows["best-amp-160"].dominated_by is None


def test_what_is_not_known_of_all_is_not_compared() -> None:
    known = trained("a", "amp", 160, 900, inference_ms=1.0, allotted_s=10.0)
    unknown = trained("b", "amp", 160, 899, inference_ms=None, allotted_s=10.0)
    assert known_objectives([known, unknown]) == ["validation", "allotted_s", "peak_bytes"]
    assert [row.front for row in with_pareto([known, unknown])] == [True, False]
    assert "inference_ms" in known_objectives([known])
    assert with_pareto([]) == ()


def test_noise_puts_nobody_on_the_front() -> None:
    best = trained("best", "amp", 160, 950, allotted_s=10.0, actual_s=9.9, inference_ms=1.02, peak_bytes=1001)
    worst = trained("worst", "amp", 160, 100, allotted_s=10.0, actual_s=9.8, inference_ms=1.01, peak_bytes=1000)
    assert [row.front for row in with_pareto([best, worst])] == [True, False]
    lean = replace(worst, peak_bytes=900)
    assert [row.front for row in with_pareto([best, lean])] == [True, True]
