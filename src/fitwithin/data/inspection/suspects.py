"""What may be wrong with which image, why, and what to do about it: the rows of the list that a person edits."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fitwithin.data.dataset import SPLITS, Dataset
from fitwithin.data.inspection.exclusions import EXCLUDE, PATH
from fitwithin.data.inspection.facts import odd
from fitwithin.data.inspection.label_errors import Suspicion
from fitwithin.data.inspection.look import Seen
from fitwithin.data.inspection.twins import Twins

#: What can be wrong, in the order of the report, with its heading.
KINDS = {
    "broken": "Files that cannot be read",
    "two labels": "The same picture under two labels",
    "leak": "The same picture in two splits",
    "copy": "Copies",
    "near twin": "Near twins",
    "label": "Labels that are likely to be wrong",
    "odd": "Odd images",
}

#: What each is about, in a sentence.
ABOUT = {
    "broken": "They are left out of every run.",
    "two labels": "At least one of the labels is wrong, or an image shows both things.",
    "leak": "A model is tested on what it has learnt by heart: its accuracy there is too good. The list leaves the "
    "training image out.",
    "copy": "The same bytes in one class and split. The list keeps one of each.",
    "near twin": "The same picture mirrored, turned, cropped, resized or compressed anew, in one class and split. They "
    "do no harm in training, but count twice. The list keeps them.",
    "label": "A model that did not see the image is sure of another class. Look at each: some are right, and hard.",
    "odd": "They are read all the same.",
}


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image and what may be wrong with it: one of KINDS. ``other`` is the image that it is like, ``likeness`` how
    sure that is, or how much more probable another class is, 0 to 1; ``exclude`` is what the list proposes."""

    path: str
    label: str
    split: str
    what: str
    why: str
    suggestion: str
    exclude: bool = False
    other: str = ""
    likeness: float = 1.0


def suspects(
    dataset: Dataset, seen: Sequence[Seen], twins: Iterable[Twins], labels: Suspicion | None
) -> tuple[Suspect, ...]:
    """All suspects, by kind, and within each the surest first."""
    found: dict[tuple[str, int], Suspect] = {}
    judge = _Judge(dataset, seen)
    for position, suspect in (*judge.files(), *(each for pair in twins for each in judge.twins(pair))):
        key = suspect.what, position
        if key not in found or found[key].likeness < suspect.likeness:
            found[key] = suspect
    if labels is not None:
        for position, better, log_ratio in zip(*labels[:3], strict=True):
            found["label", int(position)] = judge.label(int(position), int(better), float(log_ratio))
    order = list(KINDS)
    return tuple(sorted(found.values(), key=lambda each: (order.index(each.what), -each.likeness, each.path)))


class _Judge:
    """Says of images what may be wrong with them."""

    def __init__(self, dataset: Dataset, seen: Sequence[Seen]) -> None:
        self._samples, self._classes, self._seen = dataset.samples, dataset.classes, seen

    def _name(self, label: int) -> str:
        return self._classes[label] if label >= 0 else ""

    def _suspect(
        self,
        position: int,
        what: str,
        why: str,
        suggestion: str,
        *,
        exclude: bool = False,
        other: str = "",
        likeness: float = 1.0,
    ) -> tuple[int, Suspect]:
        sample = self._samples[position]
        return position, Suspect(
            path=sample.path,
            label=self._name(sample.label),
            split=sample.split,
            what=what,
            why=why,
            suggestion=suggestion,
            exclude=exclude,
            other=other,
            likeness=round(likeness, 6),
        )

    def files(self) -> Iterable[tuple[int, Suspect]]:
        """Files that cannot be read, and odd ones."""
        for position, each in enumerate(self._seen):
            if each.reason:
                yield self._suspect(position, "broken", each.reason, "repair it or leave it out", exclude=True)
            elif remarks := odd(each):
                yield self._suspect(position, "odd", "; ".join(remarks), "look at it")

    def twins(self, pair: Twins) -> Iterable[tuple[int, Suspect]]:
        """What is wrong about two images that are the same picture."""
        kept, left = sorted((pair.one, pair.other), key=self._worth)
        one, other = self._samples[kept], self._samples[left]
        same = "the same bytes as" if pair.exact else "a near twin of"
        if -1 not in (one.label, other.label) and one.label != other.label:
            for mine, theirs in ((kept, left), (left, kept)):
                partner = self._samples[theirs]
                yield self._suspect(
                    mine,
                    "two labels",
                    f"{same} an image of {self._name(partner.label)} in {partner.split}",
                    "find the right label, and leave the other image out",
                    other=partner.path,
                    likeness=pair.likeness,
                )
        what = "leak" if one.split != other.split else "copy" if pair.exact else "near twin"
        if what != "leak" and one.label != other.label:
            return
        yield self._suspect(
            left,
            what,
            f"{same} an image in {one.split}",
            "leave it out" if what != "near twin" else "keep it, or leave it out",
            exclude=what != "near twin",
            other=one.path,
            likeness=pair.likeness,
        )

    def _worth(self, position: int) -> tuple[int, int, str]:
        """What is kept comes first: test before val before train, large before small, by name."""
        sample, seen = self._samples[position], self._seen[position]
        return -SPLITS.index(sample.split), -seen.width * seen.height, sample.path

    def label(self, position: int, better: int, log_ratio: float) -> Suspect:
        """A label that is likely to be wrong."""
        name, times = self._name(better), math.exp(min(log_ratio, 20.0))
        most = "more than 1,000" if times > 1000 else f"{times:.0f}"
        return self._suspect(
            position,
            "label",
            f"{name} is {most} times as probable",
            f"look at it: {name}?",
            likeness=times / (1 + times),
        )[1]


#: The columns of the list. The first is the one to edit.
COLUMNS = (EXCLUDE, PATH, "class", "split", "what", "why", "other", "suggestion")


def to_csv(found: Iterable[Suspect]) -> str:
    """The list as a spreadsheet reads it."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for each in found:
        row = (each.path, each.label, each.split, each.what, each.why, each.other, each.suggestion)
        writer.writerow(("yes" if each.exclude else "no", *row))
    return out.getvalue()
