"""Recipes: those that ship are whole, TOML there and back, and every value has its range."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import UsageError
from fitwithin.recipe import Recipe, from_dict, load, names


def test_the_papers_recipe_ships_and_is_the_papers() -> None:
    assert {"paper", "upright"} <= set(names())
    paper = load("paper")
    assert paper.name == "paper"
    assert paper.flips
    assert paper.last_epochs == 3  # "validate in the last 3 epochs only"
    assert paper.max_batch is None
    assert not load("upright").flips


@pytest.mark.parametrize("name", names())
def test_every_recipe_survives_json(name: str) -> None:
    recipe = load(name)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


@given(st.integers(1, 4096), st.floats(1.01, 64))
def test_the_learning_rate_grows_with_the_root_of_the_batch(batch: int, factor: float) -> None:
    paper = load("paper")
    assert paper.learning_rate(paper.lr_batch) == paper.lr
    grown = paper.learning_rate(round(batch * factor))
    assert grown >= paper.learning_rate(batch)
    assert paper.learning_rate(4 * batch) == pytest.approx(2 * paper.learning_rate(batch))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr_batch", 0),
        ("weight_decay", -0.1),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.1)),
        ("crop_scale", (0.5, 1.1)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip", 1.1),
        ("flip", -0.1),
        ("crop", 0.0),
        ("crop", 1.2),
        ("last_epochs", 0),
        ("worthwhile_epochs", 0),
        ("max_batch", 1),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"recipe 'paper': {field} = .* is out of its range"):
        replace(load("paper"), **{field: value})


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
        ("[plan]\nlr = 1.0", "missing crop, crop_ratio"),
        ("[plan]\nmomentum = 1.0", "unknown momentum; missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        load(str(path))


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"there is no recipe 'papr'; choose from paper, .*or give a \.toml file"):
        load("papr")
    with pytest.raises(UsageError, match=r"there is no recipe file 'nowhere\.toml'"):
        load("nowhere.toml")
