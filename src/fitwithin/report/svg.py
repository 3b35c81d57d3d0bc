"""SVG that is drawn with matplotlib and stands inside a page: its style and colours, and what makes it fit for that.

Text stays text, ids are unique across the charts, the background is clear and axes take the page's own text colour, so
that one chart serves a light page, a dark one and paper.
Why matplotlib: docs/decisions/0003-charts-with-matplotlib-svg.md. It is imported inside functions: 1.4 s.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from threading import Thread
from typing import Any

#: Okabe and Ito's colours that keep 3:1 contrast, or nearly, on white and on near-black; told apart by dashes as well.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8A8A8A"
#: No chart draws in this colour: it is the stand-in for the page's text colour, put in place after drawing.
INK = "#010203"

_WIDTH_IN = 5.4
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fitwithin",
    "text.parse_math": False,  # a "$" in a name is a dollar
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same layout everywhere
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.columnspacing": 1.3,
    "legend.handletextpad": 0.5,
    "legend.handlelength": 1.7,
}


def preload() -> None:
    """Begin to :func:`load` in a thread: whoever reads files meanwhile waits for the disk."""
    Thread(target=load, name="import").start()


def load() -> None:
    """Import what charts are drawn with, or wait until that is done."""
    import_module("matplotlib.backends.backend_svg")


def svg(draw: Callable[[Any], None], height_in: float, name: str, title: str, description: str) -> str:
    """Draw on a fresh figure and return SVG to stand inside a page, with ``name`` before each of its ids."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    # The SVG writer reads its options from rcParams; the context puts them back, and no pyplot state is touched.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name with signs that DejaVu lacks is drawn by the reader's own fonts: text stays text.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained", facecolor="none")
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), name, title, description)


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """Matplotlib's SVG document as an element of a page: no prolog, own ids, the page's fonts and colour, a title."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    # Its style sheet says "*", which would reach the whole page: say it on the root element instead.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'\bxlink:href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = re.sub(INK, "currentColor", body, flags=re.I)
    box = re.search(r'viewBox="([^"]+)"', body)
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1] if box else ""}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc" style="stroke-linejoin: round; stroke-linecap: butt">\n'
        f' <title id="{name}-title">{html.escape(title)}</title>\n'
        f' <desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: root, body, count=1).strip()


def short(name: str, limit: int = 26) -> str:
    """The name, its middle left out where it is longer than ``limit``: both ends of a timm name tell models apart."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def time_unit(seconds: Sequence[float]) -> tuple[float, str]:
    """The divisor and the name of the unit in which the longest of these reads best."""
    longest = max(seconds)
    return (3600.0, "hours") if longest >= 2 * 3600 else (60.0, "minutes") if longest >= 180 else (1.0, "seconds")
