"""Licences of pretrained weights: which are permitted, and how a text is recognised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fitwithin.errors import UsageError

#: Licences that ask for no more than naming the authors: what ``permissive`` stands for.
PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")

#: The licence of what nobody has stated one for.
UNKNOWN = "unknown"

#: Words by which a licence's text is known, in this order: the first that is in it, blanks and capitals aside.
_WORDS = (
    ("cc-by-nc-sa-4.0", "attribution-noncommercial-sharealike 4.0"),
    ("cc-by-nc-nd-4.0", "attribution-noncommercial-noderivatives 4.0"),
    ("cc-by-nc-4.0", "attribution-noncommercial 4.0"),
    ("cc-by-sa-4.0", "attribution-sharealike 4.0"),
    ("cc-by-nd-4.0", "attribution-noderivatives 4.0"),
    ("cc-by-4.0", "attribution 4.0 international"),
    ("apache-2.0", "apache license, version 2.0"),
    ("apache-2.0", "apache license version 2.0"),
    ("bsd-3-clause", "neither the name of"),
    ("mit", "permission is hereby granted, free of charge, to any person"),
)

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def parse_licences(value: str | Sequence[str]) -> tuple[str, ...]:
    """The licences in ``permissive,cc-by-nc-4.0``, in lower case; ``permissive`` stands for PERMISSIVE.

    Raises:
        UsageError: there is none.
    """
    parts = value.split(",") if isinstance(value, str) else value
    words = [word for part in parts if (word := part.strip().lower())]
    if not words:
        raise UsageError(
            "no licence was given; write 'permissive', or names with commas between them, as in permissive,cc-by-nc-4.0"
        )
    return tuple(dict.fromkeys(name for word in words for name in (PERMISSIVE if word == "permissive" else (word,))))


def describe(licences: Sequence[str]) -> str:
    """What to write after ``--licences`` for these: :func:`parse_licences` is the inverse."""
    if set(PERMISSIVE) <= set(licences):
        return ",".join(("permissive", *(name for name in licences if name not in PERMISSIVE)))
    return ",".join(licences)


def refusal(name: str, licence: str, permitted: Sequence[str]) -> str:
    """Why weights are not used, and the option that would permit them; nothing if their licence is permitted."""
    if licence in permitted:
        return ""
    way = f"--licences {describe((*permitted, licence))} permits it"
    if licence == UNKNOWN:
        return f"nobody states a licence for {name}; {way}"
    return f"the licence of {name} is {licence}, which is not among those permitted; {way}"


def licence_of_text(text: str) -> str:
    """The licence that a text states, by its wording or as its only word; ``unknown`` if it is none of those above."""
    plain = " ".join(text.lower().split())
    if _NAME.fullmatch(plain):
        return plain
    return next((name for name, words in _WORDS if words in plain), UNKNOWN)


def licence_in(folder: Path) -> str:
    """The licence that LICENSE, LICENCE or COPYING in that folder states; nothing if there is no such file."""
    for path in sorted(folder.iterdir()):
        if path.stem.upper() in ("LICENSE", "LICENCE", "COPYING") and path.suffix.lower() in ("", ".txt", ".md"):
            return licence_of_text(path.read_text(encoding="utf-8", errors="replace"))
    return ""
