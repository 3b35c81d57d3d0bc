"""Requests: words at the door, plain numbers inside, JSON there and back."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin import machine
from fitwithin.candidate import View
from fitwithin.errors import UsageError
from fitwithin.files import decode, from_json, to_json
from fitwithin.machine import CPU, DeviceName
from fitwithin.options import OPTIONS, Limits
from fitwithin.recipe import load
from fitwithin.request import Request, parse, with_budget, with_engine


def test_the_command_line_of_the_first_page() -> None:
    asked = parse("photos", memory="6GiB", time="3h")
    assert asked.budget.memory_bytes == 6 * 2**30
    assert asked.limit_s == 10800
    assert asked.models == asked.sizes == asked.test_sizes == (), "they are chosen for the data and the time"
    assert asked.recipe == load("fast")
    assert asked.precisions == ("fp32", "amp"), "on the CPU"
    assert parse("photos", memory=1, time=1, device="cuda:0").precisions == ("amp-bf16", "amp")


def test_the_papers_recipe_has_the_papers_grid_and_views() -> None:
    asked = parse("photos", memory="6GiB", time="3h", recipe="paper", device="cuda:0")
    assert asked.precisions == ("amp", "fp32")
    assert asked.layouts == ("nchw",)
    assert asked.models == ("paper",)
    assert asked.sizes == asked.test_sizes == (160, 224)
    assert asked.views == (
        View(px=160, flip=False),
        View(px=160, flip=True),
        View(px=224, flip=False),
        View(px=224, flip=True),
    )


sizes = st.lists(st.integers(8, 1024), min_size=1, max_size=4)


@given(
    memory=st.one_of(st.integers(1, 2**45), st.sampled_from(["6GiB", "512MB"])),
    time=st.one_of(st.none(), st.integers(1, 10**6), st.sampled_from(["3h", "90s"])),
    gpu_time=st.one_of(st.floats(0.01, 1e6), st.just("9h")),
    inference=st.one_of(st.none(), st.sampled_from(["2ms", "0.5ms", "1s"])),
    models=st.one_of(st.none(), st.just("resnet*, vgg11"), st.just(["resnet18"])),
    precision=st.one_of(st.none(), st.just("amp"), st.just(["fp32", "amp"])),
    sizes=st.one_of(st.none(), sizes),
    test_sizes=st.one_of(st.none(), sizes),
    scope=st.sampled_from(["total", "candidate"]),
    accounting=st.sampled_from(["process", "allocator"]),
    recipe=st.sampled_from(["paper", "fast", "upright"]),
    seed=st.integers(0, 2**31 - 1),
    strict=st.booleans(),
    split=st.sampled_from(["auto", "order"]),
    columns=st.sampled_from([None, "path=photo, label=kind", {"group": "patient"}, "split="]),
    cluster=st.sampled_from([{}, {"engine": "local"}, {"engine": "ray"}, {"engine": "ray", "ray_address": "auto"}]),
)
def test_a_request_survives_json(cluster: dict[str, str], **words: Any) -> None:
    asked = parse("photos", **cluster, **words)
    assert from_json(Request, to_json(asked)) == asked
    if not asked.sizes:
        assert asked.pack_side == 0
        return
    largest = max(*asked.sizes, *asked.test_sizes)
    # Stored large enough that the centre crop of the largest view needs no enlarging.
    assert asked.pack_side * round(asked.recipe.crop_pct * 100) / 100 >= largest
    # Where the device resizes, what is stored has room on a canvas but for the longer side of a long image.
    if asked.device == CPU:
        assert asked.canvas_px is None
    else:
        assert asked.canvas_px is not None
        assert asked.pack_side <= asked.canvas_px < asked.pack_side + 8
        assert asked.canvas_px % 8 == 0
    assert list(asked.test_sizes) == sorted(set(asked.test_sizes))
    assert any(view.flip for view in asked.views) == asked.recipe.flips


def test_a_request_of_before_there_were_engines_is_a_local_one() -> None:
    stored = asdict(parse("photos", memory="6GiB", time="3h"))
    del stored["engine"], stored["ray_address"]
    assert decode(Request, stored).engine == "local"


def test_columns_are_named_by_what_they_say() -> None:
    asked = parse("x", memory=1, time=1, columns=" path = a photo , label=kind=2,group=")
    assert asked.columns == (("path", "a photo"), ("label", "kind=2"), ("group", ""))
    assert parse("x", memory=1, time=1, columns=dict(asked.columns)) == asked


def test_evaluation_takes_the_recipes_sizes_unless_told() -> None:
    assert parse("x", memory=1, time=1, sizes="96", recipe="paper").test_sizes == (96,)
    assert parse("x", memory=1, time=1, sizes="96", recipe="fast").test_sizes == (96, 112)
    assert parse("x", memory=1, time=1, sizes="96", test_sizes="128,96,128").test_sizes == (96, 128)


def test_inference_is_asked_for_in_time_and_kept_in_milliseconds() -> None:
    assert parse("x", memory=1, time=1, inference="2ms").budget.inference_ms == pytest.approx(2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"memory": "six"}, "'six' is not a memory size"),
        ({"memory": None}, "a run needs a memory cap; give one, such as --memory 6GiB"),
        ({"time": "soon"}, "'soon' is not a duration"),
        ({"time": None}, "a run needs a time budget"),
        ({"gpu_time": "0s"}, "leaves no time"),
        ({"inference": "fast"}, "'fast' is not a duration"),
        ({"models": " , "}, "no model was given; write timm names or patterns"),
        ({"models": []}, "no model was given"),
        ({"precision": "bf16"}, "'bf16' is not a precision"),
        ({"sizes": "big"}, "'big' is not an image size"),
        ({"test_sizes": "4096"}, "'4096' is not an image size"),
        ({"scope": "run"}, "'run' is not a scope"),
        ({"accounting": "mine"}, "'mine' is not a memory accounting"),
        ({"recipe": "cake"}, "there is no recipe 'cake'"),
        ({"seed": -1}, "--seed -1 is out of range; choose a whole number from 0 to 2147483647"),
        ({"seed": 2**31}, "is out of range"),
        ({"split": "half"}, "'half' is no way to split; choose from auto, grouped, order"),
        ({"columns": "photo"}, "--columns 'photo' does not say which column is which; write path=NAME,label=NAME"),
        ({"columns": "path=photo,kind"}, "does not say which column is which"),
        ({"columns": "weight=w"}, "for any of path, label, split, group, time"),
    ],
)
def test_every_wrong_word_is_named(words: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse("photos", **{"memory": "6GiB", "time": "3h", **words})


def test_gpu_time_is_shared_by_the_gpus_of_a_candidate() -> None:
    asked = parse("photos", memory="6GiB", gpu_time="9h", data_parallel=2)
    assert asked.limit_s == 4.5 * 3600
    assert parse("photos", memory="6GiB", gpu_time="9h", time="2h", data_parallel=2).limit_s == 7200
    assert from_json(Request, to_json(asked)) == asked
    with pytest.raises(UsageError, match="--data-parallel 17 is out of range; choose a whole number from 1 to 16"):
        parse("photos", memory="6GiB", time="3h", data_parallel=17)


FOUR = "".join(f"{n}, GPU-{n}, NVIDIA H100, 81559 MiB\n" for n in range(4))


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that shows what the file says."""
    shown = tmp_path / "cards"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {shown}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    shown.write_text(
        "0, GPU-aa, NVIDIA H100, 81559 MiB\n1, GPU-bb, NVIDIA H100, 81559 MiB\n2, GPU-cc, NVIDIA A100, 40960 MiB\n"
    )
    return shown


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [("auto", 2, "cuda:0"), ("cuda:1", 3, "cuda:1"), ("cpu", 9, "cpu"), ("cuda:2", 3, None), ("auto", 5, None)],
)
def test_a_device_is_the_first_of_several_in_a_row(device: str, gpus: int, found: str | None, cards: Path) -> None:
    cards.write_text(FOUR)
    if found is not None:
        assert str(machine.resolve_device(device, gpus)) == found
        return
    with pytest.raises(UsageError, match=r"--data-parallel \d needs the devices .* shows 4 CUDA devices; give --data"):
        machine.resolve_device(device, gpus)


# --- several GPUs ----------------------------------------------------------------------------------------------------


def test_gpus_are_shared_out_to_candidates() -> None:
    alone = parse("photos", memory="6GiB", time="3h")
    assert (alone.gpus, alone.slots, alone.num_gpus) == (1, 1, 1)
    pair = parse("photos", memory="6GiB", time="3h", data_parallel=2)
    assert (pair.gpus, pair.slots, pair.num_gpus) == (2, 1, 2)
    four = parse("photos", memory="6GiB", time="3h", gpus=4)
    assert (four.gpus, four.slots, four.num_gpus) == (4, 4, 4)
    pairs = parse("photos", memory="6GiB", gpu_time="9h", data_parallel=2, gpus=4)
    assert (pairs.slots, pairs.num_gpus) == (2, 4)
    assert pairs.limit_s == 4.5 * 3600, "of one candidate alone"
    assert from_json(Request, to_json(pairs)) == pairs


def test_a_request_of_before_there_were_slots_has_one() -> None:
    stored = asdict(parse("photos", memory="6GiB", time="3h", data_parallel=2))
    del stored["gpus"]
    again = decode(Request, stored)
    assert (again.slots, again.num_gpus) == (1, 2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"gpus": 0}, "--gpus 0 is out of range; choose a whole number from 1 to 64"),
        ({"gpus": 65}, "--gpus 65 is out of range"),
        ({"gpus": 3, "data_parallel": 2}, r"take 2 each \(--data-parallel 2\); give --gpus 2 or 4"),
        ({"gpus": 1, "data_parallel": 4}, "give --gpus 4"),
        ({"gpus": 2, "jobs": 3}, "--jobs 3 profiles side by side on one GPU, --gpus 2 on a GPU each; leave out one"),
    ],
)
def test_gpus_that_do_not_work_out_are_named(words: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse("photos", **{"memory": "6GiB", "time": "3h", **words})


def test_too_many_gpus_are_named_by_the_option_that_asked(cards: Path) -> None:
    cards.write_text(FOUR)
    assert machine.resolve_device("cuda:1", 3, "--gpus") == DeviceName(kind="cuda", index=1)
    with pytest.raises(UsageError, match=r"--gpus 4 needs the devices cuda:1 to cuda:4, .*; give --gpus 3 at most"):
        machine.resolve_device("cuda:1", 4, "--gpus")


def test_gpus_of_several_kinds_are_refused_by_their_names(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--gpus 2 needs GPUs of one kind.*NVIDIA H100 \(81559 MiB\), NVIDIA A100"):
        machine.resolve_device("cuda:0", 2, "--gpus", same_kind=True)
    assert machine.resolve_device("cpu", 2, "--gpus", same_kind=True) == CPU
    # With an order that is nvidia-smi's own, it is those that are asked for that count.
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    machine.resolve_device("cuda:0", 2, "--gpus", same_kind=True)
    with pytest.raises(UsageError, match="NVIDIA A100"):
        machine.resolve_device("cuda:1", 2, "--gpus", same_kind=True)


@pytest.mark.parametrize(("visible", "alike"), [("0,1", True), ("GPU-bb, GPU-aa", True), ("GPU-bb,GPU-cc", False)])
def test_what_is_not_visible_does_not_matter(
    cards: Path, monkeypatch: pytest.MonkeyPatch, visible: str, alike: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if alike:
        machine.resolve_device("cuda:0", 2, "--gpus", same_kind=True)
    else:
        with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER=PCI_BUS_ID"):
            machine.resolve_device("cuda:0", 2, "--gpus", same_kind=True)


def test_cards_of_one_name_and_different_memory_are_two_kinds(cards: Path) -> None:
    cards.write_text("0, GPU-aa, NVIDIA A100, 40960 MiB\n1, GPU-bb, NVIDIA A100, 81920 MiB\n")
    with pytest.raises(UsageError, match=r"NVIDIA A100 \(40960 MiB\), NVIDIA A100 \(81920 MiB\)"):
        machine.resolve_device("cuda:0", 2, "--gpus", same_kind=True)


def test_every_keyword_is_an_option_with_its_help() -> None:
    assert list(OPTIONS) == list(Limits.__annotations__)
    for name, option in OPTIONS.items():
        assert option.help.endswith("."), name
        if name != "device":  # auto is for the machine to say
            assert (option.read(None) is None) == (option.default is None)


def test_a_keyword_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError, match="there is no limit called 'memroy'; did you mean memory"):
        parse("photos", memroy="6GiB")  # type: ignore[call-arg]


def test_the_defaults_of_a_request_are_those_of_the_options() -> None:
    asked = parse("photos", memory="6GiB", time="3h", recipe="paper")
    chosen = {"models": ("paper",), "sizes": (160, 224), "test_sizes": (160, 224)}
    assert asked == Request(data="photos", budget=asked.budget, recipe=asked.recipe, **chosen)


@pytest.mark.parametrize("text", ["cpu", "cuda:0", "cuda:12"])
def test_a_device_is_read_back_from_its_name(text: str) -> None:
    assert str(DeviceName.parse(text)) == text
    assert DeviceName.parse(text).is_cuda == (text != "cpu")
    assert DeviceName.parse(DeviceName.parse(text)) == DeviceName.parse(f" {text.upper()} ")


@pytest.mark.parametrize("text", ["", "gpu", "cpu:1", "cpu:", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "auto"])
def test_what_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a device; choose auto, cpu, cuda or cuda:N"):
        DeviceName.parse(text)


def test_devices_follow_each_other() -> None:
    assert [str(DeviceName(kind="cuda", index=1).next(n)) for n in (0, 1)] == ["cuda:1", "cuda:2"]
    assert CPU.next(1) == CPU


def test_a_plans_budget_may_be_given_anew() -> None:
    planned = parse("photos", memory="6GiB", time="3h", inference="2ms", accounting="allocator", recipe="paper")
    assert with_budget(planned, {}) == planned
    smaller = with_budget(planned, {"memory": "4GiB", "gpu_time": "1h"})
    assert smaller.budget.memory_bytes == 4 * 2**30
    assert (smaller.budget.time_s, smaller.budget.gpu_time_s) == (None, 3600), "one kind of time replaces the other"
    assert (smaller.budget.inference_ms, smaller.budget.accounting) == (2, "allocator")
    assert smaller.recipe == planned.recipe
    with pytest.raises(UsageError, match="'soon' is not a duration"):
        with_budget(planned, {"time": "soon"})


def test_a_run_may_go_on_with_another_engine() -> None:
    here = parse("photos", memory="6GiB", time="3h", device="cuda:3", jobs=2)
    there = with_engine(here, "ray", "head:6379")
    assert (there.engine, there.ray_address, str(there.device), there.jobs) == ("ray", "head:6379", "cuda:0", 1)
    assert with_engine(there, None, None) == there
    assert with_engine(there, "local", None).ray_address is None
    assert with_engine(here, None, None) == here


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"min_gain": 0.5, "search": "exhaustive"}, "needs a search that can stop early"),
        ({"min_gain": 0.5, "scope": "candidate"}, "needs a search that can stop early"),
        ({"min_gain": 0.0}, "is out of range; give points"),
        ({"min_gain": float("inf"), "search": "halving"}, "is out of range; give points"),
    ],
)
def test_a_gain_that_cannot_be_asked_for_is_refused(words: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse("photos", memory="6GiB", time="1h", **words)


def test_the_default_search_is_halving_unless_each_candidate_has_all_the_time() -> None:
    asked = [parse("photos", memory="6GiB", time="1h", scope=scope).search for scope in ("total", "candidate")]
    assert asked == ["halving", "exhaustive"]
    with pytest.raises(UsageError, match="there is nothing to search for; leave out --search halving"):
        parse("photos", memory="6GiB", time="1h", scope="candidate", search="halving")
