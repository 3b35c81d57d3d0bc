"""Pictures for these tests: clouds with details, no two alike, and what people do to pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Change = Callable[[Image.Image], Image.Image]


def picture(seed: int, width: int = 120, height: int = 96) -> Image.Image:
    """Coarse shapes, with middle and fine ones in them."""
    rng = np.random.default_rng(seed)
    whole = np.zeros((height, width, 3))
    for cells, strength in ((4, 55), (10, 35), (30, 22)):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        whole += strength / 74 * (np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) - 128)
    return Image.fromarray(np.clip(whole + 128, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def again(image: Image.Image, quality: int) -> Image.Image:
    """As it is after it was stored at that quality."""
    return Image.open(io.BytesIO(jpeg(image, quality))).convert("RGB")


def cropped(image: Image.Image, left: float, top: float, side: float = 0.9) -> Image.Image:
    """A window of that share of both sides, which begins at those shares of what is cut off."""
    width, height = image.size
    x, y = left * (1 - side) * width, top * (1 - side) * height
    return image.crop((round(x), round(y), round(x + side * width), round(y + side * height)))


#: What makes near twins.
CHANGES: dict[str, Change] = {
    "jpeg at 50": lambda image: again(image, 50),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "crop": lambda image: cropped(image, 0.2, 0.9),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored crop, jpeg at 50": lambda image: again(
        cropped(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 1.0, 0.0), 50
    ),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by 90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "over the diagonal": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "brighter": lambda image: image.point(lambda value: min(255, int(0.8 * value + 40))),
}


def write(root: Path, files: dict[str, bytes]) -> Path:
    """The files at their paths below ``root``."""
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root
