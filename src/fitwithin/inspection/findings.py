"""What an inspection found: facts, suspects, and what a model that did not see the images says of their labels."""

from __future__ import annotations

from dataclasses import dataclass

from fitwithin.data.inspection.facts import Facts
from fitwithin.data.inspection.suspects import Suspect

#: The files that an inspection writes.
PAGE, JSON, LIST = "inspect.html", "inspect.json", "suspects.csv"

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Two classes, and how many of the ``images`` of both are taken for the other one."""

    one: str
    other: str
    mixed: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How many images of a split have a twin in train and how many have none, and how many of each a linear head that
    was fitted to train gets right."""

    split: str
    leaked: int
    leaked_right: int
    clean: int
    clean_right: int


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What linear heads on features of these ``weights`` say of ``images`` that they did not see: how many they get
    ``right``, how many labels are wrong by confident learning, and which classes are mixed up."""

    weights: tuple[str, ...]
    images: int
    right: int
    expected_errors: int
    mixed: tuple[Mixed, ...]
    parts: tuple[Parts, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything about a data set. ``labels_why`` says what label errors were looked for with, or what it takes.
    ``too_small`` images were not compared for near twins. ``seconds`` are those of each step."""

    source: str
    created_at: str
    split_why: str
    facts: Facts
    suspects: tuple[Suspect, ...]
    too_small: int
    labels: Labels | None
    labels_why: str
    notes: tuple[str, ...]
    seconds: dict[str, float]
    schema: int = SCHEMA

    def of(self, what: str) -> tuple[Suspect, ...]:
        """The suspects of a kind, the surest first."""
        return tuple(each for each in self.suspects if each.what == what)
