"""Crops of all sizes brought to one size on the device, within the training step: two matrix products for each image.

Shape suffixes: B batch, N axes of images (B heights, then B widths), C channels, H W pixels of a canvas (as many),
P side after resizing, T taps.

A crop lies in the top left corner of its canvas. What else is on the canvas does not matter: its weights are 0.
Shapes depend on the sides alone and nothing waits for the device, so a step with this in it can be recorded.
"""

from __future__ import annotations

import math

import torch


def weights(sizes_n: torch.Tensor, side: int, px: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights [N, P, W] of the pixels of a line of ``side`` for each of ``px`` pixels of the resized one.

    Each line begins with ``sizes_n`` pixels of its image, whole numbers from 1 to ``side``. Bilinear and antialiased as
    PyTorch and Pillow define it: a triangle around the pixel's centre, as wide as two pixels of the larger image.
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
    """Images [B, P, P, C] of 0 to 255, of ``dtype``, from canvases [B, H, W, C] and what each image takes of its own.

    ``sizes_b2`` are heights and widths. First all columns become shorter (or longer), then all rows.
    """
    batch, side, _, channels = x_bhwc.shape
    down_bph, across_bpw = weights(sizes_b2.t().reshape(-1), side, px, dtype).chunk(2)
    x_bhcw = x_bhwc.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format)
    x_bpcw = torch.bmm(down_bph, x_bhcw.reshape(batch, side, channels * side))
    del x_bhcw  # the largest of all; it need not stay for the second product
    x_bpcp = torch.bmm(x_bpcw.view(batch, px * channels, side), across_bpw.transpose(1, 2))
    return x_bpcp.view(batch, px, channels, px).transpose(2, 3)
