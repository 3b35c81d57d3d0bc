"""Laws of what is done to training images on the device, and torchvision beside them where it does the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as vision

from fitwithin.training import augment

#: B images of 3 x H x W, no two alike.
B, H, W, K = 64, 24, 20, 5


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(seed)) * 255


@given(st.floats(0, 1), st.integers(0, 5))
def test_an_image_is_mirrored_or_it_is_not(probability: float, seed: int) -> None:
    torch.manual_seed(seed)
    x_bhwc = images(seed).permute(0, 2, 3, 1).to(torch.uint8)
    found = augment.horizontal_flip(x_bhwc, probability)
    same, mirrored = ((found == other).flatten(1).all(1) for other in (x_bhwc, x_bhwc.flip(2)))
    assert bool((same ^ mirrored).all())
    share = float(mirrored.float().mean())
    assert abs(share - probability) < 4 * (0.25 / B) ** 0.5
    assert torch.equal(augment.horizontal_flip(x_bhwc, 0.0), x_bhwc)
    assert torch.equal(augment.horizontal_flip(x_bhwc, 1.0), x_bhwc.flip(2))


@given(st.floats(0, 1), st.integers(0, 5))
def test_colours_stay_in_range_and_none_is_no_change(most: float, seed: int) -> None:
    torch.manual_seed(seed)
    found = augment.color_jitter(images(seed), most)
    assert found.shape == (B, 3, H, W)
    assert 0 <= float(found.min()) <= float(found.max()) <= 255
    torch.testing.assert_close(augment.color_jitter(images(seed), 0.0), images(seed), rtol=1e-4, atol=1e-2)


def test_colours_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = torch.rand(3, B, generator=torch.Generator().manual_seed(1)) + 0.5
    monkeypatch.setattr(augment, "_uniform", lambda *_: factors)
    found = augment.color_jitter(images(), 0.5) / 255
    for n in range(B):
        brightness, contrast, saturation = factors[:, n].tolist()
        wanted = vision.adjust_brightness(images()[n] / 255, brightness)
        wanted = vision.adjust_saturation(vision.adjust_contrast(wanted, contrast), saturation)
        torch.testing.assert_close(found[n], wanted, rtol=1e-3, atol=2e-3)


@given(st.floats(0, 1), st.integers(0, 5))
def test_a_mixed_images_label_counts_by_its_share(probability: float, seed: int) -> None:
    """Each image is one number, so that what is to be seen can be counted."""
    torch.manual_seed(seed)
    plain = torch.arange(B).float().view(B, 1, 1, 1).expand(B, 3, H, W)
    y_b = torch.arange(B) % K
    found, target = augment.cutmix(plain, y_b, K, probability)
    own = found == plain
    assert bool((own | (found == plain.roll(1, 0))).all()), "nothing but the image and its neighbour"
    torch.testing.assert_close(target.sum(1), torch.ones(B))
    share = own.float().mean((1, 2, 3))
    torch.testing.assert_close(target.gather(1, y_b.unsqueeze(1)).squeeze(1), share, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_none_or_all_are_mixed(probability: float) -> None:
    torch.manual_seed(0)
    _, target = augment.cutmix(images(), torch.arange(B) % K, K, probability)
    touched = (target.max(1).values < 1).float().mean()
    assert float(touched) == 0 if probability == 0 else float(touched) > 0.8  # a box may be less than a pixel


def test_the_shares_of_boxes_are_drawn_evenly() -> None:
    """Whole within the image they would cover a share from 0 to 1, a half in the mean; cut off at its edges, less."""
    torch.manual_seed(0)
    kept = [augment.cutmix(images(), torch.zeros(B, dtype=torch.long), 2, 1.0)[0] for _ in range(20)]
    seen = [float((one == images()).float().mean()) for one in kept]
    assert 0.6 < sum(seen) / len(seen) < 0.8
