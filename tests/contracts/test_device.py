"""One suite for every device: the CPU, and CUDA under both ways of accounting where there is a GPU.

A device is opened once per process, before the first allocation, and the CPU's cap can never be lifted again: what
a test looks at was seen by a fresh process. One process sees everything about a device, since torch takes seconds to
import.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from fitwithin.engine.cuda import Cuda
from fitwithin.engine.device import Cpu
from fitwithin.engine.launch import ALLOCATOR, GROWING
from fitwithin.errors import OutOfMemory
from fitwithin.machine import cuda_count

MIB = 2**20

#: What torch and the C library give back or move while a tensor is made; the CPU's count knows nothing of tensors.
CPU_SLACK = MIB


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A device, and the cap that its process keeps."""

    device: str
    accounting: str
    cap_bytes: int

    @property
    def cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def held_bytes(self) -> int:
        """What fits twice."""
        return self.cap_bytes // 4

    @property
    def beyond_bytes(self) -> int:
        """What does not fit at all."""
        return self.cap_bytes * 5 // 4


KINDS = {
    "cpu": Kind(device="cpu", accounting="process", cap_bytes=256 * MIB),
    "cuda-process": Kind(device="cuda:0", accounting="process", cap_bytes=2048 * MIB),
    "cuda-allocator": Kind(device="cuda:0", accounting="allocator", cap_bytes=2048 * MIB),
}

PREAMBLE = """
import json, sys, time
import torch
from fitwithin.engine.device import open_device
from fitwithin.machine import DeviceName
from fitwithin.errors import OutOfMemory

name, accounting, *sizes = sys.argv[1:]
cap_bytes, held_bytes, beyond_bytes = map(int, sizes)
device = open_device(DeviceName.parse(name))
told = {}

def hold(size):
    held = torch.ones(size, dtype=torch.uint8, device=device.torch_device)  # writes every page
    device.synchronize()
    return held

def said(size):
    "What the guard makes of a request; nothing if there is room."
    try:
        with device.guard():
            hold(size)
    except OutOfMemory as error:
        return str(error)
    return ""
"""

EVERYTHING = """
device.set_memory_cap(cap_bytes, accounting)
device.record_allocations()
told["idle"] = {
    "name": device.name, "peak": device.peak_bytes(), "outside": device.non_allocator_bytes(),
    "usable": device.usable_bytes(), "retries": device.retries(), "crowded": device.memory_taken_by_others(),
    "strangers": device.num_other_processes(),
}
peaks = [device.peak_bytes()]

def note():
    peaks.append(device.peak_bytes())

def tend():
    "Everything that may be called at any time."
    for _ in range(4):  # more often than steps may be under way
        device.limit_run_ahead()
    for harmless in (device.update_limit, device.synchronize, device.empty_cache):
        harmless()
    note()

tend()
with device.guard():
    held = hold(held_bytes)
note()
told["held"] = {"peak": device.peak_bytes(), "needed": device.needed_bytes(), "retries": device.retries(),
                "outside": device.non_allocator_bytes()}
tend()
told["kept"] = int(held[::4096].sum()) * 4096

begun_at = time.monotonic()
fetch, value = device.read_async(held[:3].float().sum() / 2), None
told["at once"] = fetch()
while value is None and time.monotonic() - begun_at < 10:
    value = fetch()
told["later"], told["later again"] = value, fetch()

told["refused"] = {"said": said(beyond_bytes), "peak": device.peak_bytes(), "retries": device.retries()}
note()
tend()
told["smaller"] = said(held_bytes)  # beside what is held
del held
tend()
told["after all"] = {
    "said": said(2 * held_bytes), "peak": device.peak_bytes(), "crowded": device.memory_taken_by_others(),
}
note()
told["peaks"] = peaks
print(json.dumps(told))
"""

GUARDED = """
device.set_memory_cap(cap_bytes, accounting)

def through(error):
    "What leaves the guard, and whether it is the very same."
    try:
        with device.guard():
            raise error
    except BaseException as left:
        return [type(left).__name__, str(left), left is error]

told["others"] = [through(error) for error in (
    RuntimeError("shape '[2]' is invalid for input of size 3"), ValueError("no"), NotImplementedError("not here"),
    KeyboardInterrupt(), OutOfMemory("said before"))]
told["torch's own"] = through(torch.OutOfMemoryError("out of memory: tried to allocate\\nand much more"))

def fill():
    one = hold(2 * held_bytes)
    two = hold(beyond_bytes)
    return one, two

try:
    with device.guard(), device.guard():
        fill()
except OutOfMemory as error:
    told["nested"] = str(error)
    told["let go"] = said(2 * held_bytes)  # while somebody still looks at the error
told["nothing"] = said(0)
with device.guard():
    told["value"] = float(torch.ones((), device=device.torch_device))
print(json.dumps(told))
"""

STAGED = """
device.set_memory_cap(cap_bytes, accounting, staged_bytes=cap_bytes // 2)
told["usable"] = device.usable_bytes()
told["half"], told["more"], told["less"] = said(cap_bytes * 2 // 5), said(cap_bytes * 3 // 5), said(held_bytes)
told["peak"] = device.peak_bytes()
print(json.dumps(told))
"""


def fresh(kind: Kind, code: str) -> dict[str, Any]:
    """What ``code`` prints as JSON in a process of its own, with the allocator that the engine's workers have."""
    sizes = map(str, (kind.cap_bytes, kind.held_bytes, kind.beyond_bytes))
    ran = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code, kind.device, kind.accounting, *sizes],
        env={**os.environ, ALLOCATOR: GROWING},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        pytest.fail(ran.stderr[-2000:], pytrace=False)
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name,
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(cuda_count() == 0, reason="no CUDA device on this machine"),
            ]
            if kind.cuda
            else [],
        )
        for name, kind in KINDS.items()
    ],
)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def told(kind: Kind) -> dict[str, Any]:
    return fresh(kind, EVERYTHING)


@pytest.fixture(scope="module")
def guarded(kind: Kind) -> dict[str, Any]:
    return fresh(kind, GUARDED)


def test_who_works_with_one_device_works_with_the_other() -> None:
    def verbs(of: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(of, inspect.isfunction)
        return {name: list(inspect.signature(verb).parameters) for name, verb in methods if not name.startswith("_")}

    assert verbs(Cpu) == verbs(Cuda)


def test_what_fits_is_had_and_shows_in_the_peak(kind: Kind, told: dict[str, Any]) -> None:
    assert told["kept"] == kind.held_bytes, "and keeps its values whatever is called meanwhile"
    slack = 0 if kind.cuda else CPU_SLACK
    assert kind.held_bytes - slack <= told["held"]["peak"] - told["idle"]["outside"]
    assert told["held"]["peak"] <= kind.cap_bytes


def test_what_does_not_fit_is_refused_and_the_peak_stays_within_the_cap(kind: Kind, told: dict[str, Any]) -> None:
    assert "the memory cap was reached" in told["refused"]["said"]
    assert told["refused"]["peak"] <= kind.cap_bytes
    assert told["after all"]["peak"] <= kind.cap_bytes


def test_after_a_refusal_something_smaller_is_had(told: dict[str, Any]) -> None:
    assert told["smaller"] == ""
    assert told["after all"]["said"] == "", "twice as much, once the first was given back"


def test_the_peak_never_falls(told: dict[str, Any]) -> None:
    assert told["peaks"] == sorted(told["peaks"])
    assert told["peaks"][-1] > told["peaks"][0]


def test_what_may_be_used_and_what_lies_outside_are_parts_of_the_cap(kind: Kind, told: dict[str, Any]) -> None:
    for facts in (told["idle"], told["held"]):
        assert facts["outside"] >= 0
        assert facts["outside"] <= facts["peak"]
    assert 0 < told["idle"]["usable"] <= kind.cap_bytes
    assert (told["idle"]["outside"] > 0) == (kind.cuda and kind.accounting == "process"), "a context has a size"


def test_what_was_needed_lies_between_what_was_held_and_the_cap(kind: Kind, told: dict[str, Any]) -> None:
    slack = 0 if kind.cuda else CPU_SLACK
    assert kind.held_bytes - slack <= told["held"]["needed"] - told["held"]["outside"]
    assert told["held"]["needed"] <= told["idle"]["usable"]


def test_retries_are_counted_where_there_is_an_allocator_that_makes_them(kind: Kind, told: dict[str, Any]) -> None:
    assert told["idle"]["retries"] == told["held"]["retries"] == 0
    assert (told["refused"]["retries"] > 0) == kind.cuda


def test_a_scalar_comes_later_and_stays(kind: Kind, told: dict[str, Any]) -> None:
    assert told["later"] == told["later again"] == 1.5
    assert told["at once"] in ((1.5, None) if kind.cuda else (1.5,))


def test_an_idle_device_has_a_name_and_is_not_crowded(told: dict[str, Any]) -> None:
    assert told["idle"]["name"]
    assert told["idle"]["strangers"] >= 0
    assert told["idle"]["crowded"] is told["after all"]["crowded"] is False, "its own refusal is nobody else's doing"


def test_other_errors_pass_the_guard_unchanged(guarded: dict[str, Any]) -> None:
    assert [name for name, _, _ in guarded["others"]] == [
        "RuntimeError",
        "ValueError",
        "NotImplementedError",
        "KeyboardInterrupt",
        "OutOfMemory",
    ]
    assert all(same for _, _, same in guarded["others"])
    assert guarded["value"] == 1.0


def test_torchs_out_of_memory_becomes_a_sentence_with_its_first_line(guarded: dict[str, Any]) -> None:
    name, text, _ = guarded["torch's own"]
    assert name == "OutOfMemory"
    assert text == "the memory cap was reached (out of memory: tried to allocate)"


def test_guards_within_guards_say_it_once_and_let_go_of_what_was_held(guarded: dict[str, Any]) -> None:
    assert guarded["nested"].count("the memory cap was reached") == 1
    assert guarded["let go"] == "", "nothing is left of the work that failed"
    assert guarded["nothing"] == ""


def test_memory_that_batches_are_made_in_leaves_less_on_the_cpu() -> None:
    """Under a cap of which half is staged, two fifths fit and three fifths do not."""
    kind = KINDS["cpu"]
    told = fresh(kind, STAGED)
    assert told["half"] == ""
    assert "the memory cap was reached" in told["more"]
    assert told["less"] == ""
    assert told["usable"] == kind.cap_bytes
    assert told["peak"] <= kind.cap_bytes


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (SystemError("<function build at 0x7f3feb156700> returned NULL without setting an exception"), OutOfMemory),
        (SystemError("Objects/listobject.c:314: bad argument to internal function"), SystemError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
    ids=["CPython lost it", "CPython's own mistake", "the allocator", "a mistake in a model"],
)
def test_what_libraries_say_of_failed_allocations_is_told_from_mistakes(
    error: Exception, left: type[BaseException]
) -> None:
    with pytest.raises(left) as told, Cpu().guard():
        raise error
    assert (told.value is error) == (left is not OutOfMemory)
