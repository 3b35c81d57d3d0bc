"""Ctrl-C ends a command whatever it is at, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import typer

from fitwithin.cli import interrupt

#: A command that is interrupted in the middle of ``{work}``, which says when, with a grace of one second.
PROGRAM = """
import os, signal, sys, threading, time
from fitwithin.cli import interrupt

interrupt.GRACE_S = 1.0

def at_work():
    print("at work", flush=True)

def main():
    with interrupt.interruptible():
        {work}
        print("went on", flush=True)

try:
    main()
except interrupt.typer.Exit as left:
    sys.exit(left.exit_code)
"""

SLEEPS = """at_work()
        time.sleep(20)"""

#: As a destructor does that an interrupt comes into, or a lock that it leaves taken.
LOSES_IT = """try:
            at_work()
            time.sleep(20)
        except KeyboardInterrupt:
            time.sleep(20)"""

#: As what the interrupt leaves behind does while the process ends.
NEVER_ENDS = """threading.Thread(target=time.sleep, args=(20,)).start()
        at_work()
        time.sleep(20)"""


@pytest.mark.parametrize(
    ("work", "least_s"), [(SLEEPS, 0.0), (LOSES_IT, 0.9), (NEVER_ENDS, 0.9)], ids=["sleeps", "loses it", "never ends"]
)
def test_an_interrupt_ends_the_process(work: str, least_s: float) -> None:
    command = [sys.executable, "-c", PROGRAM.format(work=work)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        begun_at = time.monotonic()
        out, err = process.communicate(timeout=15)
        assert least_s <= time.monotonic() - begun_at < 10
    assert process.returncode == 130
    assert out == ""
    assert set(err.splitlines()) == {interrupt.INTERRUPTED}


@contextmanager
def listening() -> Iterator[None]:
    """Nobody listens for signals afterwards who did not before."""
    before = threading.active_count()
    yield
    ends_at = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_command_that_ends_leaves_nothing_behind() -> None:
    with listening(), interrupt.interruptible():
        signals = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(signals)
        assert signals != -1


def test_an_error_passes() -> None:
    with listening(), pytest.raises(ValueError, match="bad"), interrupt.interruptible():
        raise ValueError("bad")


def lock() -> None:
    """An interrupt comes into a lock, which then is not taken where its block ends: as Condition.wait does."""
    lock = threading.Lock()
    with lock:
        lock.release()
        raise KeyboardInterrupt


def test_an_error_that_an_interrupt_led_to_is_the_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="unlocked"):
        lock()
    with pytest.raises(typer.Exit) as left, interrupt.interruptible():
        lock()
    assert left.value.exit_code == 130
    assert capsys.readouterr().err == interrupt.INTERRUPTED + "\n"
    os.close(signal.set_wakeup_fd(-1))  # as the end of the process would
