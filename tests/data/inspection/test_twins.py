"""Twins: whatever people do to a picture is found, and other pictures are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fitwithin.data.inspection import align, describe, search
from fitwithin.data.inspection.greys import SIDE, Greys, grey_of
from fitwithin.data.inspection.look import Seen, look
from fitwithin.data.inspection.twins import LEAST_PX, Twins, families, find, groups
from fitwithin.data.sources.door import open_dataset
from simulated.pictures import CHANGES, cropped, jpeg, picture, write

SEEN = Seen(size=1, width=96, height=96)


def found(pictures: list[Image.Image]) -> set[tuple[int, int]]:
    """The pairs among pictures, by their positions."""
    with Greys(len(pictures)) as greys:
        for position, each in enumerate(pictures):
            greys.put(position, grey_of(each).tobytes())
        seen = [
            Seen(size=1, digest=str(position).encode(), width=each.width, height=each.height)
            for position, each in enumerate(pictures)
        ]
        return {(min(pair[:2]), max(pair[:2])) for pair in find(seen, greys, lambda done, total: None)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_people_do_to_a_picture_is_found_and_nothing_else(change) -> None:
    originals = [picture(seed) for seed in range(40)]
    changed = [change(each) for each in originals[:20]]
    assert found(originals + changed) == {(place, 40 + place) for place in range(20)}


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), left=st.floats(0, 1), top=st.floats(0, 1), side=st.floats(0.9, 1))
def test_a_crop_is_found_wherever_it_lies(seed: int, left: float, top: float, side: float) -> None:
    original = picture(seed)
    others = [picture(20_000 + seed + number) for number in range(8)]
    assert found([original, *others, cropped(original, left, top, side)]) == {(0, 9)}


def test_a_frame_in_common_makes_no_twins() -> None:
    framed = [ImageOps.expand(picture(seed).resize((80, 80)), 8, fill="white") for seed in range(20)]
    assert found(framed) == set()


def test_candidates_that_are_alike_by_their_coarse_shapes_alone_are_no_twins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The coarse shapes are those of one picture, the details are each one's own."""
    coarse = picture(0).resize((10, 10)).resize((96, 96), Image.Resampling.BICUBIC)
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(6)]
    alike = [Image.blend(coarse, each, 0.25) for each in noise]
    with Greys(len(alike)) as greys:
        for position, each in enumerate(alike):
            greys.put(position, grey_of(each).tobytes())
        pairs = search.candidates(greys, lambda done, total: None)
        assert len(pairs) == 15
        assert (align.same(greys, pairs) < align.LEAST).all()
        monkeypatch.setattr(align, "WORTH_TRYING", 2.0)
        assert len(align.same(greys, pairs)) == 15, "none is tried at full size"


def test_plain_pictures_are_like_nothing() -> None:
    plain = [Image.new("RGB", (96, 96), (value, value, value)) for value in range(0, 200, 10)]
    assert found(plain) == set()


def test_many_cells_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = [picture(seed) for seed in range(300)]
    pictures = originals + [cropped(each, 0.1, 0.7) for each in originals[:100]]
    whole = found(pictures)
    assert {(place, 300 + place) for place in range(100)} <= whole
    monkeypatch.setattr(search, "CELL_SIZE", 20)
    monkeypatch.setattr(search, "ASKED_AT_ONCE", 64)
    few = found(pictures)
    assert few <= whole
    assert len(few) >= 0.98 * len(whole)


def test_no_image_has_more_candidates_than_are_compared() -> None:
    one = grey_of(picture(0))
    with Greys(60) as greys:
        for position in range(60):
            greys.put(position, one.tobytes())
        pairs = search.candidates(greys, lambda done, total: None)
    assert len(pairs) <= 60 * search.MOST
    assert len({*pairs.first.tolist(), *pairs.second.tolist()}) == 60


@given(seed=st.integers(0, 1000))
def test_a_mirrored_picture_differs_by_the_signs_of_its_odd_numbers(seed: int) -> None:
    grey = grey_of(picture(seed))[None]
    weights = np.ones((describe.FREQUENCIES, describe.FREQUENCIES), np.float32)
    one, mirrored = describe.describe(grey, weights), describe.describe(grey[:, :, ::-1], weights)
    np.testing.assert_allclose(mirrored.even, one.even, atol=1e-4)
    np.testing.assert_allclose(mirrored.odd, -one.odd, atol=1e-4)
    assert float((one.even**2).sum() + (one.odd**2).sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("pose", describe.POSES, ids=str)
def test_a_pose_describes_the_picture_that_lies_so(pose: describe.Pose) -> None:
    """The oracle cuts, flips and turns pixels."""
    grey = grey_of(picture(3))
    lines = describe.interpolation(pose.top, pose.side)[0], describe.interpolation(pose.left, pose.side)[0]
    pixels = lines[0] @ grey.astype(np.float32) @ lines[1].T
    pixels = pixels[::-1] if pose.flipped else pixels
    pixels = pixels.T if pose.turned else pixels
    np.testing.assert_allclose(
        describe.frequencies(grey[None], pose)[0], describe.frequencies(pixels[None])[0], atol=0.01
    )


@given(count=st.integers(1, 30), data=st.data())
def test_families_are_what_is_connected(count: int, data: st.DataObject) -> None:
    place = st.integers(0, count - 1)
    pairs = [Twins(one, other, 1.0, True) for one, other in data.draw(st.lists(st.tuples(place, place)))]
    of = families(count, pairs)
    assert all(of[pair.one] == of[pair.other] for pair in pairs)
    # The oracle: a reachable set is grown until nothing is added.
    reached = {0}
    while more := {b for pair in pairs for a, b in (pair[:2], pair[1::-1]) if a in reached and b not in reached}:
        reached |= more
    assert {place for place in range(count) if of[place] == of[0]} == reached


def test_groups_of_a_data_set_keep_twins_together(tmp_path: Path) -> None:
    files = {f"{name}/{n}.jpg": jpeg(picture(10 * n + ord(name))) for name in "ab" for n in range(6)}
    files["a/twin.jpg"] = jpeg(CHANGES["mirrored"](picture(10 + ord("a"))))
    files["b/copy.jpg"] = files["b/2.jpg"]
    files["b/broken.jpg"] = files["b/3.jpg"][:200]
    group = groups(open_dataset(write(tmp_path, files)), workers=1)
    assert group.keys() == {"a/twin.jpg", "a/1.jpg", "b/copy.jpg", "b/2.jpg"}
    assert group["a/twin.jpg"] == group["a/1.jpg"]
    assert group["b/copy.jpg"] == group["b/2.jpg"]
    assert len(set(group.values())) == 2


def test_files_are_seen_as_they_are(tmp_path: Path) -> None:
    small = picture(1).resize((LEAST_PX - 1, 60))
    files = {"a.jpg": jpeg(picture(0)), "b.jpg": jpeg(small), "c.jpg": b"", "d.jpg": jpeg(picture(0).convert("L"))}
    write(tmp_path, files)
    with Greys(5) as greys:
        seen = look(tmp_path, [*files, "absent.jpg"], greys, lambda done, total: None, workers=1)
        assert [each.reason != "" for each in seen] == [False, False, True, False, True]
        assert (seen[0].width, seen[0].height, seen[0].format, seen[0].mode) == (120, 96, "JPEG", "RGB")
        assert seen[3].mode == "L"
        assert seen[0].size == len(files["a.jpg"])
        np.testing.assert_array_equal(greys.run(0, 1)[0], grey_of(Image.open(tmp_path / "a.jpg").convert("RGB")))
        assert not greys.run(2, 3).any()


def test_small_pictures_are_compared_by_their_bytes_alone() -> None:
    tiny = picture(0).resize((20, 20))
    assert found([tiny, CHANGES["mirrored"](tiny)]) == set()


def test_the_window_of_a_crop_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the nearest of the windows asked for, the true one is found to a hundredth of a side."""
    one, other = grey_of(picture(5)), grey_of(cropped(picture(5), 0.3, 0.6))
    near = np.array([[0.93], [0.93], [0.07], [0.035]], np.float32)
    pair = one[None].astype(np.float32), other[None].astype(np.float32)
    height, width, top, left = align._fit(*pair, near, 8)[:, 0]
    assert (height, width, top, left) == pytest.approx((0.9, 0.9, 0.06, 0.03), abs=0.012)


def test_greys_are_kept_and_their_room_is_given_back() -> None:
    with Greys(3) as greys:
        assert len(greys) == 3
        assert not greys.run(0, 3).any()
        greys.put(1, bytes([7]) * SIDE * SIDE)
        assert (greys.at(np.array([1, 0, 1])).mean(axis=(1, 2)) == [7, 0, 7]).all()
    with pytest.raises(ValueError):
        greys.run(0, 1)
