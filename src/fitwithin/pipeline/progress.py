"""What a run tells of its progress, to whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Told what is going on, from any thread; decides how to show it. Where several work at once each has a lane."""

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """A stretch of work begins; the one before has ended: that of its lane, or without a lane all of them."""

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """The stretch has come so far."""

    def say(self, line: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """Nothing."""

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
