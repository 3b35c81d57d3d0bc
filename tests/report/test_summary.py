"""The headline: what it says of every way a run can end, and whose figures it takes."""

import dataclasses

import pytest

from fitwithin.report.summary import delivered_method, headline, search_sentence, tiles, trust_note
from report.test_schema import REPORTS, complete, plan, receipt, searched, small, trained, untrained


def test_the_headline_says_what_was_reached_within_what():
    assert headline(complete()) == (
        "resnest50d_1s4x24d (amp, trained at 160 px, tested at 160 + 224 with flips) "
        "reaches 91.2 % (95 % interval 90.3–92.1) on 3,925 test images, within 6.00 GiB, 3h 00m and 5 ms/image: "
        "spent 2h 57m, peak 5.91 GiB, 1.55 ms/image."
    )


def test_the_headline_names_the_row_that_is_delivered_even_if_another_validates_better():
    first, *others = complete().methods
    delivered = dataclasses.replace(first, method="Delivered", note="within 1 ms/image", delivered=True)
    better = tuple(dataclasses.replace(method, delivered=False) for method in others)
    report = complete(methods=(delivered, *better))
    assert delivered.validation.share < max(method.validation.share for method in better)
    assert delivered_method(report) is delivered
    assert "(amp, trained at 160 px, tested at 160) reaches 86.8 % (95 % interval 85.7–87.8) on 3,925 test" in headline(
        report
    )


def test_a_winner_without_methods_has_the_figures_of_its_validation():
    report = small(trained("resnet18", "amp", 160, 900), winner="resnet18-amp-160")
    assert delivered_method(report) is None
    assert headline(report).startswith(
        "resnet18 (amp, trained at 160 px) reaches 90.0 % (95 % interval 88.0–91.7) on 1,000 validation"
    )


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_the_figures_are_those_of_the_headline(make):
    report = make()
    first, *limits = tiles(report)
    assert first.value in headline(report)
    assert [tile.kept for tile in limits] == [limit.kept for limit in report.receipt.limits]
    assert all(0.0 <= tile.percent <= 100.0 for tile in limits)


def test_the_trust_note_counts_the_rivals():
    assert "optimistic" in trust_note(complete())
    alone = small(trained("resnet18", "amp", 160, 900), winner="resnet18-amp-160")
    assert "optimistic" not in trust_note(alone)
    assert trust_note(plan()) == ""


def test_a_run_that_left_no_model_says_so():
    report = small(untrained("resnet18", "amp", 160, "failed", "the loss was not finite"))
    assert headline(report).startswith("No model: none of 1 candidates")
    assert "(1 failed)" in headline(report)


def test_a_plan_takes_its_limits_from_the_request_before_there_is_a_receipt():
    report = dataclasses.replace(plan(), receipt=receipt(limits=(), phases=()))
    assert "fit within 6.00 GiB and 3h 00m" in headline(report)


def test_a_search_says_which_came_second_and_how_sure_that_is():
    assert search_sentence(searched()) == (
        "The search tried 7 candidates in 10 trials on 2 rungs. Second is resnet50-amp-160, with 84.5 % on rung 2, "
        "where the winner had 86.0 %. That the winner is really better is 83 % sure by 1,000 validation images."
    )
    assert search_sentence(complete()) == search_sentence(plan()) == ""


def test_a_search_that_cannot_tell_says_so_in_words():
    search = searched().search
    even = dataclasses.replace(search.runner_up, accuracy=search.runner_up.winner_accuracy, confidence=None)
    text = search_sentence(searched(search=dataclasses.replace(search, runner_up=even)))
    assert text.endswith("with 86.0 % on rung 2 like the winner: 1,000 validation images cannot tell them apart.")
    certain = dataclasses.replace(search.runner_up, confidence=0.9999)
    assert "more than 99 % sure" in search_sentence(searched(search=dataclasses.replace(search, runner_up=certain)))
    alone = search_sentence(searched(search=dataclasses.replace(search, runner_up=None)))
    assert alone.endswith("No other candidate left a model to compare with.")
