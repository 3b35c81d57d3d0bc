"""Folders of images become a data set: the class and the split of each image.

There are two layouts:
    DATA/{train,val,test}/<class>/...   the folders' own split (val may be called valid or validation)
    DATA/<class>/...                    one folder per class; the split is drawn per class from the seed
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fitwithin.data.dataset import LAYOUT, SPLITS, Dataset, Sample, check
from fitwithin.data.decode import is_image
from fitwithin.data.fingerprint import digest, fingerprint
from fitwithin.errors import DataError

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """What lies in one split folder: paths by class, images outside every class folder, the count of other files."""

    shown: Path
    by_class: dict[str, list[str]]
    unlabelled: list[str]
    others: int


def scan(root: Path, *, seed: int = 0, cache_dir: Path | None = None) -> Dataset:
    """The data set in a folder; a split the folders do not state is drawn per class from the seed and the paths alone.

    Flat folders and ``train`` alone are drawn 80/10/10; ``train`` and ``test`` without ``val`` give 10 % of train to
    val; ``train`` and ``val`` without ``test`` have no test. A file that cannot be read stays in: decoding reports it.
    ``cache_dir`` is a folder for the fingerprint's records: files that did not change are not read again.

    Raises:
        DataError: missing folder, fewer than two classes, a class too small, a class that train does not have.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {found}; give a folder laid out as {LAYOUT}")
    layout, notes = _layout(root)
    folders = {split: _collect(root, name) for split, name in layout.items()}
    folders = {
        split: folder
        for split, folder in folders.items()
        if split == "train" or folder.unlabelled or any(folder.by_class.values())
    }
    _check_labels(folders)
    flat = layout["train"] == ""
    top = [] if flat else [entry.name for entry in _entries(root) if _is_file(entry)]
    ignored = len(top) + sum(folder.others for folder in folders.values())
    for folder in folders.values():
        if folder.unlabelled and folder.by_class:
            notes.append(
                f"{len(folder.unlabelled)} images directly in {folder.shown} belong to no class and were left out"
            )
            ignored += len(folder.unlabelled)

    classes = tuple(sorted(folders["train"].by_class))
    labels = {name: label for label, name in enumerate(classes)}
    samples = [
        Sample(path=path, label=labels[name], split=split)
        for split, folder in folders.items()
        for name, paths in folder.by_class.items()
        for path in paths
    ]
    if "test" in folders:
        samples += [Sample(path=path, label=-1, split="test") for path in folders["test"].unlabelled]
    if "val" not in folders:
        samples = random_split(samples, seed=seed, with_test="test" not in folders)
    samples = sorted(samples, key=lambda sample: sample.path)
    check(root, classes, samples)
    return Dataset(
        root=root,
        classes=classes,
        samples=tuple(samples),
        fingerprint=fingerprint(root, [sample.path for sample in samples], cache_dir),
        split_why="; ".join([_split_why(folders, samples, flat=flat, seed=seed), *notes]),
        ignored=ignored,
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); make it readable or move it away") from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises on a link to itself; os.path.isdir does not.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    # A broken link is a file that decoding will report (git-annex leaves such links behind); a pipe is not a file.
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _files(root: Path, prefix: str, seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths relative to root of the files below ``prefix``; each folder is entered once, whatever the links say."""
    visited, stack = set(seen), [prefix]
    while stack:
        here = stack.pop()
        status = os.stat(root / here)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in _entries(root / here):
            if _is_dir(entry):
                stack.append(f"{here}/{entry.name}")
            elif _is_file(entry):
                yield f"{here}/{entry.name}"


def _collect(root: Path, name: str) -> _Folder:
    """What the split folder ``name`` holds ("" is the root itself)."""
    above = [os.stat(root), os.stat(root / name)]
    seen = frozenset((status.st_dev, status.st_ino) for status in above)
    prefix = f"{name}/" if name else ""
    by_class: dict[str, list[str]] = {}
    unlabelled, others = [], 0
    for entry in _entries(root / name):
        if _is_dir(entry):
            files = list(_files(root, prefix + entry.name, seen))
            by_class[entry.name] = [path for path in files if is_image(path)]
            others += len(files) - len(by_class[entry.name])
        elif _is_file(entry) and is_image(entry.name):
            unlabelled.append(prefix + entry.name)
        elif _is_file(entry):
            others += 1
    return _Folder(shown=root / name, by_class=by_class, unlabelled=unlabelled, others=others)


def _layout(root: Path) -> tuple[dict[str, str], list[str]]:
    """The folder of each split ({"train": ""} if flat), and notes about folders left out."""
    names = [entry.name for entry in _entries(root) if _is_dir(entry)]
    stated: dict[str, str] = {}
    for name in names:
        split = _SPLIT_FOLDERS.get(name.lower())
        if split in stated:
            raise DataError(f"{root} has both {stated[split]}/ and {name}/, two names of one split; keep one of them")
        if split is not None:
            stated[split] = name
    beside = [name for name in names if name not in stated.values()]
    if not stated:
        return {"train": ""}, []
    if "train" not in stated:
        listed = " and ".join(f"{name}/" for name in stated.values())
        raise DataError(f"{root} has {listed} but no train/; put the class folders to learn from under {root}/train")
    if beside and set(stated) == {"train"}:
        # "train" is also a thing on rails: beside other class folders, and without class folders of its own, a class.
        if not any(_is_dir(entry) for entry in _entries(root / stated["train"])):
            return {"train": ""}, []
        rival = next((name for name in beside if any(map(is_image, _files(root, name)))), None)
        if rival is not None:
            raise DataError(
                f"{root} has folders in {stated['train']}/ and images in {rival}/, so train could be a split or a "
                f"class; move {rival}/ away, or put every class under {root}/train"
            )
    return stated, [f"{name}/ is no split and was left out" for name in beside]


def _check_labels(folders: dict[str, _Folder]) -> None:
    """DataError unless every folder has classes as its split requires, and none that train does not have."""
    train = folders["train"]
    if not train.by_class:
        found = (
            f"{len(train.unlabelled)} images directly in it" if train.unlabelled else "nothing that could be a class"
        )
        raise DataError(f"{train.shown} has no class folders but {found}; lay the images out as {LAYOUT}")
    for split in ("val", "test"):
        if split not in folders:
            continue
        folder = folders[split]
        named = {name for name, paths in folder.by_class.items() if paths}
        unknown = sorted(named - set(train.by_class))
        if unknown:
            hint = "; unlabelled images go directly into it" if split == "test" else ""
            raise DataError(
                f"{folder.shown} has the class {unknown[0]!r} ({len(unknown)} such), which {train.shown} does not "
                f"have; add it there or remove it here{hint}"
            )
        if folder.unlabelled and not named and split == "val":
            raise DataError(
                f"{folder.shown} has {len(folder.unlabelled)} images in no class; sort them into class folders"
            )
        if folder.unlabelled and named and split == "test":
            raise DataError(
                f"{folder.shown} has {len(folder.unlabelled)} images in no class beside {len(named)} class folders; "
                f"sort them all into class folders, or none"
            )


def _split_why(folders: dict[str, _Folder], samples: Sequence[Sample], *, flat: bool, seed: int) -> str:
    if "val" in folders:
        why = f"{', '.join(split for split in SPLITS if split in folders)} as the folders have them"
    elif "test" in folders:
        why = f"train and test as the folders have them, val drawn as 10 % of train, per class, with seed {seed}"
    else:
        where = "the folders state no split" if flat else "there is a train folder alone"
        why = f"80/10/10 % for train/val/test drawn per class with seed {seed}, because {where}"
    tested = [sample for sample in samples if sample.split == "test"]
    if not tested:
        reason = "there is no test folder" if "val" in folders else "the classes are too small to spare test images"
        return f"{why}; {reason}, so test figures will be missing"
    if tested[0].label < 0:
        return f"{why}; the test images are unlabelled, so test figures will be missing"
    return why


def random_split(samples: Sequence[Sample], *, seed: int, with_test: bool) -> list[Sample]:
    """Train samples spread over val, test (if asked) and train, class by class.

    They are drawn in the order of BLAKE2b(seed, path), so their order never depends on other files.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train":
            by_label.setdefault(sample.label, []).append(sample)
    result = [sample for sample in samples if sample.split != "train"]
    for mine in by_label.values():
        mine.sort(key=lambda sample: digest(f"{seed}:{sample.path}".encode("utf-8", "surrogateescape")))
        tenth = round(len(mine) / 10)
        n_val = min(max(1, tenth), len(mine) - 1)
        n_test = tenth if with_test else 0
        for rank, sample in enumerate(mine):
            split = "val" if rank < n_val else "test" if rank < n_val + n_test else "train"
            result.append(replace(sample, split=split))
    return result
