"""The feeder: batches made by processes are the batches that were described, and its processes end with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.test_batches import images
from fitwithin import recipe as recipes
from fitwithin.data import prefetch as feeders
from fitwithin.data.batches import Batches, EvalBatches, Fill, Ints, TrainBatches
from fitwithin.data.framing import Frame
from fitwithin.data.pack import Pack
from fitwithin.data.prefetch import PrefetchLoader, ring_bytes
from fitwithin.errors import DataError

PX, BATCH = 16, 4
RECIPE = recipes.load("paper")


@pytest.fixture
def pack() -> Pack:
    return images()


@pytest.fixture(params=[1, 3])
def feeder(pack: Pack, request: pytest.FixtureRequest) -> Iterator[PrefetchLoader]:
    with PrefetchLoader(pack, request.param, [ring_bytes([(BATCH, PX)]), ring_bytes([(6, 20)])], pin=False) as started:
        yield started


def described(
    first: int = 0, steps: int = 9, batch: int = BATCH, px: int = PX, canvas_px: int | None = None
) -> dict[str, Any]:
    usual = {"recipe": RECIPE, "px": px, "batch": batch, "seed": 3, "first_step": first, "steps": steps}
    return {**usual, "canvas_px": canvas_px}


def taken(feeder: PrefetchLoader, **arguments: Any) -> list[tuple[Any, Any]]:
    """Every batch, copied before its slot is filled again."""
    with feeder.stream(TrainBatches, **arguments) as stream:
        return [(x.numpy().copy(), y.numpy().copy()) for x, y in stream]


@pytest.mark.parametrize("canvas_px", [None, 20])
def test_the_batches_are_those_that_were_described(feeder: PrefetchLoader, pack: Pack, canvas_px: int | None) -> None:
    batches = TrainBatches(pack, **described(canvas_px=canvas_px))
    found = taken(feeder, **described(canvas_px=canvas_px))
    assert len(found) == len(batches) == 9
    for number, (x_bhwc, y_b) in enumerate(found):
        labels, fill = batches.prepare(number)
        wanted = x_bhwc.copy()  # around an image its canvas has what was there before
        fill(wanted, range(BATCH))
        assert (x_bhwc == wanted).all()
        assert x_bhwc.shape == (BATCH, batches.px, batches.px, 3)
        assert y_b.shape == labels.shape
        assert (y_b == labels).all()
    # Seven images, batches of four: the eighth position begins the second epoch.
    seen = [int(label) for _, y_b in found for label in y_b.reshape(BATCH, -1)[:, 0]]
    assert sorted(seen[:7]) == sorted(pack.labels.tolist()) == sorted(seen[7:14])


def test_a_stream_that_goes_on_later_has_the_same_batches(feeder: PrefetchLoader) -> None:
    whole, rest = taken(feeder, **described()), taken(feeder, **described(first=5))
    assert len(rest) == 4
    for (x, y), (x_again, y_again) in zip(whole[5:], rest, strict=True):
        assert (x == x_again).all()
        assert (y == y_again).all()


def test_a_stream_that_was_left_early_does_not_reach_into_the_next(feeder: PrefetchLoader) -> None:
    wanted = taken(feeder, **described(batch=6, px=20))
    for _ in range(5):
        with feeder.stream(TrainBatches, **described(steps=1000)) as stream:
            next(iter(stream))
        found = taken(feeder, **described(batch=6, px=20))
        assert all((x == x_wanted).all() for (x, _), (x_wanted, _) in zip(found, wanted, strict=True))


def test_an_evaluation_in_the_middle_leaves_the_training_as_it_was(feeder: PrefetchLoader) -> None:
    wanted, found = taken(feeder, **described()), []
    with feeder.stream(TrainBatches, **described()) as stream:
        for number, (x_bhwc, y_b) in enumerate(stream):
            found.append((x_bhwc.numpy().copy(), y_b))
            if number in (2, 5):
                assert len(taken(feeder, **described(batch=6, px=20))) == 9
    assert all((x == x_wanted).all() for (x, _), (x_wanted, _) in zip(found, wanted, strict=True))


def test_evaluation_fills_the_last_batch_with_black(feeder: PrefetchLoader) -> None:
    with feeder.stream(EvalBatches, split="train", frame=Frame(1.0), px=PX, batch=BATCH) as stream:
        (_, _), (x_bhwc, _) = ((x.numpy().copy(), y) for x, y in stream)
    assert x_bhwc.shape == (4, PX, PX, 3)
    assert x_bhwc[:3].any()
    assert not x_bhwc[3].any()


class Torn(TrainBatches):
    """Its third batch cannot be made."""

    def prepare(self, number: int) -> tuple[Ints, Fill]:
        if number == 2:
            raise OSError("the disk is gone")
        return super().prepare(number)


def test_what_a_process_cannot_load_is_told(feeder: PrefetchLoader) -> None:
    with feeder.stream(Torn, **described()) as stream, pytest.raises(DataError, match="the disk is gone"):
        list(stream)
    assert len(taken(feeder, **described())) == 9  # and the next stream is whole


class Deadly(TrainBatches):
    """Its third batch ends whoever makes it, as the system does where memory is short."""

    def prepare(self, number: int) -> tuple[Ints, Fill]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(number)


def test_a_process_that_dies_is_missed(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeders, "LOOK_S", 0.05)
    feeder = PrefetchLoader(pack, 2, [ring_bytes([(BATCH, PX)])], pin=False).start()
    with pytest.raises(DataError, match=r"died|ended"), feeder.stream(Deadly, **described()) as stream:
        list(stream)
    feeder.close()


def test_a_failure_to_describe_is_the_callers(feeder: PrefetchLoader) -> None:
    with pytest.raises(TypeError), feeder.stream(Batches, px=3):
        pass


def test_no_process_is_left(pack: Pack) -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()
    with PrefetchLoader(pack, 3, [ring_bytes([(BATCH, PX)])], pin=False) as feeder:
        (foreman,) = children() - before
        workers = Path(f"/proc/{foreman}/task/{foreman}/children")
        taken(feeder, **described())
        pids = workers.read_text().split()
        assert len(pids) == 3
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


class Slow(TrainBatches):
    """Each batch takes a while."""

    def prepare(self, number: int) -> tuple[Ints, Fill]:
        time.sleep(0.15)
        return super().prepare(number)


@pytest.mark.parametrize("within_s", [0.0, 0.1, 0.2, 0.5])
def test_slow_processes_are_there_for_the_next_stream_when_the_time_of_one_is_over(
    feeder: PrefetchLoader, within_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model was not evaluated, since its training had ended while a batch was being made."""
    monkeypatch.setattr(feeders, "DRAIN_S", 60.0)  # other tests may keep the cores busy
    with feeder.stream(Slow, until_at=time.monotonic() + within_s, **described()) as stream:
        assert len(list(stream)) < 9
    feeder.settle()
    assert not feeder.stalled
    assert len(taken(feeder, **described())) == 9


def test_processes_that_were_left_late_are_waited_for(feeder: PrefetchLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeders, "DRAIN_S", 60.0)
    until_at = time.monotonic() + 0.4
    with feeder.stream(Slow, until_at=until_at, **described()) as stream:
        next(iter(stream), None)
        time.sleep(max(0.0, until_at - time.monotonic()))  # the model is written meanwhile
    feeder.settle()
    assert len(taken(feeder, **described())) == 9


class LoaderTimeout(TrainBatches):
    """Its third batch is never made."""

    def prepare(self, number: int) -> tuple[Ints, Fill]:
        if number == 2:
            time.sleep(3600)
        return super().prepare(number)


def test_a_process_that_hangs_is_not_waited_for_beyond_the_deadline(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeders, "DRAIN_S", 0.3)
    rings = [ring_bytes([(BATCH, PX)])] * 2
    begun_at = time.monotonic()
    with PrefetchLoader(pack, 2, rings, pin=False) as feeder:
        with feeder.stream(LoaderTimeout, until_at=begun_at + 1.5, **described()) as stream:
            assert len(list(stream)) == 2
        assert feeder.stalled
        feeder.settle()
        assert feeder.stalled, "it is still silent"
        assert 1.4 <= time.monotonic() - begun_at < 3.0
    assert time.monotonic() - begun_at < 4.0, "whoever hangs was waited for"
