"""A plain training loop around timm: what one writes without fitwithin. Prints its images/s as one line of JSON.

    python benchmarks/timm_loop.py MODEL --data DATA --px 160 --batch 128 --workers 4 --seconds 8

timm's own loader over the JPEG files (random resized crops and flips, its prefetcher on CUDA, persistent workers), AMP
in float16, channels_last, fused AdamW, no waiting in the loop.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import timm
import torch
from timm.data import create_dataset, create_loader
from torch.nn import functional as F  # noqa: N812 - the field's name for it

#: Steps before anything is measured, and between two readings of the clock.
WARM, WINDOW = 20, 10

#: Windows that are measured in any case.
LEAST = 3


def main() -> None:
    """Train for a while, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--px", type=int, default=160)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    images = create_dataset("", root=str(arguments.data), split="train", is_training=True)
    loader = create_loader(
        images,
        input_size=(3, arguments.px, arguments.px),
        batch_size=arguments.batch,
        is_training=True,
        use_prefetcher=on_gpu,
        auto_augment=None,
        color_jitter=None,
        num_workers=arguments.workers,
        persistent_workers=True,
        device=device,
    )
    classes = len({label for _, label in images.reader.samples})
    net = timm.create_model(arguments.model, num_classes=classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=on_gpu)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    rates: list[float] = []
    step, marked_at, ends_at = 0, 0.0, float("inf")
    while len(rates) < LEAST or time.monotonic() < ends_at:
        for x_bchw, y_b in loader:
            x_bchw = x_bchw.to(device, memory_format=torch.channels_last, non_blocking=True)
            with torch.autocast(device.type, torch.float16 if on_gpu else torch.bfloat16):
                loss = F.cross_entropy(net(x_bchw), y_b.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step += 1
            if step < WARM or (step - WARM) % WINDOW:
                continue
            if on_gpu:
                torch.cuda.synchronize()
            now = time.monotonic()
            if step == WARM:
                ends_at = now + arguments.seconds
            else:
                rates.append(WINDOW * arguments.batch / (now - marked_at))
            marked_at = now
            if len(rates) >= LEAST and now >= ends_at:
                break
    told = {"images_per_s": median(rates), "least": min(rates), "most": max(rates), "windows": len(rates)}
    print(json.dumps({**told, "timm": timm.__version__}), flush=True)


if __name__ == "__main__":
    main()
