"""What one writes by hand around timm, for a given time: train, then measure the test split. Prints one line of JSON.

    python benchmarks/plain_loop.py resnet50 --data DATA --within 90

timm's loaders over the files (random resized crops and flips), AMP in float16 (bfloat16 on a CPU), channels_last, fused
AdamW at 1e-3, a cosine over the time that is left after the start; 5 % of the time are kept for the test. Trained at
160 px, tested at 224 px. With ``--weights`` it fine-tunes: it starts from that file, whose names are timm's, with the
weights' own means, deviations and size.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import add_img_extensions, create_dataset, create_loader
from torch.nn import functional as F  # noqa: N812 - the field's name for it

#: The share of the time that is kept for the test.
TEST_SHARE = 0.05

RATE = 1e-3


def main() -> None:
    """Train, test, print."""
    began_at = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--within", type=float, required=True, help="seconds, from the start of the process")
    parser.add_argument("--weights", type=Path, help="fine-tune from this file of timm's names")
    parser.add_argument("--lr", type=float, default=RATE)
    parser.add_argument("--px", type=int)
    parser.add_argument("--test-px", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    add_img_extensions(".webp")  # Pillow reads it; timm does not look for it
    own = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(arguments.model).to_dict())
    tuned = arguments.weights is not None
    arguments.px = arguments.px or (own["input_size"][-1] if tuned else 160)
    arguments.test_px = arguments.test_px or (own["input_size"][-1] if tuned else 224)
    arguments.means = {"mean": own["mean"], "std": own["std"]} if tuned else {}
    images, loader = loader_of(arguments, "train", arguments.px, device)
    classes = len({label for _, label in images.reader.samples})
    net = timm.create_model(arguments.model, num_classes=classes, **start_of(arguments))
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=arguments.lr, fused=device.type == "cuda")
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    first_at, ends_at, steps = time.monotonic(), began_at + (1 - TEST_SHARE) * arguments.within, 0
    while time.monotonic() < ends_at:
        for x_bchw, y_b in loader:
            now = time.monotonic()
            if now >= ends_at:
                break
            for group in optimizer.param_groups:
                group["lr"] = arguments.lr * (1 + math.cos(math.pi * (now - first_at) / (ends_at - first_at))) / 2
            x_bchw = x_bchw.to(device, memory_format=torch.channels_last, non_blocking=True)
            with torch.autocast(device.type, half):
                loss = F.cross_entropy(net(x_bchw), y_b.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            steps += 1
    found = {"test": tested(net, arguments, device, half), "epochs": steps * arguments.batch / len(images)}
    print(json.dumps({**found, "wall_s": time.monotonic() - began_at, "timm": timm.__version__}), flush=True)


def start_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What timm needs to start from a file of weights; nothing without one."""
    if arguments.weights is None:
        return {}
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(arguments.weights)}}


def loader_of(arguments: argparse.Namespace, split: str, px: int, device: torch.device) -> tuple[Any, Any]:
    """The images of a split, and timm's loader of them."""
    training = split == "train"
    images = create_dataset("", root=str(arguments.data), split=split, is_training=training)
    loader = create_loader(
        images,
        input_size=(3, px, px),
        batch_size=arguments.batch,
        is_training=training,
        use_prefetcher=device.type == "cuda",
        auto_augment=None,
        color_jitter=None,
        **arguments.means,
        num_workers=arguments.workers,
        persistent_workers=training and arguments.workers > 0,
        device=device,
    )
    return images, loader


@torch.inference_mode()
def tested(net: torch.nn.Module, arguments: argparse.Namespace, device: torch.device, half: torch.dtype) -> float:
    """The share of the test images that are right."""
    net.eval()
    images, loader = loader_of(arguments, "test", arguments.test_px, device)
    correct = torch.zeros((), device=device)
    for x_bchw, y_b in loader:
        with torch.autocast(device.type, half):
            scores_bk = net(x_bchw.to(device, memory_format=torch.channels_last))
        correct += (scores_bk.argmax(1) == y_b.to(device)).sum()
    return float(correct) / len(images)


if __name__ == "__main__":
    main()
