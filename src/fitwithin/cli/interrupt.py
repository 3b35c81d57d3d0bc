"""Ctrl-C ends a command, whatever it is doing."""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import typer

INTERRUPTED = "fitwithin: interrupted; continue the run with `fitwithin resume RUN`"

#: The exit code of what Ctrl-C ended.
INTERRUPTED_CODE = 128 + signal.SIGINT

STDERR = 2

#: Seconds that a process has after Ctrl-C to end its work and to close its ledger entries.
GRACE_S = 10.0


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what is inside and says how to continue; GRACE_S later it kills the process.

    KeyboardInterrupt may be raised where nothing can handle it: in a destructor, which loses it, or in a lock's own
    code, which then stays taken or raises another error (docs/log.md). Workers end with this process.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    Thread(target=_kill_after_grace, args=(reading,), name="interrupts", daemon=True).start()
    before = signal.set_wakeup_fd(writing)
    interrupted = False
    try:
        yield
    except BaseException as error:
        interrupted = _interrupts(error)
        if not interrupted:
            raise
        typer.echo(INTERRUPTED, err=True)
        raise typer.Exit(INTERRUPTED_CODE) from None
    finally:
        if not interrupted:  # else the process must end
            signal.set_wakeup_fd(before)
            os.close(writing)


def _interrupts(error: BaseException | None) -> bool:
    """Whether it is an interrupt, or was raised over one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _kill_after_grace(signals: int) -> None:
    """Kill the process GRACE_S after the first SIGINT that is read from ``signals``; return when that is closed."""
    ends_at = math.inf
    while (left_s := ends_at - time.monotonic()) > 0:
        if not select.select([signals], [], [], min(left_s, GRACE_S))[0]:
            continue
        numbers = os.read(signals, 64)
        if not numbers:
            os.close(signals)
            return
        if signal.SIGINT in numbers:
            ends_at = min(ends_at, time.monotonic() + GRACE_S)
    with suppress(OSError):  # not through sys.stderr, whose lock may be what was waited for
        os.write(STDERR, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_CODE)
