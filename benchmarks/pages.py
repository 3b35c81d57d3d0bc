"""Pages of results in Markdown: text in lines, tables, and whether targets are met."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: Of a line of prose.
WIDTH = 120

#: Okabe and Ito's colours that keep 3:1 contrast, or nearly, on white and on near-black. (Pictures need matplotlib.)
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8A8A8A"


class Target(NamedTuple):
    """A number of the summary: its words and form, what it should be at least or at most, and what it is made from.

    ``base`` is the summary's count of that, if it has one: with none of them the number says nothing.
    """

    key: str
    words: str
    form: str
    least: float | None = None
    most: float | None = None
    base: str = ""

    @property
    def bound(self) -> str:
        """The target as the table has it."""
        if self.least is not None:
            return f"≥ {self.least:g}"
        return "–" if self.most is None else f"≤ {self.most:g}"

    def met(self, number: float) -> bool | None:
        """Whether it is; None without a target."""
        if self.least is not None:
            return number >= self.least
        return None if self.most is None else number <= self.most


def targets(wanted: Sequence[Target], summary: dict[str, Any]) -> list[str]:
    """Whether each target is met, as a sentence and a table."""
    lines: list[list[str]] = []
    keys: dict[str, list[str]] = {"yes": [], "**no**": [], "–": [], "absent": []}
    for target in wanted:
        number = summary.get(target.key)
        if number is None or (target.base and not summary.get(target.base)):
            keys["absent"] += [f"`{target.key}`"] if target.bound != "–" else []
            continue
        verdict = {None: "–", True: "yes", False: "**no**"}[target.met(number)]
        keys[verdict].append(f"`{target.key}`")
        lines.append([f"`{target.key}`", target.words, minus(target.form.format(number)), target.bound, verdict])
    met, missed, absent = keys["yes"], keys["**no**"], keys["absent"]
    told = f"Met: {len(met)} of the {len(met) + len(missed)} targets that were measured."
    told += f" Missed: {', '.join(missed)}." if missed else ""
    told += f" Not measured in this result: {', '.join(absent)}." if absent else ""
    listed = table(["Key", "What", "Result", "Target", "Met"], lines, left=2)
    return ["## Result and targets", "", *text(told), *listed]


def origin(value: dict[str, Any], theme: str) -> list[str]:
    """Where a page comes from: the script, the commits of its rows, the result, hardware and versions."""
    versions = ", ".join(f"{key} {version}" for key, version in value["versions"].items())
    commits = ", ".join(
        f"`{commit[:12]}`" for commit in dict.fromkeys(row.get("commit", value["commit"]) for row in value["rows"])
    )
    return text(
        f"Made by `benchmarks/{theme}.py` on {value['date']} and before, at {commits}, from "
        f"`benchmarks/results/{theme}.json`. Hardware: {value['hardware']}. Versions: {versions}."
    )


def gpu(rows: Sequence[dict[str, Any]]) -> str:
    """On which GPUs rows were made."""
    return ", ".join(dict.fromkeys(row["hardware"].split(",")[0].removeprefix("NVIDIA ") for row in rows))


def text(paragraph: str) -> list[str]:
    """The paragraph in lines, and an empty one."""
    return [*textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False), ""]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table, its first columns to the left and the others to the right, and an empty line."""
    if not rows:
        return []
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def minus(number: str) -> str:
    """With the sign that Markdown shows as a minus."""
    return number.replace("-", "−")


def save(path: Path, text: str) -> None:
    """Write a page, with one newline at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
