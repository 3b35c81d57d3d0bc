"""Recipes: those that ship are whole, TOML there and back, and every value has its range."""

import dataclasses
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import UsageError
from fitwithin.files import from_json, to_json
from fitwithin.recipe import Recipe, load, names


def test_the_papers_recipe_ships_and_is_the_papers() -> None:
    assert {"paper", "upright"} <= set(names())
    paper = load("paper")
    assert paper.name == "paper"
    assert paper.flips
    assert paper.validate_last_epochs == 3  # "validate in the last 3 epochs only"
    assert paper.max_batch is None
    assert not load("upright").flips


@pytest.mark.parametrize("name", names())
def test_every_recipe_survives_json(name: str) -> None:
    recipe = load(name)
    assert from_json(Recipe, to_json(recipe)) == recipe


@given(st.integers(1, 4096), st.floats(1.01, 64))
def test_the_learning_rate_grows_with_the_root_of_the_batch(batch: int, factor: float) -> None:
    paper = load("paper")
    assert paper.learning_rate(paper.lr_base_size) == paper.lr
    grown = paper.learning_rate(round(batch * factor))
    assert grown >= paper.learning_rate(batch)
    assert paper.learning_rate(4 * batch) == pytest.approx(2 * paper.learning_rate(batch))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr_base_size", 0),
        ("weight_decay", -0.1),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.1)),
        ("crop_scale", (0.5, 1.1)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip", 1.1),
        ("flip", -0.1),
        ("crop_pct", 0.0),
        ("clip_grad", 0.0),
        ("color_jitter", 1.1),
        ("cutmix", -0.1),
        ("augment_epochs", -1.0),
        ("test_scales", ()),
        ("cpu_precisions", ("int4",)),
        ("test_scales", (3.0,)),
        ("crop_pct", 1.2),
        ("validate_last_epochs", 0),
        ("min_epochs", 0),
        ("max_batch", 1),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"recipe 'paper': {field} = .* is out of its range"):
        replace(load("paper"), **{field: value})


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_the_longer_a_turn_the_more_it_augments_up_to_the_recipes_values(epochs: float, more: float) -> None:
    fast = load("fast")
    shorter, longer = fast.for_epochs(min(epochs, more)), fast.for_epochs(max(epochs, more))
    assert 0 <= shorter.color_jitter <= longer.color_jitter <= fast.color_jitter
    assert 0 <= shorter.cutmix <= longer.cutmix <= fast.cutmix
    assert fast.for_epochs(fast.augment_epochs) == fast
    assert load("paper").for_epochs(epochs) == load("paper")


def test_sizes_to_test_at() -> None:
    assert load("paper").test_sizes((160, 224)) == [160, 224]
    assert load("fast").test_sizes((160, 224)) == [160, 192, 224, 256]
    assert load("fast").test_sizes((32,)) == [32, 40]


def toml(recipe: Recipe) -> str:
    fields = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "name" and v is not None}
    return "[plan]\n" + "\n".join(
        f"{key} = {json.dumps(list(value) if isinstance(value, tuple) else value)}" for key, value in fields.items()
    )


def test_a_file_is_a_recipe_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(toml(replace(load("paper"), max_batch=32)))
    assert load(str(path)) == replace(load("paper"), name="mine", max_batch=32)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr = ", "is not valid TOML"),
        ("lr = 1.0", r"unknown section \[lr\]; known are augment, evaluate, optimizer, plan"),
        ("[training]\nlr = 1.0", r"unknown section \[training\]"),
        ("[plan]\nlr = 1.0", "missing crop_pct, crop_ratio"),
        ("[plan]\nmomentum = 1.0", "unknown momentum; missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        load(str(path))


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'papr'; choose from fast, paper, .*or give a \.toml file"):
        load("papr")
    with pytest.raises(UsageError, match=r"there is no recipe file 'nowhere\.toml'"):
        load("nowhere.toml")


def test_progressive_resizing_gives_sizes_that_fit_the_strides() -> None:
    one = replace(load("paper"), progressive_resizing=((0.0, 0.6), (0.4, 0.8), (0.7, 1.0)))
    assert one.stages(160) == ((0.0, 96), (0.4, 128), (0.7, 160))
    assert one.stages(224) == ((0.0, 128), (0.4, 192), (0.7, 224))
    assert one.stages(84) == ((0.0, 48), (0.4, 64), (0.7, 84))
    assert one.stages(40) == ((0.0, 32), (0.7, 40)), "none below a stride of 32"
    assert one.stages(32) == ((0.0, 32),)
    assert one.stages(24) == ((0.0, 24),)
    assert replace(one, progressive_resizing=((0.0, 0.95), (0.5, 1.0))).stages(160) == ((0.0, 160),), (
        "no size comes twice"
    )
    assert load("paper").stages(160) == ((0.0, 160),)


@pytest.mark.parametrize(
    "progress",
    [
        ((0.1, 0.5), (0.4, 1.0)),  # the first steps have no size
        ((0.0, 0.5), (0.4, 0.9)),  # the whole size is never reached
        ((0.0, 0.5), (0.4, 0.4), (0.6, 1.0)),  # smaller again
        ((0.0, 0.5), (0.4, 0.8), (0.4, 1.0)),  # two at once
        ((0.0, 0.0), (0.4, 1.0)),
        ((0.0, 0.5), (1.0, 1.0)),
        ((0.0,),),
    ],
)
def test_progressive_resizing_that_makes_no_sense_is_refused(progress: object) -> None:
    with pytest.raises(UsageError, match="progressive_resizing"):
        replace(load("paper"), progressive_resizing=progress)


def test_progressive_resizing_is_read_from_toml(tmp_path: Path) -> None:
    text = resources.files("fitwithin").joinpath("recipes/paper.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(
        text.replace("[augment]", "[augment]\nprogressive_resizing = [[0.0, 0.5], [0.5, 1]]"), encoding="utf-8"
    )
    assert load(str(path)).progressive_resizing == ((0.0, 0.5), (0.5, 1))
    assert from_json(Recipe, to_json(load(str(path)))) == load(str(path))
