"""The CUDA device: what must hold on a real GPU. Each test works in fresh processes, as a run does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwithin import recipe
from fitwithin.candidate import Candidate, View, grid
from fitwithin.data.pack import Pack
from fitwithin.engine.jobs import CompareJob, EvaluateJob, Job, JobSettings, ProbeJob, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import CompareResult, EvalResult, Failure, Probe, TrainResult
from fitwithin.errors import DeviceError
from fitwithin.machine import DeviceName, cuda_count
from fitwithin.recipe import OPTIMIZERS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_count() == 0, reason="no CUDA device on this machine"),
]

GIB = 2**30


def setting(images: Pack, *, memory: int = 3 * GIB, accounting: str = "process") -> JobSettings:
    return JobSettings(
        device=DeviceName(kind="cuda"),
        memory_bytes=memory,
        accounting=accounting,
        pack=str(images.folder),
        classes=3,
        recipe=recipe.load("paper"),
        view_sizes=(64, 72),
        seed=0,
        workers=4,
        canvas_px=72,  # images are stored at 72 x 81 px: some crops fit, some do not
    )


def candidate(precision: str = "amp") -> Candidate:
    return Candidate(model="resnet18", train_px=64, precision=precision)


def do(engine: Local, job: Job, within_s: float = 120.0) -> object:
    return engine.run(job, until_at=time.monotonic() + within_s, on_progress=lambda progress: None)


def test_the_facts_of_the_machine_name_the_driver(engine: Local) -> None:
    facts = engine.describe()
    assert facts["driver"]
    assert facts["total_bytes"] > GIB


@pytest.mark.parametrize("precision", ["amp", "fp32"])
def test_a_small_batch_passes_within_the_cap_by_the_drivers_count(engine: Local, images: Pack, precision: str) -> None:
    job = ProbeJob(setting=setting(images), candidate=candidate(precision), batch=8, timed=True)
    probe = do(engine, job)
    assert isinstance(probe, Probe)
    assert probe.passed, probe.reason
    assert probe.peak_bytes is not None
    # The context alone takes hundreds of MiB: a count below 200 MiB would have left it out.
    assert 200 * 2**20 < probe.peak_bytes <= 3 * GIB
    assert probe.timing is not None
    assert 0 < probe.timing.dummy_step_s < 1


def test_progressive_sizes_are_timed_on_canvases_and_without(engine: Local, images: Pack) -> None:
    for canvas_px in (72, None):
        asked = replace(setting(images), recipe=recipe.load("fast"), canvas_px=canvas_px)
        sizes = [px for _, px in asked.recipe.stages(64)]
        probe = do(engine, ProbeJob(setting=asked, candidate=candidate("amp-bf16"), batch=24, timed=True, rates=True))
        assert isinstance(probe, Probe), probe
        assert probe.passed, probe.reason
        assert probe.timing is not None
        assert len(sizes) == 3
        assert list(probe.timing.stage_step_s) == sizes[:-1]
        assert probe.timing.capture_s > 0
        assert 0 < probe.timing.loader_step_s < 1
        assert len(probe.timing.rates) > 1, "smaller batches are tried on canvases as well"


def test_process_accounting_counts_more_than_the_allocator(engine: Local, images: Pack) -> None:
    peaks = {}
    for accounting in ("process", "allocator"):
        probe = do(engine, ProbeJob(setting=setting(images, accounting=accounting), candidate=candidate(), batch=8))
        assert isinstance(probe, Probe)
        assert probe.peak_bytes is not None
        peaks[accounting] = probe.peak_bytes
    assert peaks["process"] > peaks["allocator"] + 100 * 2**20


def test_a_batch_too_large_for_the_cap_fails_with_a_reason(engine: Local, images: Pack) -> None:
    probe = do(engine, ProbeJob(setting=setting(images, memory=GIB), candidate=candidate("fp32"), batch=2048))
    assert isinstance(probe, Probe)
    assert not probe.passed
    assert not probe.fatal
    assert "memory" in probe.reason


def test_a_cap_below_the_context_says_what_would_do(engine: Local, images: Pack) -> None:
    answer = do(engine, ProbeJob(setting=setting(images, memory=64 * 2**20), candidate=candidate(), batch=2))
    assert isinstance(answer, Failure)
    assert answer.kind == "memory"
    assert "at least" in answer.reason


def test_a_turn_keeps_the_cap_and_leaves_a_model_that_evaluates(engine: Local, images: Pack, tmp_path: Path) -> None:
    job = TrainJob(
        setting=setting(images, memory=2 * GIB),
        candidate=candidate(),
        batch=48,
        steps=60,
        folder=str(tmp_path),
        until_at=time.monotonic() + 60,
        step_s=0.05,
        validation_s=0.5,
        save_s=0.3,
        checkpoint_every_s=30,
    )
    trained = do(engine, job)
    assert isinstance(trained, TrainResult), trained
    assert trained.peak_bytes <= 2 * GIB
    assert trained.best is not None
    evaluated = do(
        engine,
        EvaluateJob(
            setting=setting(images, memory=2 * GIB),
            candidate=candidate(),
            batch=48,
            folder=str(tmp_path),
            views=(View(px=64, flip=False), View(px=72, flip=True)),
            splits=("val", "test"),
            until_at=time.monotonic() + 60,
        ),
    )
    assert isinstance(evaluated, EvalResult), evaluated
    assert len(evaluated.done) == 4
    assert evaluated.peak_bytes <= 2 * GIB


def test_an_interrupted_turn_goes_on_from_its_checkpoint(engine: Local, images: Pack, tmp_path: Path) -> None:
    def job(within_s: float) -> TrainJob:
        return TrainJob(
            setting=setting(images),
            candidate=candidate(),
            batch=32,
            steps=20_000,
            folder=str(tmp_path),
            until_at=time.monotonic() + 300,
            step_s=0.002,
            validation_s=0.5,
            save_s=0.3,
            checkpoint_every_s=0.5,
            frozen=True,
        )

    first = do(engine, job(300), within_s=9)
    assert isinstance(first, Failure)
    assert first.kind == "deadline"
    assert (tmp_path / "checkpoint.pt").is_file()
    steps: list[int] = []
    engine.run(job(300), until_at=time.monotonic() + 12, on_progress=lambda progress: steps.append(progress.step))
    assert steps
    assert steps[0] > 20  # not from the beginning


def free_bytes() -> int:
    """Of the first device that is visible: the tests' own."""
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={which}"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) * 2**20


def test_a_small_card_is_emulated_inside_a_big_one(images: Pack) -> None:
    before = free_bytes()
    with Local(DeviceName(kind="cuda"), emulate_bytes=4 * GIB) as small:
        small.prepare()
        assert abs(free_bytes() - 4 * GIB) < 64 * 2**20
        assert small.describe()["emulated_bytes"] == 4 * GIB
        assert small.max_parallel(8, 3 * GIB) == 1
        probe = do(small, ProbeJob(setting=setting(images), candidate=candidate(), batch=8, timed=True))
        assert isinstance(probe, Probe)
        assert probe.passed, probe.reason
        assert probe.timing is not None
        assert probe.timing.num_other_processes == 0, "what holds the memory belongs to the run"
    deadline = time.monotonic() + 10
    while free_bytes() < before - 64 * 2**20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free_bytes() >= before - 64 * 2**20


def test_a_card_larger_than_what_is_free_cannot_be_emulated() -> None:
    card = DeviceName(kind="cuda")
    with Local(card, emulate_bytes=10_000 * GIB) as local, pytest.raises(DeviceError, match="can be emulated"):
        local.prepare()


def test_precisions_and_layouts_are_compared_in_one_process(engine: Local, images: Pack) -> None:
    variants = grid(["resnet18"], ["amp", "amp-bf16", "fp32", "tf32"], [64], ["nchw", "channels_last"])
    screened = do(engine, CompareJob(setting=setting(images), candidates=tuple(variants)))
    assert isinstance(screened, CompareResult), screened
    assert set(screened.paces) == {variant.name for variant in variants}
    for pace in screened.paces.values():
        assert pace.batch == 64
        assert 0 < pace.error_s < pace.step_s < 0.1


def test_where_time_is_short_backbones_are_compared_in_one_process_and_no_kernels_are_built(
    engine: Local, images: Pack
) -> None:
    variants = grid(["resnet18", "mobilenetv3_small_050"], ["amp-bf16"], [64], ["nchw", "channels_last"])
    screened = do(engine, CompareJob(setting=setting(images), candidates=tuple(variants), quick=True))
    assert isinstance(screened, CompareResult), screened
    assert {variant.name for variant in variants} - set(screened.paces) == {
        "mobilenetv3_small_050-amp-bf16-64-channels_last"
    }
    assert all(pace.first_s < 5 for pace in screened.paces.values())


def test_an_update_in_parts_needs_less_memory(engine: Local, images: Pack) -> None:
    peaks = {}
    for accum_steps in (1, 4):
        probe = do(
            engine, ProbeJob(setting=setting(images), candidate=candidate("fp32"), batch=256, accum_steps=accum_steps)
        )
        assert isinstance(probe, Probe)
        assert probe.passed, probe.reason
        assert probe.peak_bytes is not None
        peaks[accum_steps] = probe.peak_bytes
    assert peaks[4] < peaks[1] - 200 * 2**20


LEARNERS = """
import json, sys, warnings
from dataclasses import replace
import torch
from fitwithin import recipe
from fitwithin.candidate import Candidate
from fitwithin.engine.cuda import Cuda
from fitwithin.engine.jobs import JobSettings
from fitwithin.errors import CaptureError
from fitwithin.machine import DeviceName
from fitwithin.training.learner import Learner

warnings.simplefilter("error")
device = Cuda(0)
device.set_memory_cap(3 * 2**30, "process")
setting = JobSettings(device=DeviceName(kind="cuda"), memory_bytes=3 * 2**30, accounting="process", pack="", classes=3,
                  recipe=replace(recipe.load("paper"), flip=0.0), view_sizes=(64,), seed=0, workers=1)

def learner(precision, layout="nchw", captured=True, model="resnet18"):
    return Learner(setting, Candidate(model=model, train_px=64, precision=precision, layout=layout), device,
                   cuda_graph=captured)

torch.backends.cudnn.deterministic = True
generator = torch.Generator().manual_seed(1)
batches = [(torch.randint(0, 256, (16, 64, 64, 3), generator=generator, dtype=torch.uint8),
            torch.randint(0, 3, (16,), generator=generator)) for _ in range(12)]
"""


def fresh(code: str) -> dict[str, Any]:
    """What ``code`` prints as JSON at the end of a process of its own, after LEARNERS."""
    ran = subprocess.run([sys.executable, "-c", LEARNERS + code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("precision", "layout"),
    [("fp32", "nchw"), ("amp", "nchw"), ("amp-bf16", "channels_last"), ("tf32", "channels_last")],
)
def test_a_recorded_step_learns_as_one_launched_kernel_by_kernel(precision: str, layout: str) -> None:
    found = fresh(f"""
told = {{}}
for captured in (True, False):
    one = learner({precision!r}, {layout!r}, captured)
    losses = []
    for number, (x, y) in enumerate(batches):
        if number == 6:
            one.logits(x)  # an evaluation drops what was recorded
        if number == 8:  # and an interrupted turn goes on in another process
            state, one = one.state(), learner({precision!r}, {layout!r}, captured)
            one.load_state(state)
        losses.append(one.step(x, y, 1e-3 * (1 - number / 12)))
    told[str(captured)] = [float(loss) for loss in losses]
    told["recorded " + str(captured)] = one.capture_s
print(json.dumps(told))
""")
    recorded, launched = (np.array(found[key]) for key in ("True", "False"))
    assert found["recorded True"]
    assert not found["recorded False"]
    assert len(set(launched)) == 12
    np.testing.assert_allclose(recorded, launched, rtol=2e-2 if precision.startswith("amp") else 2e-3)


def test_a_batch_fetched_while_a_step_runs_does_not_reach_that_step() -> None:
    found = fresh("""
batches = [(x.repeat(16, 1, 1, 1).roll(n, 2).pin_memory(), y.repeat(16).roll(n).pin_memory())
           for n, (x, y) in enumerate(batches * 4)]
told = {}
for captured in (True, False):
    one = learner("fp32", captured=captured)
    losses = [one.step(x, y, 0.0) for x, y in batches]  # nobody waits for the device
    told[str(captured)] = [float(loss) for loss in losses]
print(json.dumps(told))
""")
    assert len(set(found["False"])) > 40
    np.testing.assert_allclose(found["True"], found["False"], rtol=1e-5)


#: The same labels, with noise on canvases of 72 px of which images take all, a pixel, or anything between.
CANVASES = """
sizes = torch.randint(1, 73, (12, 16, 2), generator=generator)
sizes[:, 0], sizes[:, 1], sizes[:, 2] = 72, 1, 64
batches = [(torch.randint(0, 256, (16, 72, 72, 3), generator=generator, dtype=torch.uint8),
            torch.cat([y.unsqueeze(1), size], dim=1)) for (_, y), size in zip(batches, sizes)]
"""


@pytest.mark.parametrize(
    ("precision", "layout"),
    [("fp32", "nchw"), ("amp", "channels_last"), ("amp-bf16", "channels_last"), ("tf32", "nchw")],
)
def test_a_recorded_step_resizes_as_one_launched_kernel_by_kernel(precision: str, layout: str) -> None:
    """Another size from canvases of the same shape is recorded anew; an evaluation in between changes nothing."""
    found = fresh(f"""{CANVASES}
told = {{}}
for captured in (True, False):
    one = learner({precision!r}, {layout!r}, captured)
    sides, losses = [], []
    one.net.register_forward_pre_hook(lambda module, taken: sides.append(taken[0].shape[2]))
    for number, (x, y) in enumerate(batches):
        if number == 6:
            one.loader_args(48)
        if number == 9:
            one.logits(x[:, :64, :64])
            sides.pop()
        losses.append(one.step(x, y, 1e-3 * (1 - number / 12)))
    told[str(captured)] = [float(loss) for loss in losses]
    told["sides " + str(captured)] = sides
print(json.dumps(told))
""")
    # Recorded, the net is called for each size's first step, which is launched, for its recording, and after the
    # evaluation for one more.
    assert found["sides True"] == [64, 64, 48, 48, 48]
    assert found["sides False"] == [64] * 6 + [48] * 6
    assert len(set(found["False"])) == 12
    np.testing.assert_allclose(found["True"], found["False"], rtol=2e-2 if precision.startswith("amp") else 2e-3)


def test_canvases_are_resized_alike_by_gpu_and_cpu() -> None:
    """In float32 but for the order of sums, in float16 to half of a whole; TF32 is not used unless it is asked for."""
    found = fresh(f"""{CANVASES}
from fitwithin.training.augment import resized
told = {{}}
for name, dtype in (("whole", torch.float32), ("half", torch.float16)):
    far = 0.0
    for (x, y), px in zip(batches, (1, 9, 32, 48, 63, 64, 72, 80, 96, 128, 131, 160)):
        wanted = resized(x, y[:, 1:], px, torch.float32)
        far = max(far, float((resized(x.cuda(), y[:, 1:].cuda(), px, dtype).float().cpu() - wanted).abs().max()))
    told[name] = far
print(json.dumps(told))
""")
    assert found["whole"] < 2e-2
    assert found["half"] < 0.5


def test_another_sizes_step_takes_the_place_of_the_one_before() -> None:
    found = fresh(f"""{CANVASES}
one = learner("fp32")
x, y = batches[0][0].repeat(24, 1, 1, 1), batches[0][1].repeat(24, 1)
told = []
for px in (64, 32):
    one.loader_args(px)
    for _ in range(4):
        one.step(x, y, 1e-3)
    told.append(torch.cuda.memory_reserved())
print(json.dumps({{"large": told[0], "small": told[1]}}))
""")
    assert found["small"] < 0.75 * found["large"]


def test_muon_learns_the_same_recorded_as_launched() -> None:
    found = fresh("""
from dataclasses import replace
setting = replace(setting, recipe=replace(setting.recipe, optimizer="muon", decay_norms=False, label_smoothing=0.1))
told = {}
for captured in (True, False):
    one = learner("amp-bf16", "channels_last", captured)
    told[str(captured)] = [float(one.step(x, y, 1e-3)) for x, y in batches]
    told["recorded " + str(captured)] = one.capture_s
print(json.dumps(told))
""")
    assert found["recorded True"]
    np.testing.assert_allclose(found["True"], found["False"], rtol=3e-2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_at_rate_0_changes_no_weight(optimizer: str) -> None:
    """Not even one whose gradient has always been exactly 0, as of channels that never fire."""
    found = fresh(f"""
setting = replace(setting, recipe=replace(setting.recipe, optimizer={optimizer!r}, decay_norms=False))
one = learner("amp-bf16")
named = dict(one.net.named_parameters())
named["layer1.0.bn1.weight"].register_hook(torch.zeros_like)
for x, y in batches[:6]:
    one.step(x, y, 1e-3)
before = {{name: value.detach().clone() for name, value in named.items()}}
one.step(*batches[6], 0.0)
moved = [name for name, value in named.items() if not torch.equal(value, before[name])]
print(json.dumps({{"moved": moved, "finite": one.finite(), "recorded": one.capture_s}}))
""")
    assert found["recorded"]
    assert found["finite"]
    assert found["moved"] == []


def test_a_recorded_step_uses_new_random_numbers_every_time() -> None:
    found = fresh("""
one = learner("fp32")
one.net.register_forward_hook(lambda module, taken, given: torch.nn.functional.dropout(given, 0.5))
losses = [one.step(*batches[0], 0.0) for _ in range(8)]
print(json.dumps({"losses": [float(loss) for loss in losses], "recorded": one.capture_s}))
""")
    assert found["recorded"]
    assert len(set(found["losses"])) > 6


def test_a_recorded_step_augments_anew_every_time() -> None:
    found = fresh("""
from dataclasses import replace
setting = replace(setting, recipe=replace(setting.recipe, color_jitter=0.3, cutmix=0.5))
one = learner("amp-bf16", "channels_last")
losses = [one.step(*batches[0], 0.0) for _ in range(8)]
print(json.dumps({"losses": [float(loss) for loss in losses], "recorded": one.capture_s}))
""")
    assert found["recorded"]
    assert len(set(found["losses"])) > 6


@pytest.mark.parametrize(
    ("precision", "layout"), [("fp32", "nchw"), ("amp", "channels_last"), ("amp-bf16", "channels_last")]
)
def test_a_recorded_pass_gives_what_one_launched_kernel_by_kernel_does(precision: str, layout: str) -> None:
    """By the weights of the moment, at every size, mirrored or not; from the second batch of a size on."""
    found = fresh(f"""
one = learner({precision!r}, {layout!r})
calls, far, scale = [], 0.0, 0.0
one.net.register_forward_pre_hook(lambda module, taken: calls.append(taken[0].shape[2]))
for px in (64, 48, 64):
    for x, y in batches[:3]:
        one.step(x, y, 1e-2)
    calls.clear()
    shown = [(x[:, :px, :px], flip) for x, _ in batches[:4] for flip in (False, True)]
    recorded = [one.logits(x, flip=flip) for x, flip in shown]
    assert calls == [px, px], calls  # one is launched, and one recorded
    for (x, flip), logits in zip(shown, recorded):
        launched = one.logits(x, flip=flip, eager=True)
        far, scale = max(far, float((logits - launched).abs().max())), max(scale, float(launched.abs().max()))
    assert len(calls) == 2 + len(shown)
print(json.dumps({{"far": far, "scale": scale, "recorded": one.capture_s}}))
""")
    assert found["recorded"]
    assert found["scale"] > 0.1
    assert found["far"] <= (2e-2 if precision.startswith("amp") else 1e-4) * found["scale"]


def test_the_memory_of_a_recorded_pass_comes_back_for_the_training() -> None:
    found = fresh("""
one = learner("fp32")
x = batches[0][0].repeat(64, 1, 1, 1)
for _ in range(3):
    one.logits(x)
held = torch.cuda.memory_reserved()
one.step(batches[0][0][:2], batches[0][1][:2], 1e-3)
print(json.dumps({"held": held, "left": torch.cuda.memory_reserved()}))
""")
    assert found["left"] < found["held"] / 2


def test_a_recorded_steps_memory_comes_back_for_the_evaluation() -> None:
    found = fresh("""
one = learner("fp32")
x, y = batches[0][0].repeat(24, 1, 1, 1), batches[0][1].repeat(24)
for _ in range(4):
    one.step(x, y, 1e-3)
held = torch.cuda.memory_reserved()
one.logits(x[:16])
print(json.dumps({"held": held, "left": torch.cuda.memory_reserved()}))
""")
    assert found["left"] < found["held"] / 2


def test_a_step_that_waits_for_the_device_cannot_be_recorded_and_says_so() -> None:
    found = fresh("""
one = learner("fp32")
one.net.register_forward_hook(lambda module, taken, given: given * float(given.sum().item() != 0.1))
said = ""
try:
    for x, y in batches[:4]:
        one.step(x, y, 1e-3)
except CaptureError as error:
    said = str(error)
print(json.dumps({"said": said}))
""")
    assert "its step cannot be recorded as a CUDA graph" in str(found["said"])


def test_an_evaluation_that_waits_for_the_device_cannot_be_recorded_and_says_so() -> None:
    found = fresh("""
one = learner("fp32")
one.net.register_forward_hook(lambda net, taken, given: given if net.training else given * float(given.sum().item()))
said = ""
for x, y in batches[:4]:
    one.step(x, y, 1e-3)
try:
    for x, y in batches[:2]:
        one.logits(x)
except CaptureError as error:
    said = str(error)
print(json.dumps({"said": said}))
""")
    assert "its evaluation cannot be recorded as a CUDA graph" in str(found["said"])
