"""scan and without: laws of the split and the fingerprint, then layouts and refusals."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fitwithin.data.dataset import Broken, Dataset, Sample, drop_broken
from fitwithin.data.sources.door import open_dataset
from fitwithin.data.sources.splits import random_split
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


def of(dataset: Dataset, split: str) -> list[Sample]:
    return [sample for sample in dataset.samples if sample.split == split]


# --- the split


@given(sizes=st.lists(st.integers(2, 60), min_size=2, max_size=4), seed=st.integers(0, 5), with_test=st.booleans())
def test_a_drawn_split_is_a_stratified_partition(sizes: list[int], seed: int, with_test: bool) -> None:
    before = [
        Sample(path=f"{label}/{i}", label=label, split="train") for label, n in enumerate(sizes) for i in range(n)
    ]
    after = random_split(before, seed=seed, with_test=with_test)
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
    once, again = (
        sorted(random_split(s, seed=seed, with_test=True), key=lambda s: s.path) for s in (samples, shuffled)
    )
    assert once == again


@given(seed=st.integers(0, 20))
def test_a_new_file_moves_few_others(seed: int) -> None:
    samples = [Sample(path=f"{i}", label=0, split="train") for i in range(101)]
    before = {s.path: s.split for s in random_split(samples[:100], seed=seed, with_test=True)}
    after = {s.path: s.split for s in random_split(samples, seed=seed, with_test=True)}
    assert sum(before[path] != after[path] for path in before) <= 2


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    root = flat(tmp_path, cat=30, dog=30)
    assert open_dataset(root) == open_dataset(root, seed=0)
    assert splits(open_dataset(root, seed=1)) != splits(open_dataset(root, seed=0))
    assert open_dataset(root, seed=1).fingerprint == open_dataset(root, seed=0).fingerprint


# --- the fingerprint


@few
@given(data=st.data())
def test_the_fingerprint_changes_if_and_only_if_contents_classes_or_stated_splits_do(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = flat(tmp_path_factory.mktemp("data"), cat=3, dog=3)
    before = open_dataset(root)
    assert len(before.fingerprint) == 32
    moved = root.with_name(root.name + "-moved")
    shutil.copytree(root, moved)
    (moved / "notes.txt").write_text("not an image")
    (moved / "cat" / "001.png").rename(moved / "cat" / "a new name.png")
    after = open_dataset(moved)
    assert after.fingerprint == before.fingerprint
    assert [(s.content, s.label, s.split) for s in after.samples] == [
        (s.content, s.label, s.split) for s in before.samples
    ]

    victim = root / data.draw(st.sampled_from(before.samples)).path
    content = victim.read_bytes()
    match data.draw(st.sampled_from(["another class", "a stated split", "append", "flip", "remove", "add"])):
        case "another class":
            victim.rename(root / {"cat": "dog", "dog": "cat"}[victim.parent.name] / "other.png")
        case "a stated split":
            shutil.copytree(root, root / "train")
            for name in ("cat", "dog"):
                shutil.rmtree(root / name)
                (root / "val" / name).mkdir(parents=True)
                (root / "train" / name / "002.png").rename(root / "val" / name / "x.png")
        case "append":
            victim.write_bytes(content + b"\0")
        case "flip":
            at = data.draw(st.integers(0, len(content) - 1))
            victim.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "remove":
            victim.unlink()
        case "add":
            victim.with_name("other.png").write_bytes(content)
    assert open_dataset(root).fingerprint != before.fingerprint


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
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog")
    assert sorted((s.path, s.label, s.split) for s in dataset.samples) == [
        ("test/cat/c.png", 0, "test"),
        ("train/cat/a.PNG.png", 0, "train"),
        ("train/dog/deep/er/a.png", 1, "train"),
        ("valid/cat/b.png", 0, "val"),
        ("valid/dog/b.png", 1, "val"),
    ]
    assert dataset.counts() == {"train": 2, "val": 2, "test": 1}
    assert [s.path for s in of(dataset, "test")] == ["test/cat/c.png"]
    assert dataset.ignored == 2
    assert dataset.split_why == "train, val, test as the folders have them"


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_names_of_val(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/a/2.png", f"{name}/b/2.png")
    dataset = open_dataset(root)
    assert dataset.counts() == {"train": 2, "val": 2, "test": 0}
    assert dataset.split_why.endswith("there are no test images, so test figures will be missing")


def test_flat(tmp_path: Path) -> None:
    dataset = open_dataset(flat(tmp_path, cat=20, dog=40), seed=7)
    assert dataset.counts() == {"train": 48, "val": 6, "test": 6}
    assert (
        "80/10/10 % for train/val/test drawn per class with seed 7, because the folders state no" in dataset.split_why
    )


def test_flat_and_small_has_no_test(tmp_path: Path) -> None:
    dataset = open_dataset(flat(tmp_path, cat=2, dog=3))
    assert dataset.counts() == {"train": 3, "val": 2, "test": 0}
    assert "too small to spare test images" in dataset.split_why


def test_train_alone_is_drawn(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=10, dog=10)
    (tmp_path / "val").mkdir()  # an empty folder states nothing
    assert open_dataset(tmp_path).counts() == {"train": 16, "val": 2, "test": 2}


def test_train_and_test_spare_val(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=20, dog=5)
    flat(tmp_path / "test", cat=2)
    dataset = open_dataset(tmp_path)
    assert dataset.counts() == {"train": 22, "val": 3, "test": 2}
    assert "val drawn as 10 % of train, per class with seed 0" in dataset.split_why


def test_unlabelled_test(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=5, dog=5)
    tree(tmp_path, "test/1.png", "test/2.png")
    dataset = open_dataset(tmp_path)
    assert [s.label for s in of(dataset, "test")] == [-1, -1]
    assert dataset.split_why.endswith("the test images are unlabelled, so test figures will be missing")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_dataset(flat(tmp_path, bus=3, car=3, train=3)).classes == ("bus", "car", "train")


def test_folders_and_images_left_out_are_told(tmp_path: Path) -> None:
    flat(tmp_path / "train", cat=5, dog=5)
    dataset = open_dataset(tree(tmp_path, "train/stray.png", "devkit/readme.txt", "licence"))
    assert dataset.ignored == 3
    assert dataset.notes == ("2 files are not an image: 1 .txt, 1 without ending",)
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
    dataset = open_dataset(root)
    assert sorted(s.path for s in dataset.samples if s.label == 0) == ["cat/000.png", "cat/001.png", "cat/gone.png"]
    assert len(dataset.samples) == 6


def test_unreadable_files_and_odd_names_stay_in(tmp_path: Path) -> None:
    root = flat(tmp_path, cat=3, dog=3)
    (root / "cat" / "000.png").chmod(0)
    odd = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88.png")
    (root / "cat" / odd).write_bytes(png())
    assert f"cat/{odd}" in splits(open_dataset(root))
    assert len(open_dataset(root).samples) == 7


# --- refusals


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    return str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}/nowhere does not exist; give a folder, a table" in refusal(tmp_path / "nowhere")
    tree(tmp_path, "a.png")
    assert "a.png is a file of an unknown kind; give a folder" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        ([], "has no class folders and no images; lay the images out as DATA/<class>"),
        (["1.png", "2.png"], "has no class folders, but 2 images directly in it; lay"),
        (["train/1.png", "val/a/1.png"], "train has no class folders, but 1 images directly in it"),
        (["a/1.png", "a/2.png"], "has one class, 'a'; add at least one more"),
        (["a/1.txt", "b/2.txt"], "has no image in 2 classes; lay"),
        (["a/1.png", "a/2.png", "b/1.txt"], "has no image to train the class 'b'; add some or take it out"),
        (["a/1.png", "a/2.png", "b/1.png"], "has 1 image of the class 'b' where 2 are needed, one to train on"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], "has 1 image of the class 'b' where 2 are needed"),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png"],
            "has 1 image of each of 2 classes ('a', 'b') where 2 are needed",
        ),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "val has the class 'c', which"),
        (["train/a/1.png", "train/b/1.png", "val/1.png"], "val has 1 images in no class; sort them into class"),
        (
            ["train/a/1.png", "train/b/1.png", "test/shots/1.png"],
            "test has the class 'shots', which",
        ),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/1.png"], "in no class beside 1 class folders"),
        (["a/1.png", "b/1.png", "test/1.png"], "has test/ but no train/; put the class folders to learn from under"),
        (
            ["train/a/1.png", "val/a/1.png", "valid/a/1.png"],
            "has several folders of one split (val/ and valid/); keep one of each",
        ),
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
    dataset = open_dataset(flat(tmp_path, cat=10, dog=10))
    assert drop_broken(dataset, []) is dataset
    gone = of(dataset, "train")[0].path
    left = drop_broken(dataset, broken(gone))
    assert {*splits(dataset)} - {*splits(left)} == {gone}
    assert left.fingerprint == dataset.fingerprint
    cats = [s.path for s in dataset.samples if s.label == 0]
    with pytest.raises(DataError, match=r"no image to train the class 'cat' once the 10 unreadable files are left out"):
        drop_broken(dataset, broken(*cats))
    with pytest.raises(DataError, match=r"no image to validate on once the 2 unreadable"):
        drop_broken(dataset, broken(*(s.path for s in of(dataset, "val"))))
