"""The headline: what it says of every way a run can end, and whose figures it takes."""

import dataclasses

import pytest

from fitwithin.planning.stats import Estimate
from fitwithin.report.schema import MethodRow
from fitwithin.report.summary import caution, contested, delivered, headline, tiles
from report.test_schema import REPORTS, complete, plan, receipt, searched, small, trained, untrained


def test_the_headline_says_what_was_reached_within_what():
    assert headline(complete()) == (
        "resnest50d_1s4x24d (amp, trained at 160 px, tested at 160 + 224 with flips) "
        "reaches 91.2 % (90.3–92.1) on 3,925 test images, within 6.00 GiB, 3h 00m and 5 ms/image: "
        "spent 2h 57m, peak 5.91 GiB, 1.55 ms/image."
    )


def test_the_headline_names_the_row_that_is_handed_over_even_if_another_validates_better():
    first, *others = complete().methods
    handed_over = dataclasses.replace(first, method="Handed over", note="within 1 ms/image", delivered=True)
    better = tuple(dataclasses.replace(method, delivered=False) for method in others)
    report = complete(methods=(handed_over, *better))
    assert handed_over.validation.share < max(method.validation.share for method in better)
    assert delivered(report) is handed_over
    assert "(amp, trained at 160 px, tested at 160) reaches 86.8 % (85.7–87.8) on 3,925 test" in headline(report)


def test_a_winner_without_methods_is_told_by_its_validation():
    report = small(trained("resnet18", "amp", 160, 900), winner="resnet18-amp-160")
    assert delivered(report) is None
    assert headline(report).startswith(
        "resnet18 (amp, trained at 160 px) reaches 90.0 % (88.0–91.7) on 1,000 validation"
    )


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_the_figures_are_those_of_the_headline(make):
    report = make()
    first, *limits = tiles(report)
    assert first.value in headline(report)
    assert [tile.kept for tile in limits] == [limit.kept for limit in report.receipt.limits]
    assert all(0.0 <= tile.percent <= 100.0 for tile in limits)


def test_without_a_mark_the_method_is_chosen_by_validation_never_by_test_accuracy():
    name = "resnet18-amp-160"
    better_test = MethodRow(
        method="SS",
        candidate=name,
        train_px=160,
        test_px="160",
        validation=Estimate(correct=80, total=100),
        test=Estimate(correct=99, total=100),
    )
    better_val = dataclasses.replace(
        better_test,
        method="AS",
        test_px="224",
        validation=Estimate(correct=90, total=100),
        test=Estimate(correct=85, total=100),
    )
    report = complete(
        candidates=(trained("resnet18", "amp", 160, 900),), winner=name, methods=(better_test, better_val), views=()
    )
    assert "tested at 224) reaches 85.0 %" in headline(report)


def test_the_caution_counts_the_rivals():
    assert "optimistic" in caution(complete())
    alone = small(trained("resnet18", "amp", 160, 900), winner="resnet18-amp-160")
    assert "optimistic" not in caution(alone)
    assert caution(plan()) == ""


def test_a_run_that_left_no_model_says_so():
    report = small(untrained("resnet18", "amp", 160, "failed", "the loss was not finite"))
    assert headline(report).startswith("No model: none of 1 candidates")
    assert "(1 failed)" in headline(report)


def test_a_plan_takes_its_limits_from_the_request_before_there_is_a_receipt():
    report = dataclasses.replace(plan(), receipt=receipt(limits=(), phases=()))
    assert "fit within 6.00 GiB and 3h 00m" in headline(report)


def test_a_search_says_who_was_second_and_how_sure_that_is():
    assert contested(searched()) == (
        "The search tried 7 candidates in 10 trials on 2 rungs; second was resnet50-amp-160, 84.5 % on rung 2 against "
        "86.0 %: by 1,000 validation images it is 83 % sure that the winner is better."
    )
    assert contested(complete()) == contested(plan()) == ""


def test_a_search_that_cannot_tell_says_so_in_words():
    search = searched().search
    even = dataclasses.replace(search.second, accuracy=search.second.winner_accuracy, confidence=None)
    told = contested(searched(search=dataclasses.replace(search, second=even)))
    assert told.endswith("had 86.0 % on rung 2 like the winner: 1,000 validation images cannot tell them apart.")
    certain = dataclasses.replace(search.second, confidence=0.9999)
    assert "more than 99 % sure" in contested(searched(search=dataclasses.replace(search, second=certain)))
    alone = contested(searched(search=dataclasses.replace(search, second=None)))
    assert alone.endswith("none of the others left a model to compare with.")
