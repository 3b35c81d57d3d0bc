"""A model with its optimizer on a device: one training step, and logits. Probes and trials use the same.

Shape suffixes: B batch, C channels, H W pixels, K classes. Training images on canvases have labels [B, 3] and are
resized in the step (:func:`fitwithin.training.augment.resized`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from fitwithin.candidate import Candidate
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.jobs import JobSettings
from fitwithin.errors import UsageError
from fitwithin.files import write_atomic
from fitwithin.training import augment, optimizer
from fitwithin.training import model as models
from fitwithin.training.cuda_graph import CapturedForward, CapturedStep
from fitwithin.training.distributed import SINGLE_PROCESS, ProcessGroup

#: Steps launched kernel by kernel before one is recorded: kernels are loaded and the optimizer's state made.
UNRECORDED = 1

#: A recorded step's rate in place of 0; no weight above 1e-20 moves at it. Optimizers that can be recorded divide by
#: the rate before they add their epsilon: 0 / 0 where no gradient ever arrived, as at a channel that never fires (timm
#: until 1.0.30; torch, pytorch#126514).
SMALLEST_RATE = 1e-30

#: Every kind of batch norm, timm's with an activation too.
BatchNorm = torch.nn.modules.batchnorm._BatchNorm

#: Seeds of runs are below this, so the seeds of processes that train together are no other run's.
SEEDS = 2**31


class Learner:
    """A candidate's model, its optimizer and, under float16, its loss scaler.

    With ``cuda_graph`` on a GPU, its step or its pass without gradients, whichever is in use, is recorded as a CUDA
    graph (:class:`~.cuda_graph.CapturedStep`) once it has run. An update's gradient is accumulated over ``accum_steps``
    parts of its batch, and averaged over the ``team`` of processes that train together.
    """

    def __init__(
        self,
        setting: JobSettings,
        candidate: Candidate,
        device: Cpu | Cuda,
        *,
        cuda_graph: bool = False,
        accum_steps: int = 1,
        team: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        torch.manual_seed(setting.seed)
        self.device = device
        self.accum_steps = accum_steps
        self.team = team
        self.amp_dtype = models.amp_dtype(candidate.precision, device.amp_dtype)
        if candidate.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        self._format = torch.channels_last if candidate.layout == "channels_last" else device.memory_format
        stages = setting.recipe.stages(candidate.train_px)
        sizes = (candidate.train_px, *setting.view_sizes, *(px for _, px in stages))
        net, self.arguments = models.build(candidate, setting.classes, sizes)
        #: Buffers that are not finite by design: gemma4_vit clamps to bounds that are infinite at first.
        self._nonfinite_buffers = {name for name, value in net.named_buffers() if not torch.isfinite(value).all()}
        self.net = net.to(device.torch_device, memory_format=self._format)  # type: ignore[call-overload]
        self.parameters = models.parameters(net)
        frozen = setting.recipe.freeze_norms
        self._frozen_norms = [each for each in net.modules() if frozen and isinstance(each, BatchNorm)]
        self._train()
        team.broadcast_weights(self.net)
        if team.rank:  # equal weights, but dropout and augmentation of its own
            torch.manual_seed(setting.seed + team.rank * SEEDS)
        self._recorder = device if cuda_graph and isinstance(device, Cuda) else None
        self.optimizer = optimizer.make(
            setting.recipe,
            self.net,
            0.0 if self._recorder is None else torch.zeros((), device=device.torch_device),
            fused=device.kind == "cuda",
            capturable=self._recorder is not None,
        )
        self._own_rates()
        self._setting = setting
        self._recipe = setting.recipe
        self._classes = setting.classes
        weighs = setting.class_weights and not setting.balanced
        self._class_weights = torch.tensor(setting.class_weights, device=device.torch_device) if weighs else None
        #: The side to which images on canvases are resized.
        self.px = candidate.train_px
        # float16 resolves 0 to 255 to an eighth; bfloat16 only to a whole.
        half = device.kind == "cuda" and self.amp_dtype is not None
        self._pixel_dtype = torch.float16 if half else torch.float32
        self.scaler = torch.amp.GradScaler(device.kind, enabled=self.amp_dtype == torch.float16)
        weights = setting.weights_of(candidate)
        #: The channels' means and deviations by which pixels are normalised.
        self.mean, self.std = (weights.mean, weights.std) if weights else (models.MEAN, models.STD)
        self._normalise = models.Normalise(self.mean, self.std, device.torch_device, self._format)
        self._graph: CapturedStep | None = None
        self._pass: CapturedForward | None = None
        #: The shape of the images of the last pass that was launched kernel by kernel.
        self._passed: torch.Size | None = None
        # The last step's shapes, and how many steps in a row had them.
        self._last_shape: tuple[tuple[torch.Size, torch.Size, int] | None, int] = (None, 0)
        #: Seconds of the last recording of the step.
        self.capture_s = 0.0

    def loader_args(self, px: int) -> dict[str, Any]:
        """Train on images of ``px`` from here on; the arguments of TrainBatches."""
        self.px = px
        return {
            "recipe": self._recipe,
            "px": px,
            "seed": self._setting.seed,
            "canvas_px": self._setting.canvas_px,
            "rank": self.team.rank,
            "ranks": self.team.size,
            "balanced": self._setting.balanced,
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision where the candidate asks for it."""
        return torch.autocast(self.device.kind, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def images(self, x_bhwc: torch.Tensor, color_jitter: float = 0.0) -> torch.Tensor:
        """[B, H, W, 3] of 0 to 255, as normalised floats [B, 3, H, W] on the device."""
        x_bchw = self._normalise.floats(x_bhwc)
        if color_jitter:
            x_bchw = augment.color_jitter(x_bchw, color_jitter)
        return self._normalise(x_bchw)

    def _augmented(self, x_bhwc: torch.Tensor, y_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, 3, H, W] by the recipe, and their targets: classes [B], or shares of them [B, K]."""
        recipe = self._recipe
        if y_b.ndim == 2:
            x_bhwc = augment.resized(x_bhwc, y_b[:, 1:], self.px, self._pixel_dtype)
            y_b = y_b[:, 0]
        if recipe.flip:
            x_bhwc = augment.horizontal_flip(x_bhwc, recipe.flip)
        x_bchw = self.images(x_bhwc, recipe.color_jitter)
        if recipe.cutmix:
            return augment.cutmix(x_bchw, y_b, self._classes, recipe.cutmix)
        return x_bchw, y_b

    def step(self, x_bhwc: torch.Tensor, y_b: torch.Tensor, lr: float) -> torch.Tensor:
        """One update at learning rate ``lr``; returns the batch's mean cross-entropy, not waited for.

        Raises:
            CaptureError: with ``cuda_graph``, the step cannot be recorded.
        """
        if not self.net.training:
            self._train()
        if self._pass is not None:
            self.release()
        self._set_rate(lr)
        before, runs = self._last_shape
        if before != (now := (x_bhwc.shape, y_b.shape, self.px)):
            self.release()
            runs = 0
        self._last_shape = (now, runs + 1)
        if self._recorder is not None and self._graph is None and runs >= UNRECORDED:
            self._graph = CapturedStep(self._update, (x_bhwc, y_b), self._recorder)
            self.capture_s = self._graph.wall_s
        if self._graph is not None:
            return self._graph.replay(x_bhwc, y_b)
        with warnings.catch_warnings():  # that it runs before it is recorded is as it should be
            warnings.filterwarnings("ignore", message=".*capturable=True.*")
            return self._update(x_bhwc, y_b, lambda: None)

    def _train(self) -> None:
        """Training mode, but for norms that keep their statistics."""
        self.net.train()
        for norm in self._frozen_norms:
            norm.eval()

    def _own_rates(self) -> None:
        """Give each group of parameters a rate of its own: a tensor for a recorded step, else a plain number."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if self._recorder is None else torch.zeros((), device=self.device.torch_device)
            group["capturable"] = self._recorder is not None

    def _loss(self, logits_bk: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy, of images that count by their classes if those have weights."""
        smoothing = self._recipe.label_smoothing
        if self._class_weights is None:
            return F.cross_entropy(logits_bk, target, label_smoothing=smoothing)
        summed = F.cross_entropy(
            logits_bk, target, weight=self._class_weights, label_smoothing=smoothing, reduction="sum"
        )
        return summed / len(target)

    def _set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            own = lr * group.get("lr_scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(max(own, SMALLEST_RATE))
            else:
                group["lr"] = own

    def _update(self, x_bhwc: torch.Tensor, y_b: torch.Tensor, on_inputs_read: Callable[[], None]) -> torch.Tensor:
        """One update; ``on_inputs_read`` is called when the images are no longer needed."""
        x_bhwc = x_bhwc.to(self.device.torch_device, non_blocking=True)
        y_b = y_b.to(self.device.torch_device, non_blocking=True)
        losses: list[torch.Tensor] = []
        for x_part, y_part in zip(x_bhwc.chunk(self.accum_steps), y_b.chunk(self.accum_steps), strict=True):
            x_bchw, target = self._augmented(x_part, y_part)
            if len(losses) == self.accum_steps - 1:
                on_inputs_read()
            with self.autocast():
                loss = self._loss(self.net(x_bchw), target)
            del x_bchw  # it need not stay while the weights are updated
            loss = loss / self.accum_steps
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        whole = losses[0] if self.accum_steps == 1 else torch.stack(losses).sum()
        whole = self.team.average(whole, self.net.parameters())
        if self._recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self._recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return whole

    def release(self) -> None:
        """Drop the recording and its memory; the next step is recorded anew."""
        if self._graph is not None or self._pass is not None:
            self.device.synchronize()
            self._graph = self._pass = None
            self.device.empty_cache()

    def logits(self, x_bhwc: torch.Tensor, *, flip: bool = False, eager: bool = False) -> torch.Tensor:
        """Float32 logits [B, K] on the device, of the images or of their mirror images; ``eager``: without recording,
        as where the model is used.

        Raises:
            CaptureError: with ``cuda_graph``, the pass cannot be recorded.
        """
        if self._graph is not None or eager:
            self.release()
        if self.net.training:
            self.net.eval()
        with torch.inference_mode(), self.autocast():
            x_bchw = self.images(x_bhwc)
            if flip:
                x_bchw = x_bchw.flip(3).contiguous(memory_format=self._format)
            return self._forward(x_bchw, None if eager else self._recorder).float()

    def _forward(self, x_bchw: torch.Tensor, recorder: Cuda | None) -> torch.Tensor:
        """The net's logits: recorded, if there is a ``recorder``, from the second pass of a shape on."""
        if self._pass is None or recorder is None or self._pass.shape != x_bchw.shape:
            before, self._passed = self._passed, x_bchw.shape
            if recorder is None or before != x_bchw.shape:
                self.release()
                found: torch.Tensor = self.net(x_bchw)
                return found
            self._pass = CapturedForward(self.net, x_bchw, recorder)
        return self._pass.replay(x_bchw)

    def finite(self) -> bool:
        """Whether all weights and statistics are finite, but for those that never were; waits for the device."""
        named = self.net.state_dict().items()
        judged = [value for name, value in named if name not in self._nonfinite_buffers]
        values = [value for value in judged if value.is_floating_point() and value.numel()]
        with torch.no_grad():  # a norm needs no memory to speak of, unlike isfinite: the cap may be near
            largest = torch.stack([torch.linalg.vector_norm(value, math.inf) for value in values])
            return bool(torch.isfinite(largest).all())

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if nothing had happened.

        Processes that train together call it together. The first one's answer has every generator's state; the others
        take over its batch norm's statistics.
        """
        self.team.broadcast_weights(self.net)
        rng = {"cpu": torch.get_rng_state()}
        if self.device.kind == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device.torch_device)
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": self.team.gather(rng),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.release()  # it works on the optimizer's earlier state
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._own_rates()
        self.scaler.load_state_dict(state["scaler"])
        rng = state["rng"][self.team.rank]
        torch.set_rng_state(rng["cpu"].cpu())
        if "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"].cpu(), self.device.torch_device)


def check_finite(candidate: Candidate, losses: list[torch.Tensor]) -> None:
    """UsageError unless the losses of the very first updates are finite."""
    found = [float(loss) for loss in losses]
    wrong = [loss for loss in found if not math.isfinite(loss)]
    if wrong:  # the last one may be finite again: float16's scaler leaves the update out
        raise UsageError(
            f"{candidate.model} computes a loss of {wrong[0]} in {candidate.precision} within its first "
            f"{len(found)} updates; another precision may do"
        )


def write_checkpoint(path: Path, learner: Learner, facts: dict[str, Any]) -> None:
    """Write a checkpoint; an older one stays whole until replaced. Processes that train together call it together; the
    first one writes."""
    state = learner.state()
    if learner.team.is_main:
        write_atomic(path, lambda new: torch.save({"learner": state, "facts": facts}, new), fsync=True)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at ``path``, None if there is none. Tensors and plain values only: nothing in it can run."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
