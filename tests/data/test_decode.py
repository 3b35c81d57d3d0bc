"""read_rgb and image_extensions: what every image mode becomes, and that damaged files raise what is announced."""

from __future__ import annotations

import io
import subprocess
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, UnidentifiedImageError

from fitwithin.data.decode import (
    CUT_SHORT,
    LOST_RANGE,
    MAX_PIXELS,
    ONE_COLOUR,
    SEVERAL_PAGES,
    UNREADABLE,
    image_extensions,
    read,
    read_rgb,
    shorter_side,
)


def test_extensions() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= image_extensions()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".wmf", ".txt", ""} & image_extensions()


def saved(image: Image.Image, format: str, **options: object) -> io.BytesIO:  # noqa: A002 - Pillow's word
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    buffer.seek(0)
    return buffer


def pixels(buffer: io.BytesIO) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_rgb(buffer)
    assert image.mode == "RGB"
    return np.asarray(image)


RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
ALPHA = np.tile(np.array([0, 255], dtype=np.uint8), (6, 4))
ON_WHITE = np.where(ALPHA[..., None] == 255, COLOURS, 255)
GREY_ON_WHITE = np.where(ALPHA == 255, GREY, 255)


def three(grey_HW: np.ndarray) -> np.ndarray:
    return np.repeat(grey_HW[..., None], 3, axis=2)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_keep_their_pixels(format: str) -> None:  # noqa: A002 - Pillow's word
    source = Image.fromarray(COLOURS)
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(pixels(saved(source, format, **options)), COLOURS)


def test_grey_and_black_and_white() -> None:
    assert np.array_equal(pixels(saved(Image.fromarray(GREY), "PNG")), three(GREY))
    assert np.array_equal(pixels(saved(Image.fromarray(GREY > 99), "PNG")), three((GREY > 99) * np.uint8(255)))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_transparency_is_laid_on_white(format: str) -> None:  # noqa: A002 - Pillow's word
    rgba = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    assert np.array_equal(pixels(saved(rgba, format)), ON_WHITE)
    grey_alpha = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
    assert np.array_equal(pixels(saved(grey_alpha, format)), three(GREY_ON_WHITE))


def palette() -> Image.Image:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8), "L")
    image.putpalette(COLOURS.reshape(-1).tobytes())
    assert image.mode == "P"
    return image


def test_palettes() -> None:
    assert np.array_equal(pixels(saved(palette(), "PNG")), COLOURS)
    with_alphas = saved(palette(), "PNG", transparency=ALPHA.tobytes())
    assert np.array_equal(pixels(with_alphas), ON_WHITE)
    one_clear = pixels(saved(palette(), "GIF", transparency=5))
    assert (one_clear[0, 5] == 255).all()
    assert np.array_equal(one_clear[1:], COLOURS[1:])


def test_a_transparent_colour_of_a_grey_or_rgb_png() -> None:
    grey = pixels(saved(Image.fromarray(GREY), "PNG", transparency=int(GREY[2, 3])))
    assert (grey[GREY[2, 3] == GREY] == 255).all()
    rgb = pixels(saved(Image.fromarray(COLOURS), "PNG", transparency=tuple(map(int, COLOURS[0, 0]))))
    assert (rgb[0, 0] == 255).all()
    assert np.array_equal(rgb[1:], COLOURS[1:])


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], dtype=np.uint16)
    expected = three(np.array([[0, 0, 1, 1, 128, 255, 255]], dtype=np.uint8))
    for format in ("PNG", "TIFF"):  # noqa: A001 - Pillow's word
        assert np.array_equal(pixels(saved(Image.fromarray(values), format)), expected)
    as_int32 = Image.fromarray(values.astype(np.int32))
    assert as_int32.mode == "I"
    assert np.array_equal(pixels(saved(as_int32, "TIFF")), expected)


@given(st.integers(0, 255))
def test_sixteen_bits_made_of_eight_come_back(value: int) -> None:
    wide = Image.fromarray(np.full((1, 2), value * 257, dtype=np.uint16))
    assert (pixels(saved(wide, "PNG")) == value).all()


def test_wide_integers_and_floats_are_stretched() -> None:
    integers = Image.fromarray(np.array([[0, 100_000, 200_000]], dtype=np.int32))
    assert pixels(saved(integers, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    floats = Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan, np.inf]], dtype=np.float32))
    assert pixels(saved(floats, "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    assert (pixels(saved(Image.new("F", (2, 2), 0.5), "TIFF")) == 0).all()


def test_other_colour_spaces() -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    for buffer in (saved(red.convert("CMYK"), "TIFF"), saved(red.convert("CMYK"), "JPEG", quality=95)):
        assert np.abs(pixels(buffer).astype(int) - (200, 30, 40)).max() <= 4
    assert np.abs(pixels(saved(red.convert("YCbCr"), "TIFF")).astype(int) - (200, 30, 40)).max() <= 4
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    in_lab = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
    assert in_lab is not None
    assert np.abs(pixels(saved(in_lab, "TIFF")).astype(int) - (200, 30, 40)).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_films_give_their_first_frame(format: str) -> None:  # noqa: A002 - Pillow's word
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    film = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (pixels(film) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # a white corner, top left
    undo = {
        **{1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180},
        **{4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90},
        **{7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270},
    }[orientation]
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for options in ({"format": "PNG"}, {"format": "JPEG", "quality": 100}):
        found = pixels(saved(stored, **options, exif=exif))
        assert found.shape == (16, 32, 3)
        assert found[:7, :7].min() > 200
        assert found[9:, 9:].max() < 50


def test_garbled_exif_costs_only_the_orientation() -> None:
    pixels(saved(Image.fromarray(COLOURS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbled"))


def test_a_jpeg_drafted_keeps_the_pixels_asked_for() -> None:
    source = saved(Image.new("RGB", (400, 1000), "teal"), "JPEG")
    assert read_rgb(source, at_least=100).size == (100, 250)
    assert read_rgb(source, at_least=101).size == (200, 500)
    assert read_rgb(source, at_least=500).size == (400, 1000)


def test_bombs_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"pixels.*; scale the image down"):
        pixels(io.BytesIO(b"P5 20000 20000 255\n"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match=rf"400000000 pixels where 1 to {MAX_PIXELS} can be read; scale"):
        pixels(io.BytesIO(b"P5 20000 20000 255\n"))


def test_no_warning_leaks_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 48 pixels: Pillow warns
    content = saved(palette(), "PNG", transparency=ALPHA.tobytes()).getvalue()
    filters = list(warnings.filters)
    failures: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(50):
                read_rgb(io.BytesIO(content))
        except (*UNREADABLE, Warning) as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert warnings.filters == filters


DAMAGEABLE = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "DDS"]
if ".avif" in image_extensions():
    DAMAGEABLE.append("AVIF")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_only_what_is_announced(data: st.DataObject) -> None:
    image = Image.fromarray(COLOURS)
    name = data.draw(st.sampled_from(DAMAGEABLE))
    content = bytearray(saved(image, name).getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with suppress(*UNREADABLE):
        assert read_rgb(io.BytesIO(bytes(content))).mode == "RGB"


# --- what is remarked on, and what is never done


def jpeg(width: int = 97, height: int = 33, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3, 10, 200])
def test_a_jpeg_without_its_end_marker_is_read_if_all_pixels_are_there(progressive: bool, cut: int) -> None:
    content = jpeg(progressive=progressive)
    if cut <= 2:
        found = read(io.BytesIO(content[:-cut]))
        assert found.remarks == (CUT_SHORT,)
        assert np.array_equal(np.asarray(found.image), np.asarray(read(io.BytesIO(content)).image))
    else:
        with pytest.raises(OSError, match="truncated"):
            read(io.BytesIO(content[:-cut]))


def test_an_eps_is_no_image_and_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    file = tmp_path / "drawing.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(OSError, match="no image that Pillow knows"):
        read(file)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image; `pip install pillow-heif`"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image; `pip install pillow-jxl-plugin`"),
        (b"", "the file is empty"),
        (b"version https://git-lfs", "no image that Pillow knows"),
    ],
)
def test_a_format_that_needs_a_package_is_named(head: bytes, words: str) -> None:
    with pytest.raises(UnidentifiedImageError, match=words):
        read(io.BytesIO(head))


def remarks(image: Image.Image, kind: str = "PNG", **options: object) -> tuple[str, ...]:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return read(io.BytesIO(file.getvalue())).remarks


def test_odd_pictures_are_remarked_on() -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64))
    assert remarks(Image.fromarray(noise.astype(np.uint16))) == ()
    assert remarks(Image.fromarray((30000 + noise % 2000).astype(np.uint16))) == (LOST_RANGE,)
    assert remarks(Image.new("RGB", (8, 8), "teal")) == (ONE_COLOUR,)
    pages = [Image.fromarray((noise % (9 + page)).astype(np.uint8)) for page in range(2)]
    assert remarks(pages[0], "TIFF", save_all=True, append_images=pages[1:]) == (SEVERAL_PAGES,)


def test_the_median_shorter_side_is_read_from_headers(tmp_path: Path) -> None:
    for number, size in enumerate(((40, 90), (200, 50), (60, 61))):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert shorter_side(sorted(tmp_path.iterdir())) == 50
    assert shorter_side([tmp_path / "broken.png", tmp_path / "absent.png"]) is None
