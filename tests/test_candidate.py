"""Candidates: a grid without doubles, names that are files, and words that suggest what was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.candidate import PRECISIONS, TABLE_2, Candidate, grid, match, parse_precisions, parse_sizes
from fitwithin.errors import UsageError

KNOWN = ["efficientnet_b0", "resnest26d", "resnet18", "resnet26d", "resnet50", "vgg11"]
names = st.lists(st.sampled_from(KNOWN), min_size=1)
sizes = st.lists(st.integers(8, 1024), min_size=1, max_size=5)


@given(names, st.lists(st.sampled_from(PRECISIONS), min_size=1), sizes)
def test_the_grid_is_every_combination_once(models: list[str], precisions: list[str], sizes: list[int]) -> None:
    found = grid(models, precisions, sizes)
    assert len(found) == len(set(found)) == len(set(models)) * len(set(precisions)) * len(set(sizes))
    assert found[0] == Candidate(model=models[0], precision=precisions[0], train_px=sizes[0])
    assert len({candidate.name for candidate in found}) == len(found)
    assert all("/" not in candidate.name and " " not in candidate.name for candidate in found)


def test_a_name_tells_model_precision_and_size() -> None:
    assert Candidate(model="resnet18", precision="amp", train_px=160).name == "resnet18-amp-160"


def test_patterns_keep_their_order_and_names_come_once() -> None:
    assert match(["vgg*", "resnet*", "resnet18"], KNOWN) == ["vgg11", "resnet18", "resnet26d", "resnet50"]
    assert match(["resn?t50", "vgg1[1-3]"], KNOWN) == ["resnet50", "vgg11"]


@given(names)
def test_known_names_match_themselves(wanted: list[str]) -> None:
    assert match(wanted, KNOWN) == list(dict.fromkeys(wanted))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("resnet_50", r"no timm model is called 'resnet_50'; did you mean resnet50, .*\?"),
        ("resnest", r"did you mean resnest26d"),
        ("efficientnetb0", r"did you mean efficientnet_b0\?"),
        ("qqqq*", r"'qqqq\*'; `fitwithin models` lists them"),
    ],
)
def test_an_unknown_name_suggests_near_ones(pattern: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        match(["resnet18", pattern], KNOWN)


def test_the_papers_ten_are_ten() -> None:
    assert len(set(TABLE_2)) == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [("amp", ["amp"]), (" FP32 , amp,", ["fp32", "amp"]), ("amp,amp", ["amp"])],
)
def test_precisions(text: str, words: list[str]) -> None:
    assert parse_precisions(text) == tuple(words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fp16", "'fp16' is not a precision; choose from amp, amp-bf16, fp32, tf32"),
        (" , ", "no precision was given; choose from"),
    ],
)
def test_other_precisions_are_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_precisions(text)


@given(sizes)
def test_sizes_come_ascending_and_once(values: list[int]) -> None:
    assert parse_sizes(", ".join(str(value) for value in values)) == tuple(sorted(set(values)))


@pytest.mark.parametrize("word", ["7", "1025", "-160", "160px", "1e2", "16.0", "²³", "9" * 5000])
def test_other_sizes_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="is not an image size; write pixels from 8 to 1024"):
        parse_sizes(f"160,{word}")


def test_no_size_is_refused() -> None:
    with pytest.raises(UsageError, match="no image size was given"):
        parse_sizes(",")
