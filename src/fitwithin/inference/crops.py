"""What a model looks at: its part of a picture at the sizes of its views.

Shape suffixes: H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from fitwithin.data import crew
from fitwithin.data.crew import Done
from fitwithin.data.decode import UNREADABLE
from fitwithin.data.framing import BORDER, Frame
from fitwithin.inference.sources import Source
from fitwithin.machine import cores

#: A picture at each size, uint8 [px, px, 3]; or why it cannot be read.
Crops = dict[int, npt.NDArray[np.uint8]] | str


#: Pictures that a process reads for one answer, and how many answers of each may wait.
AT_ONCE, WINDOW = 8, 3


def read_all(
    sources: Iterable[Source], sizes: Sequence[int], frame: Frame, *, total: int | None = None
) -> Generator[Done, None, None]:
    """Read pictures by several processes, from now on, in their order: their crops, or why there are none. ``total``
    says how many there are, if that is known."""
    words = [",".join(map(str, sorted(sizes))), str(frame)]
    workers = cores()
    window = WINDOW * workers * AT_ONCE
    found = crew.work(
        f"{__name__}:cropper", words, sources, workers=workers, at_once=AT_ONCE, total=total, window=window
    )
    return crew.ahead(found, window)


def cropper(sizes: str, frame: str) -> Callable[[list[Source]], list[Crops]]:
    """A function that reads pictures for views of these ``sizes`` (in pixels, with commas between them), as the
    ``frame`` of that text shows them."""
    pixels, shown = [int(word) for word in sizes.split(",")], Frame.parse(frame)

    def crop_some(sources: list[Source]) -> list[Crops]:
        return [_crops(source, pixels, shown) for source in sources]

    return crop_some


def _crops(source: Source, sizes: Sequence[int], frame: Frame) -> Crops:
    """The image itself is let go. Pillow resamples as the evaluation does (data/batches.py), without its libraries."""
    try:
        # A JPEG may be decoded at a fraction that leaves twice the pixels of the largest view's crop.
        image = source.read(math.ceil(2 * max(sizes) / frame.crop))
        box = frame.box(image.height, image.width)
        part = image.crop(box)
        if min(box[:2]) < 0:  # Pillow leaves black what lies beyond
            part = Image.new("RGB", part.size, BORDER)
            part.paste(image, (-box[0], -box[1]))
        resized = {px: part.resize((px, px), Image.Resampling.BILINEAR) for px in sizes}
        return {px: np.asarray(each) for px, each in resized.items()}
    except MemoryError:
        return "there is not enough memory to read it"
    except UNREADABLE as error:
        return str(error) or type(error).__name__
