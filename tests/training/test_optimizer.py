"""The optimizers of a recipe: what decays, and that each of them learns and goes on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import timm
import torch

from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate
from fitwithin.engine.device import Cpu
from fitwithin.recipe import OPTIMIZERS, Recipe
from fitwithin.training.learner import Learner
from fitwithin.training.optimizer import make, parameter_groups
from simulated.run import on_cpu

CANDIDATE = Candidate(model="test_resnet", train_px=32, precision="fp32")


def learner(recipe: Recipe) -> Learner:
    return Learner(on_cpu(recipe, classes=3, seed=0), CANDIDATE, Cpu())


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    y_b = torch.randint(0, 3, (12,), generator=generator)
    x_bhwc = torch.randint(0, 100, (12, 32, 32, 3), generator=generator) + 50 * y_b.view(-1, 1, 1, 1)
    return x_bhwc.to(torch.uint8), y_b


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_falls(optimizer: str, label_smoothing: float) -> None:
    one = learner(
        replace(recipes.load("paper"), optimizer=optimizer, label_smoothing=label_smoothing, decay_norms=False)
    )
    losses = [float(one.step(*batch(number % 2), 3e-3)) for number in range(16)]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_goes_on_to_the_same_bytes(optimizer: str) -> None:
    recipe = replace(recipes.load("paper"), optimizer=optimizer)
    whole = learner(recipe)  # each begins with the generator as the seed has it
    for number in range(6):
        whole.step(*batch(number), 1e-3)
    part = learner(recipe)
    for number in range(3):
        part.step(*batch(number), 1e-3)
    state = part.state()
    again = learner(replace(recipe))
    again.load_state(state)
    for number in range(3, 6):
        again.step(*batch(number), 1e-3)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_at_rate_0_changes_no_weight(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose gradient has always been exactly 0; here on the CPU by the arithmetic of a recorded step."""
    torchs, timms = import_module("torch.optim.adam"), import_module("timm.optim.nadamw")
    monkeypatch.setattr(torchs, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    monkeypatch.setattr(timms, "_check_capturable_devices", lambda *_, **__: None)
    recipe = replace(recipes.load("fast"), optimizer=optimizer)
    one = learner(recipe)
    one.optimizer = make(recipe, one.net, torch.zeros(()), fused=False, capturable=True)
    named = dict(one.net.named_parameters())
    for parameter in (named["layer1.0.bn1.weight"], named["layer1.0.bn1.bias"]):
        parameter.register_hook(torch.zeros_like)  # as of channels that never fire
    for number in range(3):
        one.step(*batch(number), 1e-3)
    before = {name: value.detach().clone() for name, value in named.items()}
    one.step(*batch(3), 0.0)
    assert one.finite()
    assert [name for name, value in named.items() if not torch.equal(value, before[name])] == []


def test_norms_and_biases_decay_only_where_that_is_wanted() -> None:
    net = timm.create_model("test_resnet", num_classes=3)
    (every,) = parameter_groups(net, 0.05, decay_norms=True)
    matrices, flat = parameter_groups(net, 0.05, decay_norms=False)
    assert len(every["params"]) == len(matrices["params"]) + len(flat["params"])
    assert all(parameter.ndim > 1 for parameter in matrices["params"])
    assert all(parameter.ndim <= 1 for parameter in flat["params"])
    assert (every["weight_decay"], matrices["weight_decay"], flat["weight_decay"]) == (0.05, 0.05, 0.0)


def test_frozen_parameters_are_left_out() -> None:
    net = timm.create_model("test_resnet", num_classes=3)
    net.fc.weight.requires_grad_(False)
    optimizer = make(recipes.load("paper"), net, 0.0, fused=False, capturable=False)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert id(net.fc.weight) not in held


def test_the_papers_optimizer_is_torchs_adamw_as_it_comes() -> None:
    net = timm.create_model("test_resnet", num_classes=3)
    ours = make(recipes.load("paper"), net, 0.0, fused=False, capturable=False)
    theirs = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.01)
    assert type(ours) is type(theirs)
    assert len(ours.param_groups) == 1
    told = [
        {k: v for k, v in group.param_groups[0].items() if k not in ("params", "fused")} for group in (ours, theirs)
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_layers_far_from_the_head_move_less(optimizer: str) -> None:
    recipe = replace(recipes.load("transfer"), optimizer=optimizer, layer_decay=0.5, clip_grad=None, weight_decay=0.0)
    one = learner(recipe)
    before = {name: value.detach().clone() for name, value in one.net.named_parameters()}
    one.step(*batch(0), 1e-3)
    scales = sorted(group["lr_scale"] for group in one.optimizer.param_groups)
    assert scales[-1] == 1.0
    assert scales[0] < 0.1
    for group in one.optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-3 * group["lr_scale"])
    moved = {name: float((value.detach() - before[name]).abs().mean()) for name, value in one.net.named_parameters()}
    assert moved["fc.weight"] > 5 * moved["conv1.0.weight" if "conv1.0.weight" in moved else "conv1.weight"]


def test_every_parameter_learns_under_layer_decay_and_once() -> None:
    one = learner(recipes.load("transfer"))
    inside = [parameter for group in one.optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in inside}) == len(inside) == len(list(one.net.parameters()))
