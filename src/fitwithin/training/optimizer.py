"""The optimizers that a recipe may name."""

from __future__ import annotations

from typing import Any

import torch
from timm import optim as timm_optim
from torch import nn

from fitwithin.recipe import Recipe


def make(
    recipe: Recipe, net: nn.Module, rate: float | torch.Tensor, *, fused: bool, capturable: bool
) -> torch.optim.Optimizer:
    """The recipe's optimizer over a network's learnable parameters.

    Args:
        rate: the first learning rate; a tensor on the device is read at every step, also by a recorded one.
        fused: use AdamW's kernel for all parameters at once.
        capturable: keep all state on the device, so that a step can be recorded as a CUDA graph.
    """
    if recipe.layer_decay < 1:
        groups = timm_optim.param_groups_layer_decay(
            net, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
        )
    else:
        groups = parameter_groups(net, recipe.weight_decay, decay_norms=recipe.decay_norms)
    if recipe.optimizer == "muon":
        muon: torch.optim.Optimizer = timm_optim.Muon(
            groups, lr=rate, weight_decay=recipe.weight_decay, nesterov=True, capturable=capturable
        )
        return muon
    return torch.optim.AdamW(groups, lr=rate, weight_decay=recipe.weight_decay, fused=fused, capturable=capturable)


def parameter_groups(net: nn.Module, weight_decay: float, *, decay_norms: bool) -> list[dict[str, Any]]:
    """All learnable parameters with weight decay; without ``decay_norms`` norms and biases get none."""
    learnable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if decay_norms:
        return [{"params": learnable, "weight_decay": weight_decay}]
    decayed = [parameter for parameter in learnable if parameter.ndim > 1]
    flat = [parameter for parameter in learnable if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": flat, "weight_decay": 0.0}]
