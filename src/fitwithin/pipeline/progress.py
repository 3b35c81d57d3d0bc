"""What a run reports of its progress."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Shows what is going on; called from any thread. Slots that work side by side have a lane each."""

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """A stretch of work begins, and the one before in its lane ends; without a lane all of them end."""

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """``done`` of ``total`` of the stretch is done."""

    def say(self, line: str) -> None:
        """A line to show as it is."""


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int | None = None, lane: int | None = None) -> None:
        """Nothing."""

    def advance(self, done: int, total: int | None, text: str = "", lane: int | None = None) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
