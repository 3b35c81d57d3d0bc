"""Models that fail in ways that only the real step shows, through the real engine and profile phase on the CPU.

They are timm models in the process server alone, where a ``sitecustomize`` registers them. A rejection says what
failed, nothing is certified that did not run, and the engine works on.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate
from fitwithin.data import pack_builder
from fitwithin.data.sources.door import open_dataset
from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.local import Local
from fitwithin.machine import CPU
from fitwithin.pipeline import slots
from fitwithin.profiling import candidate_profiler
from fitwithin.profiling.candidate_profiler import CandidateProfiler
from fitwithin.profiling.profile import Profile, Rejection
from simulated.run import measure

pytestmark = pytest.mark.slow

MIB = 2**20
PX = 32
COUNTS = (36, 12, 6)  # train, val, test

#: The recipe's limit: small, so that it is tried first and a sound model takes one probe.
LIMIT = 8

#: More than may be tried first, so that the search has to climb; more than ``bad_large`` takes.
FAR_LIMIT = candidate_profiler.TRY_LIMIT_FIRST + 6

#: What ``bad_large`` takes.
LARGEST = 20

#: One sound network and what can be wrong with it. Only the server's process has any use for importing timm.
MODELS = f"""
import sys

if "fitwithin.worker" in sys.orig_argv:
    import os, signal, time

    import torch
    from timm.models import register_model
    from torch import nn
    from torch.nn import functional as F

    def entry(net):
        "Let timm build the class under its name."
        def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, num_classes=0):
            return net(num_classes)
        build.__name__ = net.__name__
        register_model(build)
        return net

    @entry
    class good(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.conv, self.head, self.steps = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, classes), 0

        def forward(self, x):
            self.steps += self.training
            return self.head(self.spoil(self.conv(x).relu()).mean((2, 3)))

        def spoil(self, x):
            return x

    @entry
    class bad_backward(good):
        def spoil(self, x):
            x = x.exp()
            return x.add_(1) if self.training else x  # overwrites what backward needs

    @entry
    class bad_amp(good):
        def spoil(self, x):
            return x * float(x.detach().numpy().max() < 1e9)  # NumPy has no bfloat16

    @entry
    class bad_alone(good):
        def spoil(self, x):  # a batch norm over one value for each image, as ResNeSt's
            pooled = x.mean((2, 3), keepdim=True)
            return F.batch_norm(pooled, None, None, training=True) if self.training else pooled

    @entry
    class bad_eval(good):
        def spoil(self, x):
            if not self.training:
                raise NotImplementedError("the branches cannot be folded")
            return x

    @entry
    class bad_loss(good):
        def spoil(self, x):
            return x / (self.steps != 2)  # the first update is fine

    @entry
    class bad_pair(good):
        def forward(self, x):  # a second head for distillation
            return (super().forward(x), x) if self.training else super().forward(x)

    @entry
    class bad_head(good):
        def __init__(self, classes):
            super().__init__(1)

    @entry
    class bad_state(good):
        def get_extra_state(self):
            return lambda: 0  # no checkpoint can hold it

        def set_extra_state(self, state):
            pass

    @entry
    class bad_exit(good):
        def spoil(self, x):
            sys.exit("out of patience")

    @entry
    class bad_quit(good):
        def spoil(self, x):
            os._exit(7)

    @entry
    class bad_kill(good):
        def spoil(self, x):
            os.kill(os.getpid(), signal.SIGKILL)  # as Linux does where memory is short

    @entry
    class bad_hang(good):
        def spoil(self, x):
            time.sleep(600)

    @entry
    class bad_large(good):
        def spoil(self, x):
            if len(x) > {LARGEST}:
                raise RuntimeError(f"{{len(x)}} images have too many elements for this kernel")
            return x
"""

#: The bad ones, the precision that shows it, and what the reason has to say.
BAD = {
    "bad_backward": ("fp32", "modified by an inplace operation"),
    "bad_amp": ("amp", "TypeError.* BFloat16"),
    "bad_eval": ("fp32", "NotImplementedError: the branches cannot be folded"),
    "bad_loss": ("fp32", "a loss of (nan|inf) in fp32 within its first"),
    "bad_pair": ("fp32", "TypeError.* tuple"),
    "bad_head": ("fp32", "Target 1 is out of bounds"),
    "bad_state": ("fp32", "pickle"),
    "bad_exit": ("fp32", "SystemExit: out of patience"),
    "bad_quit": ("fp32", "^the worker process ended .*exit code 7"),
    "bad_kill": ("fp32", "^the worker process ended .*SIGKILL"),
}


@dataclass
class Bench:
    """An engine whose server knows the models, and the setting of its jobs."""

    engine: Local
    setting: JobSettings

    def measure(self, *wanted: tuple[str, str], limit: int = LIMIT, jobs: int = 1) -> dict[str, Profile | Rejection]:
        """What comes of each (model, precision) under the recipe's limit, by the candidate's name."""
        candidates = [Candidate(model=model, train_px=PX, precision=precision) for model, precision in wanted]
        setting = replace(self.setting, recipe=replace(self.setting.recipe, max_batch=limit))
        found: list[Profile | Rejection] = []
        if jobs == 1:
            found += measure(candidates, setting, self.engine, n_train=limit)
        else:
            waiting = [
                CandidateProfiler(candidate, setting, self.engine, n_train=limit, on_progress=lambda progress: None)
                for candidate in candidates
            ]
            searched: list[CandidateProfiler] = []

            def search(profiler: CandidateProfiler) -> None:
                rejection = profiler.search(math.inf, alone=False)
                found.append(rejection) if rejection else searched.append(profiler)

            slots.side_by_side(
                self.engine, jobs, lambda _: partial(search, waiting.pop(0)) if waiting else None, lambda _: None
            )
            found += [profiler.time(math.inf) for profiler in searched]
        outcomes = {outcome.candidate.name: outcome for outcome in found}
        assert sorted(outcomes) == sorted(candidate.name for candidate in candidates)
        return outcomes

    def one(self, model: str, precision: str = "fp32", *, limit: int = LIMIT) -> Profile | Rejection:
        (outcome,) = self.measure((model, precision), limit=limit).values()
        return outcome


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A few images of noise, packed, and the server."""
    root = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    for split, count in zip(("train", "val", "test"), COUNTS, strict=True):
        for i in range(count):
            folder = root / "data" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    site = root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(MODELS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITWITHIN_CACHE", str(root / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")  # beside another busy process two threads are far slower than one
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        with Local(CPU, root / "worker.log") as engine:
            packed = pack_builder.build(open_dataset(root / "data"), 48)
            yield Bench(
                engine,
                JobSettings(
                    device=CPU,
                    memory_bytes=600 * MIB,
                    accounting="process",
                    pack=str(packed.folder),
                    classes=2,
                    recipe=recipes.load("paper"),
                    view_sizes=(PX,),
                    seed=0,
                    workers=1,
                ),
            )


def assert_certified(outcome: Profile | Rejection, limit: int = LIMIT) -> Profile:
    """The profile's claim: its batch ran, to the end of a timing, and the next did not or was not to be asked for."""
    assert isinstance(outcome, Profile), outcome
    ran = {probe.batch: probe.passed for probe in outcome.probes}
    assert any(probe.batch == outcome.batch and probe.timing is not None for probe in outcome.probes)
    assert ran[outcome.batch]
    assert outcome.batch == limit or not ran[outcome.batch + 1]
    return outcome


def assert_rejected(outcome: Profile | Rejection, words: str) -> None:
    assert isinstance(outcome, Rejection), outcome
    assert re.search(words, outcome.reason), outcome.reason


@pytest.mark.parametrize("model", BAD)
def test_the_reason_says_what_failed(bench: Bench, model: str) -> None:
    precision, words = BAD[model]
    assert_rejected(bench.one(model, precision), words)


@pytest.mark.parametrize("model", ["bad_eval", "bad_loss", "bad_quit"])
def test_so_it_does_where_the_search_has_to_climb(bench: Bench, model: str) -> None:
    assert_rejected(bench.one(model, limit=FAR_LIMIT), BAD[model][1])


def test_what_fails_under_autocast_alone_is_certified_without(bench: Bench) -> None:
    found = bench.measure(("bad_amp", "amp"), ("bad_amp", "fp32"))
    assert_rejected(found[f"bad_amp-amp-{PX}"], BAD["bad_amp"][1])
    assert_certified(found[f"bad_amp-fp32-{PX}"])


def test_what_cannot_train_on_a_single_image_is_certified(bench: Bench) -> None:
    """At the least batch that is ever asked for."""
    least = candidate_profiler.SMALLEST_BATCH
    assert assert_certified(bench.one("bad_alone", limit=least), least).batch == least


def test_a_batch_that_a_kernel_cannot_take_ends_the_search_as_memory_does(bench: Bench) -> None:
    profile = assert_certified(bench.one("bad_large", limit=FAR_LIMIT), FAR_LIMIT)
    assert profile.batch == LARGEST
    assert f"{LARGEST + 1} images have too many elements" in profile.batch_why


def test_where_such_a_batch_is_tried_first_a_smaller_one_is_certified(bench: Bench) -> None:
    limit = LARGEST + 4
    assert assert_certified(bench.one("bad_large", limit=limit), limit).batch == LARGEST


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        ("bad_state", "largest", "pickle"),
        ("bad_state", "knee", "pickle"),
        ("bad_state", FAR_LIMIT, "pickle"),
        ("bad_large", FAR_LIMIT + 1, f"{FAR_LIMIT + 1} images cannot be divided"),
    ],
)
def test_what_fails_only_when_it_is_timed_is_not_sought_size_by_size(
    bench: Bench, model: str, batch: str | int, words: str
) -> None:
    told: list[str] = []
    (outcome,) = measure(
        [Candidate(model=model, train_px=PX, precision="fp32")],
        replace(bench.setting, recipe=replace(bench.setting.recipe, batch=batch)),
        bench.engine,
        n_train=FAR_LIMIT + 1,
        on_progress=lambda progress: told.append(progress.text),
    )
    assert_rejected(outcome, words)
    assert len([text for text in told if text.endswith(", timed")]) <= 1


def test_a_model_that_hangs_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_profiler, "PROBE_WITHIN_S", 2.0)
    bench.engine.prepare()
    begun_at = time.monotonic()
    assert_rejected(bench.one("bad_hang"), "within 2 s")
    assert time.monotonic() - begun_at < 6


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_engine_works_on_and_nothing_of_the_bad_ones_is_left(bench: Bench, jobs: int) -> None:
    """One after the other, and side by side."""
    wanted = [(model, precision) for model, (precision, _) in BAD.items()]
    found = bench.measure(*wanted, ("good", "fp32"), jobs=jobs)
    assert assert_certified(found.pop(f"good-fp32-{PX}")).batch == LIMIT
    for outcome in found.values():
        assert_rejected(outcome, BAD[outcome.candidate.model][1])
    until_at = time.monotonic() + 5
    while (left := _of_the_engine(bench.engine)) != {bench.engine.server.process.pid} and time.monotonic() < until_at:
        time.sleep(0.05)
    assert left == {bench.engine.server.process.pid}, "a worker or a loader outlived its job"


def _of_the_engine(engine: Local) -> set[int]:
    """The processes of the session that the server leads, its children's children among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        # One that nobody waits for holds nothing any more.
        if int(session) == engine.server.process.pid and state != "Z":
            found.add(int(stat.parent.name))
    return found
