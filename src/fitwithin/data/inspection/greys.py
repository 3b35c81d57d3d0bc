"""Small grey pictures of all images in one file, so that a million of them take 2.3 GB on disk and none in memory."""

# N images, P = SIDE pixels

from __future__ import annotations

import os
import tempfile
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

#: The side of the grey pictures. At 32 one in fifty crops of 90 % is not told from other images; at 64 no more are than
#: at 48 (mini-imagenet at 84 px).
SIDE = 48

BYTES = SIDE * SIDE

Greys8 = npt.NDArray[np.uint8]


def grey_of(image: Image.Image) -> Greys8:
    """The image squashed into a square, in grey, uint8 [P, P]. The filter keeps fine patterns from leaving false ones:
    with a box one in forty crops of clothing was lost."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.uint8)


class Greys:
    """``count`` grey pictures, black at first, in a file without a name that goes with this.

    Raises:
        OSError: there is no room for them in the temporary folder.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._file = tempfile.TemporaryFile(prefix="fitwithin-")  # noqa: SIM115 - closed by close()
        if count:
            try:
                os.posix_fallocate(self._file.fileno(), 0, count * BYTES)
            except OSError:
                self._file.close()
                raise

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Greys:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the room back."""
        self._file.close()

    def put(self, first: int, greys: bytes) -> None:
        """Store one picture or more, from the position ``first`` on."""
        os.pwrite(self._file.fileno(), greys, first * BYTES)

    def run(self, first: int, stop: int) -> Greys8:
        """Those from ``first`` to before ``stop``, uint8 [N, P, P]."""
        stop = min(stop, self._count)
        found = os.pread(self._file.fileno(), (stop - first) * BYTES, first * BYTES)
        return np.frombuffer(found, np.uint8).reshape(-1, SIDE, SIDE)

    def at(self, positions: npt.NDArray[np.int64]) -> Greys8:
        """Those at the positions, uint8 [N, P, P]."""
        out = np.empty((len(positions), SIDE, SIDE), np.uint8)
        for place, position in zip(out, positions.tolist(), strict=True):
            place[:] = self.run(position, position + 1)[0]
        return out
