"""What a model looks at in prediction is what it was validated on."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitwithin.data.batches import resize
from fitwithin.data.framing import Frame
from fitwithin.inference.crops import cropper
from fitwithin.inference.sources import Source
from fitwithin.recipe import FITS


@given(
    st.integers(5, 300),
    st.integers(5, 300),
    st.sampled_from([32, 96]),
    st.sampled_from([0.9, 1.0]),
    st.sampled_from(FITS),
    st.integers(0, 9),
)
def test_pixels_are_those_of_the_evaluation(height: int, width: int, px: int, crop: float, fit: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    (found,) = cropper(f"{px},48", str(Frame(crop, fit)))([Source(name="x", content=image)])
    assert isinstance(found, dict)
    assert {*found} == {px, 48}
    expected = resize(np.asarray(image), Frame(crop, fit).box(height, width), np.empty((px, px, 3), np.uint8))
    assert np.abs(found[px].astype(int) - expected).max() <= 2


def test_what_cannot_be_read_says_why() -> None:
    good = Source(name="a", content=Image.new("RGB", (9, 9)))
    found = cropper("16", "1.0 crop")([good, Source(name="b", content=b"nothing"), good])
    assert [isinstance(each, dict) for each in found] == [True, False, True]
    assert found[1] == "no image that Pillow knows"
