"""Profiles between runs and machines: what was put is got, and whatever decides speed or memory is part of the key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitwithin.engine.jobs import JobSettings
from fitwithin.engine.results import StepTiming
from fitwithin.errors import RunFolderError, UsageError
from fitwithin.files import check_writable
from fitwithin.machine import DeviceName
from fitwithin.profiling.cache import EXPORT_BEGINNING, ProfileCache, data_shape, export, import_profiles
from fitwithin.profiling.profile import Profile
from simulated.law import SimulatedMachine
from simulated.run import CountedImages, Stage, profile, request

MACHINE = {"name": "H100", "driver": "580", "device": "cuda:0", "python": "3.12", "cpu": "Xeon", "cores": 16}
SHAPE = {"train": 800, "val": 100, "classes": 4, "mean_size": [224, 288]}


def setting() -> JobSettings:
    return Stage(SimulatedMachine(), request(), Path("/nowhere"), CountedImages()).run().setting


def cache(folder: Path, **changes: Any) -> ProfileCache:
    return ProfileCache(folder, **{"machine": MACHINE, "setting": setting(), "shape": SHAPE, **changes})


def test_what_was_put_is_got_and_marked(tmp_path: Path) -> None:
    found = profile(rates={64: 1000.0, 32: 990.0})
    kept = cache(tmp_path / "deep" / "profiles")
    assert kept.get(found.candidate) is None
    kept.put(found)
    assert kept.get(found.candidate) == replace(found, cached=True)
    kept.put(replace(found, batch=16, accum_steps=2))
    again = kept.get(found.candidate)
    assert again is not None
    assert (again.batch, again.accum_steps) == (16, 2)
    assert [path.suffix for path in (tmp_path / "deep" / "profiles").iterdir()] == [".json"]


def test_an_export_is_written_over_an_export_alone(tmp_path: Path) -> None:
    export([profile()], cache(tmp_path).key, tmp_path / "shared.json")
    check_writable(tmp_path / "shared.json", EXPORT_BEGINNING)
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    with pytest.raises(RunFolderError, match="holds something else"):
        check_writable(tmp_path / "package.json", EXPORT_BEGINNING)


def test_a_pace_beside_busy_programs_is_not_kept(tmp_path: Path) -> None:
    found, kept = profile(), cache(tmp_path)
    kept.put(replace(found, timing=replace(found.timing, cpu_taken=0.5)))
    assert kept.get(found.candidate) is None
    kept.put(replace(found, timing=replace(found.timing, cpu_taken=0.02)))
    assert kept.get(found.candidate) is not None


def test_paces_are_kept_too(tmp_path: Path) -> None:
    paces = {"resnet18-amp-160": StepTiming(batch=64, step_s=0.01, error_s=0.001)}
    kept = cache(tmp_path)
    assert kept.get_step_timings("resnet18") is None
    kept.put_step_timings("resnet18", paces)
    assert kept.get_step_timings("resnet18") == paces
    assert kept.get_step_timings("resnet50") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"profile": {"candidate": 3}}', "\x00\xff"])
def test_a_damaged_file_is_as_none(tmp_path: Path, text: str) -> None:
    found, kept = profile(), cache(tmp_path)
    kept.put(found)
    (path,) = tmp_path.iterdir()
    path.write_bytes(text.encode("latin-1"))
    assert kept.get(found.candidate) is None
    kept.put(found)
    assert kept.get(found.candidate) is not None


def test_whatever_decides_speed_or_memory_is_part_of_the_key(tmp_path: Path) -> None:
    found, base = profile(), setting()
    cache(tmp_path).put(found)
    machines = [{**MACHINE, key: "other"} for key in ("name", "driver", "cpu", "cores", "torch", "cudnn", "allocator")]
    changes = (
        {"memory_bytes": base.memory_bytes + 1},
        {"accounting": "allocator"},
        {"recipe": replace(base.recipe, max_batch=8)},
        {"view_sizes": (96,)},
        {"workers": 1},
        {"data_parallel": 2},
        {"canvas_px": 240},
    )
    others: list[dict[str, Any]] = [{"machine": machine} for machine in machines]
    others += [{"shape": {**SHAPE, key: 7}} for key in SHAPE]
    others += [{"setting": replace(base, **change)} for change in changes]
    assert [cache(tmp_path, **other).get(found.candidate) for other in others] == [None] * len(others)


def test_what_does_not_decide_it_is_not(tmp_path: Path) -> None:
    found, base = profile(), setting()
    cache(tmp_path).put(found)
    for other in (
        {"setting": replace(base, seed=9)},
        {"setting": replace(base, pack="/nowhere/another")},
        {"setting": replace(base, device=DeviceName(kind="cuda", index=1))},
        {"setting": replace(base, recipe=replace(base.recipe, name="another"))},
        {"machine": {**MACHINE, "device": "cuda:1", "python": "3.13", "platform": "elsewhere"}},
    ):
        assert cache(tmp_path, **other).get(found.candidate) is not None


def test_data_of_one_shape_share_profiles() -> None:
    one, other = CountedImages(), CountedImages(fingerprint="another", folder=Path("/another"))
    assert data_shape(one) == data_shape(other)
    assert data_shape(one) != data_shape(CountedImages(counts=(801, 100, 100)))


def test_what_one_exports_another_takes_in(tmp_path: Path) -> None:
    found: list[Profile] = [profile(), profile("resnet50", precision="fp32")]
    kept = cache(tmp_path / "here")
    assert export(found, kept.key, tmp_path / "team.json") == 2
    taken = import_profiles(tmp_path / "team.json", tmp_path / "there")
    assert [key == kept.key for key, _ in taken] == [True, True]
    there, elsewhere = cache(tmp_path / "there"), cache(tmp_path / "there", machine={**MACHINE, "name": "A100"})
    for each in found:
        assert there.get(each.candidate) == replace(each, cached=True)
        assert elsewhere.get(each.candidate) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 1, "profiles": []}', '{"schema": 5, "profiles": [{"key": {}}]}']
)
def test_a_file_of_another_kind_is_refused_and_nothing_is_taken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "team.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"team\.json (is no file|has schema)"):
        import_profiles(path, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(UsageError, match="is no file"):
        import_profiles(tmp_path / "absent.json", tmp_path / "there")


def test_one_damaged_entry_spoils_the_file(tmp_path: Path) -> None:
    export([profile(), profile("resnet50")], cache(tmp_path).key, tmp_path / "team.json")
    value = json.loads((tmp_path / "team.json").read_text())
    del value["profiles"][1]["profile"]["timing"]
    (tmp_path / "team.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="timing"):
        import_profiles(tmp_path / "team.json", tmp_path / "there")
    assert not (tmp_path / "there").exists()
