"""A candidate: what may be trained. The grid of them is models x precisions x training sizes."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fitwithin.errors import UsageError

PRECISIONS = ("amp", "amp-bf16", "fp32", "tf32")

#: How a batch of images lies in memory: channel by channel, or pixel by pixel.
LAYOUTS = ("nchw", "channels_last")

#: The ten backbones of the paper's Table 2 (its "mobilenetv3" is timm's mobilenetv3_large_100 by parameter count).
TABLE_2 = (
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "efficientnet_b1",
    "resnet18",
    "resnest26d",
    "resnet50",
    "resnest50d_1s4x24d",
    "resnest50d",
    "resnest50d_4s2x40d",
    "resnet101",
)


@dataclass(frozen=True, kw_only=True, order=True)
class Candidate:
    """A timm backbone, a training size in pixels, a precision (one of PRECISIONS) and a layout (one of LAYOUTS).

    ``fp32`` is PyTorch's default float32 (on Ampere and later its convolutions may use TF32, as in the paper's runs),
    ``tf32`` lets matrix products use TF32 too; ``amp`` is autocast to float16 with loss scaling on CUDA, as the paper
    had it, and to bfloat16 on the CPU; ``amp-bf16`` is autocast to bfloat16 everywhere. The layout is CUDA's: the CPU
    always takes ``channels_last``. ``init`` names the pretrained weights that it starts from, as timm does
    (``resnet50.a1_in1k``); without it the weights are drawn.
    """

    model: str
    train_px: int
    precision: str
    layout: str = "nchw"
    init: str = ""

    @property
    def name(self) -> str:
        """A name unique within a grid and safe as a file name, such as ``resnet18-amp-160``."""
        return f"{self.init or self.model}-{self.precision}-{self.train_px}" + (
            "" if self.layout == "nchw" else f"-{self.layout}"
        )


#: Names for several backbones.
GROUPS = {"paper": TABLE_2}


def grid(
    models: Sequence[str], precisions: Sequence[str], sizes: Sequence[int], layouts: Sequence[str] = ("nchw",)
) -> list[Candidate]:
    """Every combination, in the order model, precision, layout, size; duplicates fall away."""
    return list(
        dict.fromkeys(
            Candidate(model=model, precision=precision, train_px=px, layout=layout)
            for model in models
            for precision in precisions
            for layout in layouts
            for px in sizes
        )
    )


def match(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The known model names that the patterns (``*``, ``?`` and ``[]`` as in a shell) name, in the patterns' order.
    ``paper`` names the ten of TABLE_2.

    Raises:
        UsageError: a pattern names no model; the message suggests near names.
    """
    found: dict[str, None] = {}
    available = set(known)
    for pattern in (name for word in patterns for name in GROUPS.get(word, (word,))):
        hits = [pattern] if pattern in available else fnmatch.filter(known, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern.strip("*"), known, n=4, cutoff=0.5)
            hint = f"; did you mean {', '.join(near)}?" if near else "; `fitwithin models` lists them"
            raise UsageError(f"no timm model is called {pattern!r}{hint}")
        found.update(dict.fromkeys(hits))
    return list(found)


def _words(value: str | Sequence[object], none_given: str) -> list[str]:
    """The words of a list, or of a text with commas between them; UsageError(``none_given``) if there is none."""
    parts = value.split(",") if isinstance(value, str) else map(str, value)
    if not (words := [part.strip() for part in parts if part.strip()]):
        raise UsageError(none_given)
    return words


def parse_models(value: str | Sequence[str]) -> tuple[str, ...]:
    """The names and patterns in ``resnet*,resnest26d``; UsageError if there is none."""
    return tuple(_words(value, "no model was given; write timm names or patterns, as in 'resnet*,resnest26d'"))


def parse_precisions(value: str | Sequence[str]) -> tuple[str, ...]:
    """The precisions in ``amp,fp32``; UsageError for any other word."""
    choose = f"choose from {', '.join(PRECISIONS)}"
    words = [word.lower() for word in _words(value, f"no precision was given; {choose}")]
    for word in words:
        if word not in PRECISIONS:
            raise UsageError(f"{word!r} is not a precision; {choose}")
    return tuple(dict.fromkeys(words))


def parse_sizes(value: str | Sequence[int]) -> tuple[int, ...]:
    """The sizes in pixels in ``160,224``, ascending; UsageError unless each is a whole number from 8 to 1024."""
    words = _words(value, "no image size was given; write pixels, as in 160,224")
    for word in words:
        if not (word.isdecimal() and len(word) <= 4 and 8 <= int(word) <= 1024):
            raise UsageError(f"{word!r} is not an image size; write pixels from 8 to 1024, as in 160,224")
    return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True, kw_only=True, order=True)
class View:
    """One way of looking at an image: its size in pixels, mirrored or not, and the model that looks: 0 is the winner,
    higher numbers are the other members of an ensemble."""

    px: int
    flip: bool
    member: int = 0

    @property
    def name(self) -> str:
        """``224 px``, ``224 px flipped`` or ``224 px of member 1``."""
        return f"{self.px} px{' flipped' * self.flip}{f' of member {self.member}' if self.member else ''}"


def views_of(sizes: Sequence[int], *, flips: bool) -> list[View]:
    """Sizes x {plain, flipped}; plain alone where the recipe does not flip."""
    return [View(px=px, flip=flip) for px in sorted(set(sizes)) for flip in ((False, True) if flips else (False,))]


def by_size(views: Sequence[View], train_px: int) -> list[list[View]]:
    """The views of each size, in the order in which they are evaluated: the training size, those above, those below."""
    ordered = sorted(views, key=lambda view: (view.px < train_px, view))
    return [list(same) for _, same in groupby(ordered, key=lambda view: view.px)]


def describe(views: Sequence[View]) -> str:
    """``160 + 224 with flips``: the views in a word, and how many other models look, too."""
    others = {view.member for view in views if view.member}
    if others:
        own = [view for view in views if not view.member]
        return f"{describe(own)}, and {len(others)} other model{'s' * (len(others) > 1)}"
    views = sorted(set(views))
    sizes = " + ".join(str(px) for px in sorted({view.px for view in views}))
    full = views_of([view.px for view in views], flips=True)
    if views == full:
        return f"{sizes} with flips"
    return sizes if not any(view.flip for view in views) else ", ".join(view.name for view in views)
