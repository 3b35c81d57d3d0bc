"""One update: accumulated in parts it is the update of the whole batch; precisions are what their names say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fitwithin.candidate import Candidate
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import JobSettings
from fitwithin.training import model as models
from fitwithin.training.evaluation import eval_batch, feeder_rings
from fitwithin.training.learner import Learner
from fitwithin.training.model import amp_dtype
from simulated.law import SimulatedMachine
from simulated.run import CountedImages, Stage, request

#: A backbone with layer norm: batch norm sees the parts one by one, so that there only the gradients' sum is the same.
CANDIDATE = Candidate(model="test_vit", train_px=64, precision="fp32")


def setting() -> JobSettings:
    base = Stage(SimulatedMachine(), request(), Path("/nowhere"), CountedImages()).run().setting
    return replace(base, view_sizes=(64,), recipe=replace(base.recipe, flip=0.0))  # nothing is drawn


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x_bhwc = torch.randint(0, 256, (size, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return x_bhwc, torch.randint(0, 4, (size,), generator=generator)


def updated(accum_steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    learner = Learner(setting(), CANDIDATE, Cpu(), accum_steps=accum_steps)
    # AdamW's first steps are the gradients' signs: where one is nearly zero, rounding decides. Plain descent is linear.
    learner.optimizer = torch.optim.SGD(learner.net.parameters(), lr=0.0)  # type: ignore[assignment]
    losses = [float(learner.step(*batch(12), 0.05)) for _ in range(3)]
    return losses, {name: value.clone() for name, value in learner.net.state_dict().items()}


@pytest.mark.parametrize("accum_steps", [2, 3, 6])
def test_an_update_in_parts_is_the_update_of_the_whole(accum_steps: int) -> None:
    (losses, weights), (losses_in_parts, weights_in_parts) = updated(1), updated(accum_steps)
    assert losses_in_parts == pytest.approx(losses, rel=1e-4)
    assert len(set(losses)) == 3
    for name, value in weights.items():
        torch.testing.assert_close(weights_in_parts[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accum_steps", [1, 3])
def test_a_gradient_beyond_the_clip_is_scaled_down_to_it(accum_steps: int) -> None:
    def norm(clip: float | None) -> float:
        base = setting()
        clipped = replace(base, recipe=replace(base.recipe, clip_grad=clip))
        learner, found = Learner(clipped, CANDIDATE, Cpu(), accum_steps=accum_steps), []

        def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            found.append(float(torch.nn.utils.get_total_norm(grads)))

        learner.optimizer.register_step_pre_hook(note)
        learner.step(*batch(12), 0.0)
        return found[0]

    free = norm(None)
    assert norm(free / 2) == pytest.approx(free / 2, rel=1e-3)
    assert norm(free * 2) == pytest.approx(free, rel=1e-3)


def test_precisions() -> None:
    assert amp_dtype("amp", torch.float16) is torch.float16
    assert amp_dtype("amp-bf16", torch.float16) is torch.bfloat16
    assert amp_dtype("fp32", torch.float16) is amp_dtype("tf32", torch.float16) is None
    scaled = [Learner(setting(), replace(CANDIDATE, precision=p), Cpu()).scaler.is_enabled() for p in ("amp", "fp32")]
    assert scaled == [False, False], "only float16 needs its loss scaled, and the CPU's amp is bfloat16"


def test_an_evaluation_ends_the_training_mode_and_a_step_brings_it_back() -> None:
    learner = Learner(setting(), CANDIDATE, Cpu())
    x_bhwc, y_b = batch(4)
    plain, mirrored = learner.logits(x_bhwc), learner.logits(x_bhwc, flip=True)
    assert not learner.net.training
    assert plain.shape == mirrored.shape == (4, 4)
    torch.testing.assert_close(learner.logits(x_bhwc.flip(2)), mirrored)
    learner.step(x_bhwc, y_b, 1e-3)
    assert learner.net.training


def test_passes_are_recorded_from_the_second_of_a_shape_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a recorder; another shape or a step takes the recording's place (on CUDA: gpu/test_cuda.py)."""
    recorded: list[int] = []
    replayed: list[int] = []

    class Recorded:
        """In the place of a CUDA graph."""

        def __init__(self, net: Any, like: torch.Tensor, device: Any) -> None:
            del device
            self.net, self.shape = net, like.shape
            recorded.append(like.shape[2])

        def replay(self, x_bchw: torch.Tensor) -> torch.Tensor:
            replayed.append(x_bchw.shape[2])
            found: torch.Tensor = self.net(x_bchw)
            return found

    monkeypatch.setattr("fitwithin.training.learner.CapturedForward", Recorded)
    learner = Learner(replace(setting(), view_sizes=(48, 64)), CANDIDATE, Cpu())
    monkeypatch.setattr(learner, "_recorder", learner.device)
    x_bhwc, y_b = batch(4)
    expected = learner.logits(x_bhwc, eager=True)
    assert not recorded
    for _ in range(3):
        torch.testing.assert_close(learner.logits(x_bhwc), expected)
    assert (recorded, replayed) == ([64], [64] * 3), "it has been launched once"
    for _ in range(3):
        learner.logits(x_bhwc[:, :48, :48], flip=True)
    assert (recorded, replayed) == ([64, 48], [64] * 3 + [48] * 2)
    learner.step(x_bhwc, y_b, 0.0)
    assert learner._pass is None, "its memory is the step's"
    learner.logits(x_bhwc[:, :48, :48])
    assert recorded == [64, 48, 48]
    learner.logits(x_bhwc[:, :48, :48], eager=True)
    assert learner._pass is None
    assert len(replayed) == 6


def test_bounds_that_are_infinite_from_the_start_are_nothing_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    build = models.build

    def bounded(*arguments: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
        net, how = build(*arguments)
        net.register_buffer("input_max", torch.tensor(math.inf))
        net.register_buffer("count", torch.tensor(1.0))
        return net, how

    monkeypatch.setattr(models, "build", bounded)
    learner = Learner(setting(), CANDIDATE, Cpu())
    assert learner.finite()
    learner.net.get_buffer("count").fill_(math.inf)
    assert not learner.finite()
    learner.net.get_buffer("count").fill_(1.0)
    with torch.no_grad():
        next(learner.net.parameters()).view(-1)[0] = math.nan
    assert not learner.finite()


@pytest.mark.parametrize("canvas_px", [None, 104])
def test_rings_have_room_for_training_and_for_every_view(canvas_px: int | None) -> None:
    asked = replace(setting(), view_sizes=(32, 96), canvas_px=canvas_px)
    train_bytes, view_bytes = feeder_rings(CANDIDATE, asked, 400)
    image_bytes = 3 * (canvas_px or 64) ** 2
    assert 5 * 400 * image_bytes < train_bytes < 5 * 400 * (image_bytes + 64)
    assert view_bytes >= 5 * eval_batch(400) * 96 * 96 * 3
    assert feeder_rings(CANDIDATE, asked, 400, trains=False) == (view_bytes,)


def on_canvases(x_bhwc: torch.Tensor, y_b: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch on canvases of that side, with noise around the images."""
    n, px = x_bhwc.shape[:2]
    canvases = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    canvases[:, :px, :px] = x_bhwc
    return canvases, torch.stack([y_b, torch.full((n,), px), torch.full((n,), px)], dim=1)


@pytest.mark.parametrize("accum_steps", [1, 3])
@pytest.mark.parametrize("augmented", [{}, {"flip": 0.5, "color_jitter": 0.3, "cutmix": 0.5, "label_smoothing": 0.1}])
def test_a_step_on_canvases_is_the_step_on_their_images(accum_steps: int, augmented: dict[str, float]) -> None:
    """Images of the training size, which resizing leaves as they are; both draw the same."""
    asked, losses = replace(setting(), recipe=replace(setting().recipe, **augmented)), []
    for side in (None, 80):
        learner = Learner(asked, CANDIDATE, Cpu(), accum_steps=accum_steps)
        x_bhwc, y_b = batch(12)
        found = (x_bhwc, y_b) if side is None else on_canvases(x_bhwc, y_b, side)
        losses.append([float(learner.step(*found, 1e-3)) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(set(losses[0])) == 3


def test_another_size_from_the_same_canvases() -> None:
    """Only the learner knows of the size: the batches look the same."""
    learner = Learner(setting(), replace(CANDIDATE, model="test_resnet"), Cpu())
    seen: list[tuple[int, ...]] = []
    learner.net.register_forward_pre_hook(lambda module, taken: seen.append(tuple(taken[0].shape)))
    canvases = on_canvases(*batch(4), side=80)
    for px in (32, 32, 48):
        asked = learner.loader_args(px)
        assert (asked["px"], asked["canvas_px"]) == (px, learner._setting.canvas_px)
        learner.step(*canvases, 1e-3)
    assert seen == [(4, 3, 32, 32)] * 2 + [(4, 3, 48, 48)]


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_images_count_by_the_weights_of_their_classes(cutmix: float) -> None:
    base = setting()
    recipe = replace(base.recipe, label_smoothing=0.1, cutmix=cutmix)
    alike = Learner(replace(base, recipe=recipe), CANDIDATE, Cpu())
    ones = Learner(replace(base, recipe=recipe, class_weights=(1.0,) * base.classes), CANDIDATE, Cpu())
    double = Learner(replace(base, recipe=recipe, class_weights=(2.0,) * base.classes), CANDIDATE, Cpu())
    losses = []
    for learner in (alike, ones, double):
        torch.manual_seed(0)
        losses.append(float(learner.step(*batch(8), 0.0)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(2 * losses[0], rel=1e-5)


def test_a_class_without_weight_teaches_nothing() -> None:
    base = setting()
    weights = (0.0, *(1.0,) * (base.classes - 1))
    learner = Learner(replace(base, class_weights=weights), CANDIDATE, Cpu())
    x_bhwc, _ = batch(4)
    assert float(learner.step(x_bhwc, torch.zeros(4, dtype=torch.int64), 0.0)) == 0.0
    drawn = Learner(replace(base, class_weights=weights, balanced=True), CANDIDATE, Cpu())
    assert float(drawn.step(x_bhwc, torch.zeros(4, dtype=torch.int64), 0.0)) > 0, "they are drawn equally often instead"
