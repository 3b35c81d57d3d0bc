"""Backbones are built for all sizes of a run, or refused with the way out."""

from __future__ import annotations

import pytest
import torch

from fitwithin.candidate import Candidate
from fitwithin.errors import UsageError
from fitwithin.training import model as models


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("levit_128s", (128, 224, 256), ("fixed input size", "128, 224, 256 px", "--sizes 224 --test-sizes 224")),
        ("test_vit", (56, 96), ("multiples of 16 px, not 56 px", "--recipe paper", "--test-sizes")),
        ("bat_resnext26ts", (32,), ("takes at least 256 px", "32 px")),
    ],
)
def test_sizes_that_a_model_does_not_take(name: str, sizes: tuple[int, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        models.build(Candidate(model=name, train_px=sizes[-1], precision="fp32"), 3, sizes)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    ("name", "sizes"), [("test_vit", (96, 112)), ("levit_128s", (224,)), ("test_resnet", (56, 96))]
)
def test_sizes_that_it_takes(name: str, sizes: tuple[int, ...]) -> None:
    net, _ = models.build(Candidate(model=name, train_px=sizes[-1], precision="fp32"), 3, sizes)
    with torch.no_grad():
        assert all(net.eval()(torch.zeros(1, 3, px, px)).shape == (1, 3) for px in sizes)
