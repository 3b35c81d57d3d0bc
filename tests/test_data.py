"""scan, without and read_rgb: laws of the split and the fingerprint, then layouts, refusals and image modes."""

from __future__ import annotations

import io
import os
import shutil
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from fitwithin.data import (
    MAX_PIXELS,
    UNREADABLE,
    Broken,
    Dataset,
    Sample,
    _drawn,
    image_extensions,
    read_rgb,
    scan,
    without,
)
from fitwithin.errors import DataError

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(colour: object = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def tree(root: Path, *paths: str) -> Path:
    """Writes an image at every path that is one, text elsewhere; each file differs from the others."""
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png((number % 256, number // 256, 0)) if file.suffix == ".png" else b"some text")
    return root


def flat(root: Path, **sizes: int) -> Path:
    return tree(root, *(f"{name}/{i:03}.png" for name, n in sizes.items() for i in range(n)))


def splits(dataset: Dataset) -> dict[str, str]:
    return {sample.path: sample.split for sample in dataset.samples}


# --- the split


@given(sizes=st.lists(st.integers(2, 60), min_size=2, max_size=4), seed=st.integers(0, 5), with_test=st.booleans())
def test_a_drawn_split_is_a_stratified_partition(sizes: list[int], seed: int, with_test: bool) -> None:
    before = [
        Sample(path=f"{label}/{i}", label=label, split="train") for label, n in enumerate(sizes) for i in range(n)
    ]
    after = _drawn(before, seed=seed, with_test=with_test)
    assert sorted((s.path, s.label) for s in after) == sorted((s.path, s.label) for s in before)
    for label, n in enumerate(sizes):
        count = {split: sum(s.label == label and s.split == split for s in after) for split in ("train", "val", "test")}
        assert count["val"] == max(1, round(n / 10))
        assert count["test"] == (round(n / 10) if with_test and n >= 3 else 0)
        assert count["train"] >= 1


@given(order=st.permutations(range(20)), seed=st.integers(0, 3))
def test_a_drawn_split_depends_on_seed_and_paths_alone(order: list[int], seed: int) -> None:
    samples = [Sample(path=f"{i % 2}/{i}", label=i % 2, split="train") for i in range(20)]
    shuffled = [samples[i] for i in order]
    once, again = (sorted(_drawn(s, seed=seed, with_test=True), key=lambda s: s.path) for s in (samples, shuffled))
    assert once == again


@given(seed=st.integers(0, 20))
def test_a_new_file_moves_few_others(seed: int) -> None:
    samples = [Sample(path=f"{i}", label=0, split="train") for i in range(101)]
    before = {s.path: s.split for s in _drawn(samples[:100], seed=seed, with_test=True)}
    after = {s.path: s.split for s in _drawn(samples, seed=seed, with_test=True)}
    assert sum(before[path] != after[path] for path in before) <= 2


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    root = flat(tmp_path, cat=30, dog=30)
    assert scan(root) == scan(root, seed=0)
    assert splits(scan(root, seed=1)) != splits(scan(root, seed=0))
    assert scan(root, seed=1).fingerprint == scan(root, seed=0).fingerprint


# --- the fingerprint


@few
@given(data=st.data())
def test_the_fingerprint_changes_if_and_only_if_paths_or_contents_do(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = flat(tmp_path_factory.mktemp("data"), cat=3, dog=3)
    before = scan(root)
    assert len(before.fingerprint) == 32
    moved = root.with_name(root.name + "-moved")
    shutil.copytree(root, moved)
    (moved / "notes.txt").write_text("not an image")
    assert scan(moved).fingerprint == before.fingerprint

    victim = root / data.draw(st.sampled_from(before.samples)).path
    content = victim.read_bytes()
    match data.draw(st.sampled_from(["rename", "append", "flip", "remove", "add"])):
        case "rename":
            victim.rename(victim.with_name("other.png"))
        case "append":
            victim.write_bytes(content + b"\0")
        case "flip":
            at = data.draw(st.integers(0, len(content) - 1))
            victim.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "remove":
            victim.unlink()
        case "add":
            victim.with_name("other.png").write_bytes(content)
    assert scan(root).fingerprint != before.fingerprint


# --- layouts


def test_three_folders_are_kept(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        *("train/dog/deep/er/a.png", "train/cat/a.PNG.png", "valid/cat/b.png", "val.txt", "valid/dog/b.png"),
        *(
            "test/cat/c.png",
            "train/cat/.hidden.png",
            "train/.git/x.png",
            "__MACOSX/train/x.png",
            "train/cat/readme.txt",
        ),
    )
    dataset = scan(root)
    assert dataset.classes == ("cat", "dog")
    assert [(s.path, s.label, s.split) for s in dataset.samples] == [
        ("test/cat/c.png", 0, "test"),
        ("train/cat/a.PNG.png", 0, "train"),
        ("train/dog/deep/er/a.png", 1, "train"),
        ("valid/cat/b.png", 0, "val"),
        ("valid/dog/b.png", 1, "val"),
    ]
    assert dataset.counts() == {"train": 2, "val": 2, "test": 1}
    assert [s.path for s in dataset.of("test")] == ["test/cat/c.png"]
    assert dataset.ignored == 2
    assert dataset.split_why == "train, val, test as the folders have them"


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_names_of_val(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/a/2.png", f"{name}/b/2.png")
    dataset = scan(root)
    assert dataset.counts() == {"train": 2, "val": 2, "test": 0}
    assert dataset.split_why.endswith("there is no test folder, so test figures will be missing")


def test_flat(tmp_path: Path) -> None:
    dataset = scan(flat(tmp_path, cat=20, dog=40), seed=7)
    assert dataset.counts() == {"train": 48, "val": 6, "test": 6}
    assert (
        "80/10/10 % for train/val/test drawn per class with seed 7, because the folders state no" in dataset.split_why
    )


def test_flat_and_small_has_no_test(tmp_path: Path) -> None:
    dataset = scan(flat(tmp_path, cat=2, dog=3))
    assert dataset.counts() == {"train": 3, "val": 2, "test": 0}
    assert "too small to spare test images" in dataset.split_why


def test_train_alone_is_drawn(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=10, dog=10)
    (tmp_path / "val").mkdir()  # an empty folder states nothing
    assert scan(tmp_path).counts() == {"train": 16, "val": 2, "test": 2}


def test_train_and_test_spare_val(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=20, dog=5)
    flat(tmp_path / "test", cat=2)
    dataset = scan(tmp_path)
    assert dataset.counts() == {"train": 22, "val": 3, "test": 2}
    assert "val drawn as 10 % of train, per class, with seed 0" in dataset.split_why


def test_unlabelled_test(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=5, dog=5)
    tree(tmp_path, "test/1.png", "test/2.png")
    dataset = scan(tmp_path)
    assert [s.label for s in dataset.of("test")] == [-1, -1]
    assert dataset.split_why.endswith("the test images are unlabelled, so test figures will be missing")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert scan(flat(tmp_path, bus=3, car=3, train=3)).classes == ("bus", "car", "train")


def test_folders_and_images_left_out_are_told(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=5, dog=5)
    dataset = scan(tree(tmp_path, "train/stray.png", "devkit/readme.txt", "licence"))
    assert dataset.ignored == 2
    assert "devkit/ is no split and was left out" in dataset.split_why
    assert f"1 images directly in {tmp_path / 'train'} belong to no class" in dataset.split_why


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = flat(tmp_path / "data", cat=2)
    flat(tmp_path / "elsewhere", dog=3)
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "here").symlink_to(root / "cat")
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "cat" / "pipe.png")
    dataset = scan(root)
    assert [s.path for s in dataset.samples if s.label == 0] == ["cat/000.png", "cat/001.png", "cat/gone.png"]
    assert len(dataset.samples) == 6


def test_unreadable_files_and_odd_names_stay_in(tmp_path: Path) -> None:
    root = flat(tmp_path, cat=3, dog=3)
    (root / "cat" / "000.png").chmod(0)
    odd = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88.png")
    (root / "cat" / odd).write_bytes(png())
    assert f"cat/{odd}" in splits(scan(root))
    assert len(scan(root).samples) == 7


def test_extensions() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= image_extensions()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".wmf", ".txt", ""} & image_extensions()


# --- refusals


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        scan(root)
    return str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}/nowhere does not exist; give a folder laid out as DATA/<class>" in refusal(tmp_path / "nowhere")
    tree(tmp_path, "a.png")
    assert "a.png is a file; give a folder" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        ([], "has no class folders but nothing that could be a class; lay the images out as DATA/<class>"),
        (["1.png", "2.png"], "has no class folders but 2 images directly in it; lay"),
        (["train/1.png", "val/a/1.png"], "train has no class folders but 1 images directly in it"),
        (["a/1.png", "a/2.png"], "has one class, 'a'; add at least one more"),
        (["a/1.txt", "b/2.txt"], "has no image in 2 class folders; lay"),
        (["a/1.png", "a/2.png", "b/1.txt"], "has no image to train the class 'b'; add some or remove its folder"),
        (["a/1.png", "a/2.png", "b/1.png"], "has 1 image of the class 'b' where 2 are needed, one to train on"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], "has 1 image of the class 'b' where 2 are needed"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "has 1 image of the class 'a' where 2 are needed"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "val has the class 'c' (1 such), which"),
        (["train/a/1.png", "train/b/1.png", "val/1.png"], "val has 1 images in no class; sort them into class"),
        (
            ["train/a/1.png", "train/b/1.png", "test/images/1.png"],
            "test has the class 'images' (1 such), which",
        ),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/1.png"], "in no class beside 1 class folders"),
        (["a/1.png", "b/1.png", "test/1.png"], "has test/ but no train/; put the class folders to learn from under"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "has both val/ and valid/, two names of one split"),
        (["bus/1.png", "train/old/1.png"], "so train could be a split or a class; move bus/ away"),
    ],
)
def test_refusals_name_the_folder_the_finding_and_the_way_out(tmp_path: Path, paths: list[str], sentence: str) -> None:
    message = refusal(tree(tmp_path, *paths))
    assert sentence in message
    assert message.startswith(str(tmp_path))
    assert "\n" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list anything")
def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    root = flat(tmp_path, cat=3, dog=3)
    (root / "cat").chmod(0)
    try:
        assert "cat cannot be listed (Permission denied); make it readable" in refusal(root)
    finally:
        (root / "cat").chmod(0o755)


def broken(*paths: str) -> list[Broken]:
    return [Broken(path=path, reason="truncated") for path in paths]


def test_without_drops_and_checks_again(tmp_path: Path) -> None:
    dataset = scan(flat(tmp_path, cat=10, dog=10))
    assert without(dataset, []) is dataset
    gone = dataset.of("train")[0].path
    left = without(dataset, broken(gone))
    assert {*splits(dataset)} - {*splits(left)} == {gone}
    assert left.fingerprint == dataset.fingerprint
    cats = [s.path for s in dataset.samples if s.label == 0]
    with pytest.raises(DataError, match=r"no image to train the class 'cat' once the 10 unreadable files are left out"):
        without(dataset, broken(*cats))
    with pytest.raises(DataError, match=r"no image to validate on once the 2 unreadable"):
        without(dataset, broken(*(s.path for s in dataset.of("val"))))


# --- pixels


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
