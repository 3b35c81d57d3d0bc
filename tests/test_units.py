"""Units: what is printed can be read back; what cannot be read is refused with a way out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwithin.errors import UsageError
from fitwithin.units import duration, format_count, format_duration, format_size, rate, size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("6GiB", 6 * 2**30),
        ("6 gib", 6 * 2**30),
        ("6GB", 6 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5KiB", 1536),
        (".5kb", 500),
        ("1073741824", 2**30),
        ("7B", 7),
        (" 1TiB ", 2**40),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert size(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h", 10800),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("90s", 90),
        ("90", 90),
        ("5ms", 0.005),
        ("1.5min", 90),
        ("2d", 172800),
        (".5s", 0.5),
        ("1H", 3600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "GiB", "six", "-1GiB", "1 GiB 2", "1XiB", "1e9", "nan", "0x10", "٦GiBx", "6 G i B"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="not a memory size; write a number and a unit, as in 6GiB"):
        size(text)


@pytest.mark.parametrize(("text", "per_s"), [("2000/s", 2000.0), ("2 000 /s", 2000.0), ("0.5", 0.5)])
def test_rates(text: str, per_s: float) -> None:
    assert rate(text) == per_s


@pytest.mark.parametrize("text", ["", "fast", "0/s", "-3", "2000/min", "1e3", "nan"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="as in 2000/s"):
        rate(text)


@pytest.mark.parametrize("text", ["", "h", "three hours", "-3h", "1h-30m", "1w", "1e3s", "inf", "3:00", "1h30x"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration; write a number and a unit, as in 3h"):
        duration(text)


@pytest.mark.parametrize("text", ["0", "0GiB", "0.2B"])
def test_no_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="leaves nothing to work with"):
        size(text)


@pytest.mark.parametrize("text", ["0", "0s", "0h0m"])
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="leaves no time"):
        duration(text)


@pytest.mark.parametrize("parse", [size, duration])
def test_what_no_float_holds_is_refused(parse: object) -> None:
    with pytest.raises(UsageError, match=r"too (large|long)"):
        parse("9" * 400)


@given(st.integers(1, 2**50))
def test_plain_bytes_round_trip(n_bytes: int) -> None:
    assert size(str(n_bytes)) == n_bytes


@given(st.floats(1, 2**45))
def test_a_printed_size_reads_back_within_its_three_digits(n_bytes: float) -> None:
    assert size(format_size(n_bytes)) == pytest.approx(n_bytes, rel=0.0051, abs=0.51)


@given(st.floats(1e-3, 10 * 86400))
def test_a_printed_duration_reads_back_within_its_two_units(seconds: float) -> None:
    """Its smaller unit is 0.1 ms, 0.1 s, 1 s or 1 minute."""
    unit_s = 1e-4 if seconds < 0.9995 else 0.1 if seconds < 59.95 else 1 if round(seconds) < 3600 else 60
    assert duration(format_duration(seconds)) == pytest.approx(seconds, abs=unit_s * 0.5001)


@given(st.floats(0, 10 * 86400), st.floats(0, 10 * 86400))
def test_a_longer_duration_never_prints_as_a_shorter_one(a: float, b: float) -> None:
    def back(seconds: float) -> float:
        text = format_duration(seconds)
        return 0.0 if text in ("0s", "0.0ms") else duration(text)

    low, high = sorted((a, b))
    assert back(low) <= back(high) * (1 + 1e-12)


@given(st.floats(0.001, 1e6))
def test_what_is_overspent_prints_with_its_sign(seconds: float) -> None:
    assert format_duration(-seconds) == "-" + format_duration(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.008, "8.0ms"),
        (12.5, "12.5s"),
        (59.96, "1m 00s"),
        (250, "4m 10s"),
        (3599.4, "59m 59s"),
        (3599.6, "1h 00m"),
        (10800, "3h 00m"),
        (90061, "25h 01m"),
    ],
)
def test_printed_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(12, "12 B"), (310 * 2**20, "310 MiB"), (6 * 2**30, "6.00 GiB"), (1.5 * 2**40, "1.50 TiB"), (0, "0 B")],
)
def test_printed_sizes(n_bytes: float, text: str) -> None:
    assert format_size(n_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(23.7e6, "23.7M"), (1300, "1.3k"), (812, "812"), (2e9, "2.0B"), (0, "0")])
def test_printed_counts(count: float, text: str) -> None:
    assert format_count(count) == text
    assert math.isfinite(count)
