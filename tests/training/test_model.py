"""Backbones are built for all sizes of a run, or refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fitwithin.candidate import Candidate
from fitwithin.data.framing import Frame
from fitwithin.engine.results import WEIGHTS
from fitwithin.errors import RunFolderError, UsageError
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


def test_weights_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    candidate = Candidate(model="test_resnet", train_px=32, precision="fp32")
    net, arguments = models.build(candidate, 3, (32,))
    card = models.Card(
        model="test_resnet",
        classes=("a", "b", "c"),
        train_px=32,
        precision="fp32",
        frame=Frame(1.0),
        arguments=arguments,
    )
    models.save(net, card, tmp_path)
    assert models.load(tmp_path, torch.device("cpu"))[1] == card
    whole = (tmp_path / WEIGHTS).read_bytes()
    for kept in (b"", whole[:100], whole[:-1], bytes(len(whole))):
        (tmp_path / WEIGHTS).write_bytes(kept)
        with pytest.raises(RunFolderError, match=r"cannot be read .*; copy the run's folder again"):
            models.load(tmp_path, torch.device("cpu"))
