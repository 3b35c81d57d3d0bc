"""The search for the largest batch, told step by step, and profiles as JSON. Its laws stand in test_laws.py."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.engine.results import Probe
from fitwithin.files import from_json, to_json
from fitwithin.profiling.batch_search import largest_batch
from fitwithin.profiling.profile import Prior, Profile, prior
from simulated.run import profile


def machine(edge: int, base: int = 100, slope: int = 10, fatal: str = "") -> object:
    """Batches up to ``edge`` pass; memory is a line."""

    def run(batch: int) -> Probe:
        if fatal:
            return Probe(batch=batch, passed=False, reason=fatal, fatal=True)
        fits = batch <= edge
        peak = base + slope * batch if fits else None
        return Probe(batch=batch, passed=fits, peak_bytes=peak, reason="" if fits else "the cap was reached")

    return run


def test_the_reason_names_both_sizes() -> None:
    batch, why, _ = largest_batch(machine(95), cap_bytes=100 + 950, limit=5000)
    assert batch == 95
    assert why == "95 ran within 1.03 KiB, 96 did not: the cap was reached"


def test_a_limit_that_fits_ends_the_search() -> None:
    batch, why, probes = largest_batch(machine(10**6), cap_bytes=10**9, limit=48, first=48)
    assert batch == 48
    assert "as large as the recipe or the data allow" in why
    assert [probe.batch for probe in probes] == [48]


def test_what_cannot_be_built_is_asked_once() -> None:
    batch, why, probes = largest_batch(machine(9, fatal="needs 224 px"), cap_bytes=10**9, limit=100)
    assert (batch, why, len(probes)) == (0, "needs 224 px", 1)


def test_a_fatal_failure_at_the_smallest_batch_is_told_as_it_is() -> None:
    def run(batch: int) -> Probe:
        return Probe(batch=batch, passed=False, reason="too big" if batch > 2 else "broken", fatal=batch == 2)

    assert largest_batch(run, cap_bytes=1, limit=100)[:2] == (0, "broken")


def test_nothing_fits() -> None:
    batch, why, probes = largest_batch(machine(1), cap_bytes=110, limit=100)
    assert batch == 0
    assert why == "2 images do not fit: the cap was reached"
    assert [probe.batch for probe in probes] == [8, 2]


@given(st.integers(2, 7))
def test_small_edges_are_found(edge: int) -> None:
    assert largest_batch(machine(edge), cap_bytes=100 + 10 * edge, limit=1000)[0] == edge


@given(st.integers(2, 8), st.integers(2, 8))
def test_a_limit_below_the_first_size_is_kept(limit: int, edge: int) -> None:
    batch, _, probes = largest_batch(machine(edge), cap_bytes=100 + 10 * edge, limit=limit)
    assert batch == min(limit, edge)
    assert max(probe.batch for probe in probes) <= limit


def test_a_profile_survives_json() -> None:
    found = profile(batch=37)
    probes = (
        Probe(batch=8, passed=True, peak_bytes=1, wall_s=1.5),
        Probe(batch=37, passed=True, peak_bytes=2, timing=found.timing, wall_s=2.0),
        Probe(batch=38, passed=False, reason="no"),
    )
    whole = type(found)(**{**vars(found), "probes": probes})
    back = from_json(Profile, to_json(whole))
    assert back == whole
    assert back.timing.eval_image_s[160] == 0.0005  # keys are sizes again, not text
    assert back.wall_s == 3.5


def test_rates_are_of_images() -> None:
    found = profile(batch=30, step_s=0.1, dummy_step_s=0.05)
    assert (found.images_per_s, found.dummy_images_per_s) == (pytest.approx(300), pytest.approx(600))


# --- a neighbour's certificate ----------------------------------------------------------------------------------------


def certified(px: int, edge: int, image_bytes: int) -> Profile:
    """A profile found on a machine whose memory is a line."""
    cap = 10**6 + edge * image_bytes
    batch, why, probes = largest_batch(machine(edge, base=10**6, slope=image_bytes), cap_bytes=cap, limit=5000)
    return replace(profile(px=px, batch=batch), batch_why=why, probes=tuple(probes))


@given(st.integers(10, 900), st.integers(1_000, 50_000))
def test_a_neighbour_at_another_size_places_the_first_probe(edge: int, image_bytes: int) -> None:
    known = certified(160, edge, image_bytes)
    place = prior([known], replace(known.candidate, train_px=224))
    assert place is not None
    assert place.batch == int((edge + 0.5) / 1.96)
    assert place.image_bytes == pytest.approx(1.96 * image_bytes)
    true_edge = int((edge + 0.999) / 1.96)
    cap = 10**6 + int((true_edge + 0.5) * place.image_bytes)
    batch, _, probes = largest_batch(
        machine(true_edge, base=10**6, slope=int(place.image_bytes)), cap_bytes=cap, limit=5000, prior=place
    )
    assert batch == true_edge
    assert len(probes) <= 3


def test_no_neighbour_says_nothing() -> None:
    known = certified(160, 95, 10_000)
    for other in (
        known.candidate,
        replace(known.candidate, train_px=224, precision="fp32"),
        replace(known.candidate, train_px=224, model="resnet50"),
    ):
        assert prior([known], other) is None
    limited = replace(known, probes=known.probes[:1])
    assert prior([limited], replace(known.candidate, train_px=224)) is None


@given(st.integers(2, 400), st.integers(2, 400))
def test_a_prior_that_is_wrong_costs_probes_and_nothing_else(edge: int, promised: int) -> None:
    batch, _, probes = largest_batch(
        machine(edge), cap_bytes=100 + 10 * edge, limit=5000, prior=Prior(batch=promised, image_bytes=10.0)
    )
    assert batch == edge
    assert len({probe.batch for probe in probes}) == len(probes)
    assert len(probes) <= 24


@given(
    noise=st.floats(0, 0.3),
    stairs=st.integers(1, 40),
    slope=st.integers(1, 50_000),
    room=st.integers(2, 900),
    seed=st.integers(0, 999),
    promised=st.none() | st.integers(2, 900),
)
def test_whatever_memory_does_the_certificate_holds(
    noise: float, stairs: int, slope: int, room: int, seed: int, promised: int | None
) -> None:
    """Memory in stairs, falling here and there, or fragmented at random: another amount at every size."""
    base, limit = 10_000, 2_000
    cap_bytes = base + slope * room

    def needed_bytes(batch: int) -> int:
        rounded = -(-batch // stairs) * stairs
        return int(base + slope * rounded * (1 + noise * random.Random(1000 * batch + seed).uniform(-1, 1)))

    def run(batch: int) -> Probe:
        needed = needed_bytes(batch)
        passed = needed <= cap_bytes
        return Probe(batch=batch, passed=passed, peak_bytes=needed if passed else None, reason="" if passed else "no")

    place = None if promised is None else Prior(batch=promised, image_bytes=float(slope))
    batch, why, probes = largest_batch(run, cap_bytes=cap_bytes, limit=limit, prior=place)
    ran = {probe.batch: probe.passed for probe in probes}
    assert len(ran) == len(probes), "a size was run twice"
    assert len(probes) <= 60
    if batch == 0:
        assert not ran[2]
        assert why
    else:
        assert ran[batch]
        assert batch == limit or ran[batch + 1] is False


@given(st.integers(20, 900), st.integers(1_000, 50_000))
def test_after_a_scout_of_a_line_two_more_probes_make_a_certificate(edge: int, image_bytes: int) -> None:
    cap_bytes = 10**6 + int((edge + 0.5) * image_bytes)
    ask = machine(edge, base=10**6, slope=image_bytes)

    def run(batch: int) -> Probe:
        scouted = tuple((n, 10**6 + n * image_bytes) for n in (edge // 2, 9 * edge // 10) if batch < n <= edge)
        return replace(ask(batch), scouted=scouted if batch == 8 else ())

    batch, _, probes = largest_batch(run, cap_bytes=cap_bytes, limit=5000)
    assert batch == edge
    assert [probe.batch for probe in probes] == [8, edge, edge + 1]
