"""What cannot be done is said in one sentence, with exit code 2, and nothing is written.

Most commands here are forks of this process, since none of them comes so far as to work; a few have a Python of their
own.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.conftest import Finished
from e2e.door import CLASSES, Door, Ended, receipt, teardown_s, tree, write_shapes

GOOD = {
    "--memory": "1GiB",
    "--time": "30s",
    "--device": "cpu",
    "--precision": "fp32",
    "--recipe": "upright",
    "--models": "test_resnet",
    "--sizes": "32",
    "--test-sizes": "32,40",
}


def options(**changed: str | None) -> list[str]:
    """The good options with some changed, or left out (None)."""
    named = {"--" + name.replace("_", "-"): value for name, value in changed.items()}
    return [word for name, value in {**GOOD, **named}.items() if value is not None for word in (name, value)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders that are wrong in one way each."""

    root: Path
    shapes: Path


@pytest.fixture(scope="module")
def place(ground: Path, shapes: Path) -> Place:
    """See :class:`Place`."""
    root = ground / "bad"
    (root / "empty").mkdir(parents=True)
    (root / "file").write_text("no folder", encoding="utf-8")
    write_shapes(root / "one-class", 3, classes=CLASSES[:1])
    write_shapes(root / "one-image", 3, classes=CLASSES[:2])
    for path in sorted((root / "one-image" / CLASSES[1]).iterdir())[1:]:
        path.unlink()
    for name in CLASSES:
        (root / "no-images" / name).mkdir(parents=True)
    write_shapes(root / "other", 6, seed=5)
    (root / "held").mkdir()
    (root / "held" / "letter.txt").write_text("dear", encoding="utf-8")
    (root / "half.json").write_text('{"schema": 2}', encoding="utf-8")
    (root / "hollow.json").write_text(
        json.dumps({"trials": [], "rejections": [], "request": {}, "fingerprint": "", "frozen": False, "schema": 2}),
        encoding="utf-8",
    )
    (root / "list.json").write_text("[]", encoding="utf-8")
    (root / "prose.json").write_text("dear", encoding="utf-8")
    (root / "bytes.json").write_bytes(b"\xff\xfe\x00")
    return Place(root=root, shapes=shapes)


def refused(ended: Ended, *words: str) -> str:
    """The one sentence on stderr, which holds the words."""
    assert ended.code == 2, (ended.code, ended.out[-500:], ended.err[-2000:])
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("fitwithin: ")
    assert "Traceback" not in ended.out + ended.err
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


DATA = {
    "missing": ("missing", "does not exist"),
    "a file": ("file", "is a file"),
    "no classes": ("empty", "no class folders"),
    "one class": ("one-class", "one class"),
    "one image of a class": ("one-image", "1 image of the class"),
    "no images": ("no-images", "no image"),
}


@pytest.mark.parametrize(("name", "word"), DATA.values(), ids=DATA.keys())
def test_data_that_cannot_serve(door: Door, place: Place, name: str, word: str) -> None:
    before = tree(door.cwd, place.root)
    refused(door.forked("run", place.root / name, *options()), word)
    assert tree(door.cwd, place.root) == before


WORDS: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "memory 0": ({"memory": "0"}, ("'0'", "6GiB")),
    "memory 6GBit": ({"memory": "6GBit"}, ("'6GBit'", "6GiB")),
    "no memory": ({"memory": None}, ("--memory 6GiB",)),
    "no time": ({"time": None}, ("--time", "--gpu-time")),
    "time 0": ({"time": "0"}, ("'0'",)),
    "time banana": ({"time": "banana"}, ("'banana'", "1h30m")),
    "time beyond counting": ({"time": "9" * 400}, ("999999999999...",)),
    "memory beyond counting": ({"memory": "9" * 400}, ("999999999999...",)),
    "inference 0": ({"inference": "0ms"}, ("'0ms'",)),
    "unknown model": ({"models": "test_resnot"}, ("'test_resnot'", "test_resnet")),
    "unknown pattern": ({"models": "resnet18x*"}, ("'resnet18x*'", "resnet18")),
    "no model": ({"models": " , "}, ("no model",)),
    "size 4": ({"sizes": "4"}, ("'4'", "8 to 1024")),
    "size 9999": ({"test_sizes": "32,9999"}, ("'9999'",)),
    "unknown recipe": ({"recipe": "papper"}, ("'papper'", "paper, transfer, upright")),
    "missing recipe file": ({"recipe": "absent.toml"}, ("'absent.toml'",)),
    "scope banana": ({"scope": "banana"}, ("'banana'", "total, candidate")),
    "no GPU": ({"device": "cuda"}, ("no CUDA device", "--device cpu")),
    "device banana": ({"device": "banana"}, ("'banana'", "cuda:N")),
    "precision int8": ({"precision": "int8"}, ("'int8'", "fp32, tf32")),
    "unknown accounting": ({"memory_accounting": "x"}, ("process, allocator",)),
    "seed -1": ({"seed": "-1"}, ("-1",)),
}


@pytest.mark.parametrize(("changed", "words"), WORDS.values(), ids=WORDS.keys())
def test_limits_and_choices_that_make_no_sense(
    door: Door, place: Place, changed: dict[str, str | None], words: tuple[str, ...]
) -> None:
    before = tree(door.cwd, place.root)
    ask = door if "models" in changed else door.forked  # the worker server knows which models there are
    refused(ask("run", place.shapes, *options(**changed)), *words)
    assert tree(door.cwd, place.root) == before


IMPOSSIBLE: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "a size below the model's least": ({"models": "bat_resnext26ts"}, ("takes at least 256 px", "32 px")),
    "a cap that not even two images fit": ({"memory": "1MiB"}, ("test_resnet-fp32-32", "do not fit")),
}


@pytest.mark.parametrize(("changed", "words"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_nothing_remains_of_what_only_profiling_can_refuse(
    door: Door, place: Place, tmp_path: Path, changed: dict[str, str | None], words: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    before = tree(door.cwd, tmp_path)
    refused(door("run", place.shapes, *options(**changed), "--out", tmp_path / "empty"), *words)
    assert tree(door.cwd, tmp_path) == before


def test_too_short_a_time_names_one_that_does(door: Door, place: Place, plan: Path, tmp_path: Path) -> None:
    del plan  # its profiles are in the cache
    run = tmp_path / "new" / "run"
    before = tree(door.cwd, tmp_path)
    told = refused(door("run", place.shapes, *options(time="4s"), "--out", run), "4.0s is too short", "the least")
    assert tree(door.cwd, tmp_path) == before
    least_s = float(re.search(r"least that would do, also after a slower start, is ([\d.]+)s$", told)[1])  # type: ignore[index]
    assert 4 < least_s < 60
    # Start-up alone may take two seconds more beside busy neighbours.
    budget_s = 1.1 * least_s + 1
    ended = door.fine("run", place.shapes, *options(time=f"{budget_s:.1f}s"), "--out", run)
    assert ended.wall_s <= budget_s + teardown_s()
    assert all(limit["kept"] for limit in receipt(run)["limits"])


def test_an_output_folder_that_is_taken_or_cannot_be(door: Door, place: Place, finished: Finished) -> None:
    before = tree(door.cwd, place.root, finished.folder)
    for out, words in (
        (finished.folder, ("another run", "fitwithin resume")),
        (place.root / "held", ("something else",)),
        (place.root / "file", ("something else",)),
        (place.root / "file" / "run", ("cannot be made",)),
    ):
        refused(door.forked("run", place.shapes, *options(), "--out", out), *words)
    absent = place.root / "absent" / "plan.json"
    refused(door.forked("plan", place.shapes, *options(), "--out", absent), "cannot be written")
    refused(door.forked("plan", place.shapes, *options(), "--out", place.root / "empty"), "is a folder")
    assert tree(door.cwd, place.root, finished.folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(door: Door, place: Place, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    refused(door.forked("run", place.shapes, *options(), "--out", locked / "run"), "is not writable")
    assert list(locked.iterdir()) == []


PLANS = {
    "of other data": ("other", None, "other data"),
    "absent": (None, "absent.json", "there is no plan"),
    "half a plan": (None, "half.json", "not a plan"),
    "a hollow plan": (None, "hollow.json", "not a plan"),
    "a list": (None, "list.json", "not a plan"),
    "prose": (None, "prose.json", "not a plan"),
    "bytes": (None, "bytes.json", "not a plan"),
}


@pytest.mark.parametrize(("data", "name", "word"), PLANS.values(), ids=PLANS.keys())
def test_plans_that_cannot_be_carried_out(
    door: Door, place: Place, plan: Path, data: str | None, name: str | None, word: str
) -> None:
    before = tree(door.cwd, place.root)
    folder = place.root / data if data else place.shapes
    refused(door.forked("run", folder, "--plan", place.root / name if name else plan), word)
    assert tree(door.cwd, place.root) == before


def test_a_plan_fixes_what_it_was_drawn_up_for(door: Door, place: Place, plan: Path) -> None:
    refused(door.forked("run", place.shapes, "--plan", plan, "--models", "test_vit"), "a plan fixes models")


@pytest.mark.parametrize("words", [("resume",), ("report",), ("predict", "shapes"), ("evaluate", "shapes")])
@pytest.mark.parametrize("folder", ["empty", "missing", "file"])
def test_folders_that_hold_no_run(door: Door, place: Place, words: tuple[str, ...], folder: str) -> None:
    before = tree(door.cwd, place.root)
    refused(door.forked(words[0], place.root / folder, *(place.shapes for _ in words[1:])), "holds no")
    assert tree(door.cwd, place.root) == before


def test_pictures_that_are_not_there(door: Door, place: Place, finished: Finished) -> None:
    before = tree(door.cwd, place.root, finished.folder)
    refused(door.forked("predict", finished.folder, place.root / "missing"), "there is no file")
    refused(door.forked("predict", finished.folder, place.root / "empty"), "holds no images")
    table = place.root / "file" / "x.csv"
    refused(door.forked("predict", finished.folder, place.shapes, "-o", table), "cannot be written")
    refused(door.forked("evaluate", finished.folder, place.root / "no-images"), "holds no images")
    assert tree(door.cwd, place.root, finished.folder) == before


@pytest.mark.parametrize("words", [("run", "x", "--bogus"), ("nosuch",), ("run",), ("run", "x", "--seed", "few")])
def test_words_that_are_no_command(door: Door, words: tuple[str, ...]) -> None:
    before = tree(door.cwd)
    ended = door(*words)
    assert ended.code == 2
    assert "Traceback" not in ended.out + ended.err
    assert tree(door.cwd) == before
