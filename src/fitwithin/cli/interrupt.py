"""Ctrl-C ends a command, whatever it is at."""

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

INTERRUPTED = "fitwithin: interrupted; `fitwithin resume RUN` goes on where it stands"

#: The exit code of what Ctrl-C ended.
INTERRUPTED_CODE = 128 + signal.SIGINT

STDERR = 2

#: Seconds that a process has after Ctrl-C to end what it began and to settle its books.
GRACE_S = 10.0


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what is inside and says how to go on; the process itself after GRACE_S.

    Python raises KeyboardInterrupt between any two of its instructions, also where nobody can: in a destructor, which
    loses it, or in a lock's own code, which stays taken or raises something else (docs/log.md). Its workers end with
    this process, and a run goes on from wherever it was ended.
    """
    heard, signals = os.pipe()
    os.set_blocking(signals, False)
    Thread(target=_end, args=(heard,), name="interrupts", daemon=True).start()
    before = signal.set_wakeup_fd(signals)
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
            os.close(signals)


def _interrupts(error: BaseException | None) -> bool:
    """Whether it is an interrupt, or was raised over one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _end(heard: int) -> None:
    """End the process GRACE_S after the first SIGINT that is ``heard`` of; not where no signals come any more."""
    ends_at = math.inf
    while (left_s := ends_at - time.monotonic()) > 0:
        if not select.select([heard], [], [], min(left_s, GRACE_S))[0]:
            continue
        numbers = os.read(heard, 64)
        if not numbers:
            os.close(heard)
            return
        if signal.SIGINT in numbers:
            ends_at = min(ends_at, time.monotonic() + GRACE_S)
    with suppress(OSError):  # not through sys.stderr, whose lock may be what was waited for
        os.write(STDERR, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_CODE)
