"""Who may work while another measures: jobs work side by side, and one that takes the time works alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Visit:
    """A job's stay: it works beside others until it asks to be alone."""

    def __init__(self, quiet: Quiet) -> None:
        self._quiet = quiet
        self.measuring = False

    def alone(self, until_at: float) -> bool:
        """Rest until everybody else rests or has left, then go on as the only one; False if ``until_at`` came first."""
        self.measuring = self._quiet.measure(until_at)
        return self.measuring

    def back(self) -> None:
        """Work beside others again."""
        if self.measuring:
            self.measuring = False
            self._quiet.measured()


class Quiet:
    """Any number of working jobs, or one that measures."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._measuring = False

    @contextmanager
    def visit(self) -> Iterator[Visit]:
        """Work, once nobody measures any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._measuring)
            self._working += 1
        visit = Visit(self)
        try:
            yield visit
        finally:
            with self._changed:
                if visit.measuring:
                    self._measuring = False
                else:
                    self._working -= 1
                self._changed.notify_all()

    def measured(self) -> None:
        """Turn from measuring to working."""
        with self._changed:
            self._measuring = False
            self._working += 1
            self._changed.notify_all()

    def measure(self, until_at: float) -> bool:
        """Turn from working to measuring; False, and working still, if ``until_at`` (monotonic) came first."""
        with self._changed:
            self._working -= 1
            self._changed.notify_all()
            free = self._changed.wait_for(
                lambda: self._working == 0 and not self._measuring, timeout=max(0.0, until_at - time.monotonic())
            )
            if free:
                self._measuring = True
            else:
                self._working += 1
            return free
