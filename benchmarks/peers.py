"""The largest batch by another library's finder, in this process, under the same cap: one line of JSON.

    python benchmarks/peers.py lightning|accelerate MODEL PRECISION PX --memory 6442450944

Lightning: BatchSizeFinder's `binsearch` with its defaults (steps_per_trial=3, margin 5 %). accelerate:
find_executable_batch_size from 2048 downwards, three steps a run. Both get what favours them: images that are there
already, AdamW, no evaluation, the allocator's growing segments; neither the imports nor the start of CUDA are timed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import timm
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from fitwithin.engine.cuda import Cuda

STEPS, START, CLASSES = 3, 2048, 10


def build(model: str) -> torch.nn.Module:
    """The model, as fitwithin builds it."""
    return timm.create_model(model, num_classes=CLASSES)


def normalised(x_bhwc: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] as floats [B, 3, H, W]."""
    return x_bhwc.permute(0, 3, 1, 2).float().div_(255).contiguous()


def lightning(model: str, precision: str, px: int) -> dict[str, Any]:
    """Lightning's finder."""
    import lightning as light
    from lightning.pytorch.tuner import Tuner

    trials = 0

    class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __init__(self) -> None:
            self.x_hwc = torch.randint(0, 256, (px, px, 3), dtype=torch.uint8)

        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.x_hwc, index % CLASSES

    class Module(light.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2
            self.net = build(model)

        def on_train_start(self) -> None:
            nonlocal trials
            trials += 1

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
            del number
            return F.cross_entropy(self.net(normalised(batch[0])), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

        def train_dataloader(self) -> torch.utils.data.DataLoader[tuple[torch.Tensor, int]]:
            return torch.utils.data.DataLoader(Images(), batch_size=self.batch_size, drop_last=True)

    trainer = light.Trainer(
        accelerator="gpu",
        devices=1,
        precision="16-mixed" if precision == "amp" else "32-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    begun_at = time.monotonic()
    batch = Tuner(trainer).scale_batch_size(module, mode="binsearch")
    return {"batch": batch, "trials": trials, "wall_s": time.monotonic() - begun_at, "version": light.__version__}


def accelerate(model: str, precision: str, px: int) -> dict[str, Any]:
    """accelerate's decorator."""
    import accelerate as library
    from accelerate.utils import find_executable_batch_size

    trials = 0

    def train(batch_size: int) -> int:
        nonlocal trials
        trials += 1
        net = build(model).cuda().train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
        scaler = torch.amp.GradScaler("cuda", enabled=precision == "amp")
        x_bhwc = torch.randint(0, 256, (batch_size, px, px, 3), dtype=torch.uint8)
        y_b = torch.randint(0, CLASSES, (batch_size,))
        for _ in range(STEPS):
            with torch.autocast("cuda", torch.float16, enabled=precision == "amp"):
                loss = F.cross_entropy(net(normalised(x_bhwc.cuda())), y_b.cuda())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return batch_size

    begun_at = time.monotonic()
    batch = find_executable_batch_size(train, starting_batch_size=START)()
    return {"batch": batch, "trials": trials, "wall_s": time.monotonic() - begun_at, "version": library.__version__}


def main() -> None:
    """Set the cap, run the finder, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("lightning", "accelerate"))
    parser.add_argument("model")
    parser.add_argument("precision", choices=("amp", "fp32"))
    parser.add_argument("px", type=int)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--index", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = Cuda(arguments.index)
    device.set_memory_cap(arguments.memory, "process")
    find = lightning if arguments.peer == "lightning" else accelerate
    found = find(arguments.model, arguments.precision, arguments.px)
    print(json.dumps({**found, "peak_bytes": device.peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
