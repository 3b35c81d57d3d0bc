"""A law in place of hardware: how long jobs take, how well backbones learn, and what goes wrong. Pure."""

# N images, K classes

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fitwithin.candidate import Candidate, View

if TYPE_CHECKING:
    from fitwithin.data.dataset import Floats


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the jobs that are running ``at_s`` seconds after the engine's start, once.

    A job that ``died`` is gone without an answer, one that ``hang``s goes on for ever, one of ``memory`` hits the cap.
    """

    at_s: float
    kind: Literal["died", "hang", "memory"]


@dataclass(frozen=True, kw_only=True)
class SimulatedMachine:
    """A machine and its backbones in figures; override a method for a law of another shape. Pure functions of ``seed``.

    Backbones differ by :meth:`weight`; the figures are those of a backbone of weight 1 at 160 px. A job takes
    ``fixed_bytes`` plus ``image_bytes`` per image, batches rounded up to a multiple of ``memory_stairs``; a wave over
    the batch (``memory_wave``, relative) makes memory fall here and there, noise (``memory_noise``) differs from job
    to job. A step takes the longer of the device's time (``step_fixed_s`` plus ``image_s`` per image) and the loader's
    (``loader_image_s`` per image), give or take ``pace_noise``.

    From each ``(at_s, factor)`` of ``drifts`` on everything takes ``factor`` times as long; at each ``(at_s, lost_s)``
    of ``stalls`` the machine stands still; ``troubles`` end jobs. All instants count from the engine's start.
    """

    seed: int = 0
    fixed_bytes: float = 300e6
    image_bytes: float = 10e6
    memory_stairs: int = 1
    memory_wave: float = 0.0
    memory_noise: float = 0.0
    step_fixed_s: float = 0.005
    image_s: float = 1e-3
    loader_image_s: float = 1e-4
    pace_noise: float = 0.0
    eval_share: float = 1 / 3
    eval_first_s: float = 0.1
    startup_s: float = 1.0
    warmup_s: float = 0.5
    save_s: float = 0.05
    change_s: float = 0.2
    ceiling: float = 0.9
    half_epochs: float = 8.0
    size_gain: float = 0.02
    #: What linear probes gain by a fit of pictures to a square input, where it is not ``crop``.
    fit_gains: tuple[tuple[str, float], ...] = ()
    drifts: tuple[tuple[float, float], ...] = ()
    stalls: tuple[tuple[float, float], ...] = ()
    troubles: tuple[Fault, ...] = ()

    def draw(self, *key: Any) -> float:
        """A number in [0, 1) that the seed and the key decide."""
        digest = blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def weight(self, candidate: Candidate) -> float:
        """How heavy a backbone is, from 0.5 to 2."""
        return float(2.0 ** (2 * self.draw("weight", candidate.model) - 1))

    def parameters(self, candidate: Candidate) -> int:
        """Learnable parameters."""
        return int(1e7 * self.weight(candidate))

    def _work(self, candidate: Candidate, px: int) -> float:
        return self.weight(candidate) * (px / 160) ** 2 * (1.0 if candidate.precision.startswith("amp") else 1.6)

    def memory_bytes(self, candidate: Candidate, batch: int, job: int = 0) -> int:
        """Peak bytes of the ``job``-th job at that batch."""
        rounded = -(-batch // self.memory_stairs) * self.memory_stairs
        bare = self.fixed_bytes + rounded * self.image_bytes * self._work(candidate, candidate.train_px)
        wave = 1 + self.memory_wave * float(np.sin(2.4 * batch))
        noise = 1 + self.memory_noise * (2 * self.draw("memory", job) - 1)
        return int(bare * wave * noise)

    def pass_bytes(self, px: int) -> int:
        """The bytes of an image in a forward pass."""
        return 200 * px**2

    def device_s(self, candidate: Candidate, batch: int) -> float:
        """Seconds of a step with a batch already there."""
        return self.step_fixed_s + batch * self.image_s * self._work(candidate, candidate.train_px)

    def loader_s(self, batch: int) -> float:
        """Seconds in which the loader makes a batch."""
        return batch * self.loader_image_s

    def step_s(self, candidate: Candidate, batch: int) -> float:
        """Seconds of a training step with the real loader."""
        return max(self.device_s(candidate, batch), self.loader_s(batch))

    def eval_image_s(self, candidate: Candidate, px: int) -> float:
        """Seconds per image of evaluation at ``px`` with the real loader."""
        return max(self.image_s * self.eval_share * self._work(candidate, px), self.loader_image_s)

    def accuracy(self, candidate: Candidate, epochs: float, lr_factor: float, classes: int) -> float:
        """Share of images right at the training size: saturating in epochs, and better the lower the rate has come."""
        chance = 1 / classes
        best = self.ceiling - 0.05 * self.draw("ceiling", candidate.name)
        learnt = 1 - float(2.0 ** (-epochs / (self.half_epochs * self.weight(candidate))))
        return chance + max(0.0, best - chance) * learnt * (1 - 0.2 * lr_factor)

    def slowdown(self, at_s: float) -> float:
        """How many times as long everything takes ``at_s`` seconds after the start."""
        return next((factor for since_s, factor in sorted(self.drifts, reverse=True) if since_s <= at_s), 1.0)

    def logits(
        self, truth_N: npt.NDArray[np.int64], classes: int, *, accuracy: float, train_px: int, split: str, view: View
    ) -> Floats:
        """Logits [N, K] of a model that has ``accuracy`` at ``train_px``; exactly the law's share of rows is right.

        An image is about as easy under one view as under another; where it is easy the logits are sure. The truth of
        unlabelled images (-1) is drawn.
        """
        n = len(truth_N)
        rng = np.random.default_rng([self.seed, len(split), n])
        truth_N = np.where(truth_N < 0, rng.integers(0, classes, n), truth_N)
        other_N = (truth_N + rng.integers(1, classes, n)) % classes
        ease_N = rng.random(n) + 0.1 * np.random.default_rng([self.seed, view.px, view.flip]).random(n)
        rank_N = np.argsort(np.argsort(-ease_N, kind="stable"), kind="stable")
        share = accuracy + self.size_gain * float(np.log2(view.px / train_px))
        n_right = round(min(1.0, max(0.0, share)) * n)
        logits_NK = np.zeros((n, classes), dtype=np.float32)
        seen_N = np.where(rank_N < n_right, truth_N, other_N)
        logits_NK[np.arange(n), seen_N] = 1 + 3 * np.abs(rank_N - n_right + 0.5) / max(n, 1)
        return logits_NK
