"""Changes to training images that a device makes in passing: mirror images, colours, boxes out of other images.

Shape suffixes: B batch, C channels, H W pixels, K classes.

Every draw comes from the device's own generator, whose state a checkpoint keeps, and nothing waits for the device: the
step can be recorded as a CUDA graph, and goes on from a checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

#: Luma of red, green and blue (ITU-R BT.601, as torchvision and Pillow turn images grey).
LUMA = (0.299, 0.587, 0.114)


def horizontal_flip(x_bhwc: torch.Tensor, probability: float) -> torch.Tensor:
    """Images [B, H, W, C], some of them mirrored. (A loader needs 24 us for one of 160 px, a quarter of its time.)"""
    chosen = _uniform(x_bhwc, 1, 0.0, 1.0)[0] < probability
    return torch.where(chosen.view(-1, 1, 1, 1), x_bhwc.flip(2), x_bhwc)


def color_jitter(x_bchw: torch.Tensor, most: float) -> torch.Tensor:
    """Images [B, 3, H, W] of 0 to 255, each with its own factors of brightness, contrast and saturation.

    Each factor is drawn from 1 - ``most`` to 1 + ``most`` (torchvision.transforms.ColorJitter, but in fixed order).
    """
    brightness, contrast, saturation = _uniform(x_bchw, 3, 1 - most, 1 + most).view(3, -1, 1, 1, 1)
    x_bchw = (x_bchw * brightness).clamp_(0, 255)
    x_bchw = torch.lerp(_grey(x_bchw).mean((2, 3), keepdim=True), x_bchw, contrast).clamp_(0, 255)
    return torch.lerp(_grey(x_bchw), x_bchw, saturation).clamp_(0, 255)


def _grey(x_bchw: torch.Tensor) -> torch.Tensor:
    """Luma [B, 1, H, W]; with plain numbers, since no tensor of them can be made while a step is recorded."""
    red, green, blue = (x_bchw[:, channel : channel + 1] * share for channel, share in enumerate(LUMA))
    return red + green + blue


def cutmix(
    x_bchw: torch.Tensor, y_b: torch.Tensor, classes: int, probability: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, C, H, W], some with a box out of their neighbour in the batch; targets [B, K] by the visible shares.

    CutMix (Yun et al., ICCV 2019): the box covers a share drawn from 0 to 1 around a point drawn from all; here each
    image has its own. Neighbours in a batch are random: an epoch's order is drawn.
    """
    share, chosen, *centre = _uniform(x_bchw, 4, 0.0, 1.0)
    inside = [
        ((torch.arange(size, device=x_bchw.device) + 0.5) / size - at.unsqueeze(1)).abs()
        < share.sqrt().unsqueeze(1) / 2
        for size, at in zip(x_bchw.shape[2:], centre, strict=True)
    ]
    rows, columns = inside[0].view(len(x_bchw), 1, -1, 1), inside[1].view(len(x_bchw), 1, 1, -1)
    box = rows & columns & (chosen < probability).view(-1, 1, 1, 1)
    kept = 1 - box.float().mean((1, 2, 3)).unsqueeze(1)
    target = F.one_hot(y_b, classes).float()
    return torch.where(box, x_bchw.roll(1, 0), x_bchw), kept * target + (1 - kept) * target.roll(1, 0)


def _uniform(like: torch.Tensor, rows: int, low: float, high: float) -> torch.Tensor:
    """Draws [rows, B] between ``low`` and ``high``."""
    return torch.rand(rows, len(like), device=like.device) * (high - low) + low


def weights(sizes_n: torch.Tensor, side: int, px: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights [N, P, W] of the ``side`` pixels of a line for each of the ``px`` pixels of the resized line.

    The first ``sizes_n`` pixels of a line (1 to ``side``) are its image's. Bilinear and antialiased as in PyTorch and
    Pillow: a triangle around the pixel's centre, as wide as two pixels of the larger image.
    """
    scale_n = sizes_n.view(-1, 1, 1).float() / px
    support_n = scale_n.clamp(min=1)
    centre_np = (torch.arange(px, device=sizes_n.device).view(1, -1, 1) + 0.5) * scale_n
    # A triangle covers few pixels: computed for all, weights took several times the memory traffic of the products.
    taps = min(side, math.ceil(2 * max(side / px, 1)) + 1)
    first_np = (centre_np - support_n + 0.5).floor().clamp(0, side - taps)
    at_npt = first_np + torch.arange(taps, device=sizes_n.device)
    near_npt = (1 - ((at_npt + 0.5 - centre_np) / support_n).abs()).clamp(min=0) * (at_npt < sizes_n.view(-1, 1, 1))
    share_npt = near_npt / near_npt.sum(2, keepdim=True)
    found = torch.zeros(len(sizes_n), px, side, dtype=dtype, device=sizes_n.device)
    return found.scatter_(2, at_npt.long(), share_npt.to(dtype))


def resized(x_bhwc: torch.Tensor, sizes_b2: torch.Tensor, px: int, dtype: torch.dtype) -> torch.Tensor:
    """Images [B, P, P, C] of 0 to 255, of ``dtype``, from canvases [B, H, W, C], whose images have the heights and
    widths ``sizes_b2``. First all columns are resized, then all rows."""
    batch, side, _, channels = x_bhwc.shape
    down_bph, across_bpw = weights(sizes_b2.t().reshape(-1), side, px, dtype).chunk(2)
    x_bhcw = x_bhwc.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format)
    x_bpcw = torch.bmm(down_bph, x_bhcw.reshape(batch, side, channels * side))
    del x_bhcw  # the largest of all; it need not stay for the second product
    x_bpcp = torch.bmm(x_bpcw.view(batch, px * channels, side), across_bpw.transpose(1, 2))
    return x_bpcp.view(batch, px, channels, px).transpose(2, 3)
