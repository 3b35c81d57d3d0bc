"""Folders of images: who belongs to which class and split.

Laid out in one of two ways; data/pack.py decodes the images:
    DATA/{train,val,test}/<class>/...   the folders' own split, whatever the splits are called (sources/splits.py)
    DATA/<class>/...                    one folder per class; the split is drawn per class from the seed or by name

A folder that holds nothing but another folder is looked into. A class has all images below its folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fitwithin.data.dataset import LAYOUT
from fitwithin.data.sources.listing import Listing, Row
from fitwithin.data.sources.splits import split_alike, split_named
from fitwithin.data.sources.tree import Tree, join, same_form
from fitwithin.errors import DataError
from fitwithin.units import listed

#: The only folder in test that is called so holds images without a class.
UNLABELLED = frozenset(("images", "image", "imgs", "img", "unlabelled", "unlabeled"))


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """What lies in one split folder: paths by class, and images outside every class folder."""

    shown: Path
    by_class: dict[str, list[str]]
    unlabelled: list[str]

    @property
    def empty(self) -> bool:
        return not self.unlabelled and not any(self.by_class.values())


def read(root: Path, *, source: str = "") -> Listing:
    """The pictures in a folder of class folders; ``source`` is what messages call it, where that is not the folder.

    Raises:
        DataError: no class folders, folders that could mean two things, or one that cannot be listed.
    """
    tree = Tree(root, Path(source) if source else None)
    top = _top(tree)
    layout, notes = _layout(tree, top)
    if top:
        notes.append(f"the images are read from {tree.shown / top}, the only folder in {tree.shown}")
    train = _collect(tree, layout["train"], "train", ())
    folders = {split: _collect(tree, name, split, train.by_class) for split, name in layout.items()}
    folders = {split: folder for split, folder in folders.items() if split == "train" or not folder.empty}
    _check_labels(folders)
    left_out = 0
    for folder in folders.values():
        if folder.unlabelled and folder.by_class:
            left_out += len(folder.unlabelled)
            notes.append(
                f"{len(folder.unlabelled)} images directly in {folder.shown} belong to no class and were left out"
            )
    flat = layout == {"train": top}
    if not flat:
        tree.images_in(top)  # loose files beside the splits are passed over, and counted
    return Listing(
        source=source or str(root),
        root=root,
        rows=_rows(folders),
        classes=sorted(folders["train"].by_class),
        stated="the folders have them",
        unstated="the folders state no split" if flat else "there is a train folder alone",
        ignored=left_out + sum(tree.endings.values()),
        remarks=notes,
        notes=tree.passed_over(),
    )


def _top(tree: Tree) -> str:
    """The folder that holds the classes or the splits: DATA, or below it where DATA holds nothing but one folder."""

    def is_class_or_split(path: str) -> bool:
        named = split_named(path.rpartition("/")[2]) is not None
        return named or bool(tree.images_in(path)) or not tree.entries(path).folders

    return tree.descend("", is_class_or_split)


def _split_folders(tree: Tree, top: str) -> dict[str, list[str]]:
    """The folders that name a split, by split."""
    names = tree.entries(top).folders
    stated: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if (split := split_named(name)) is not None:
            stated[split].append(name)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        split = split_alike(name)
        if split is not None and split not in stated and _holds_classes(tree, join(top, name), split):
            alike[split].append(name)
    # A class may be called "test tube": such names are splits beside a train folder, and else if there is nothing
    # beside them or if they have classes in common.
    others = set(names).difference(*stated.values(), *alike.values())
    alone = "train" in alike and not any(_has_images(tree, join(top, name)) for name in others)
    if "train" in stated or alone or _share_classes(tree, top, alike):
        stated.update(alike)
    return stated


def _share_classes(tree: Tree, top: str, alike: dict[str, list[str]]) -> bool:
    """Whether the folder that seems to be train has a class that val or test has too."""

    def classes(name: str) -> set[str]:
        path = tree.descend(join(top, name), lambda path: bool(tree.images_in(path)))
        return {same_form(folder) for folder in tree.entries(path).folders}

    found = {split: set().union(*map(classes, names)) for split, names in alike.items()}
    return bool(found.get("train", set()) & (found.get("val", set()) | found.get("test", set())))


def _layout(tree: Tree, top: str) -> tuple[dict[str, str], list[str]]:
    """The folder of each split ({"train": top} when flat), and what there is to say about folders left out."""
    root, stated = tree.shown / top, _split_folders(tree, top)
    if not stated:
        return {"train": top}, []
    if twice := [group for group in stated.values() if len(group) > 1]:
        groups = "; ".join(" and ".join(f"{name}/" for name in group) for group in twice)
        raise DataError(f"{root} has several folders of one split ({groups}); keep one of each")
    folders = {split: group[0] for split, group in stated.items()}
    beside = [name for name in tree.entries(top).folders if name not in folders.values()]
    if "train" not in folders:
        found = " and ".join(f"{name}/" for name in folders.values())
        raise DataError(f"{root} has {found} but no train/; put the class folders to learn from under {root}/train")
    if beside and set(folders) == {"train"}:
        # "train" is also a thing on rails: beside other class folders, and without class folders of its own, a class.
        if not tree.entries(join(top, folders["train"])).folders:
            return {"train": top}, []
        rival = next((name for name in beside if _has_images(tree, join(top, name))), None)
        if rival is not None:
            raise DataError(
                f"{root} has folders in {folders['train']}/ and images in {rival}/, so train could be a split or a "
                f"class; move {rival}/ away, or put every class under {root}/train"
            )
    paths = {split: join(top, name) for split, name in folders.items()}
    return paths, [f"{name}/ is no split and was left out" for name in beside]


def _has_images(tree: Tree, path: str) -> bool:
    return bool(tree.images_below(path))


def _holds_classes(tree: Tree, path: str, split: str) -> bool:
    """Whether a folder can be a split: it has folders and no images; a test folder may have images alone."""
    return split == "test" or bool(tree.entries(path).folders and not tree.images_in(path))


def _collect(tree: Tree, path: str, split: str, classes: Collection[str]) -> _Folder:
    """What a split's folder holds, or the only folder in it; ``classes`` are those of train, once they are known."""

    def is_class(path: str) -> bool:
        name = path.rpartition("/")[2]
        if split == "test" and (name.casefold() in UNLABELLED or split_alike(name) == "test"):
            return False
        return same_form(name) in classes or bool(tree.images_in(path))

    path = tree.descend(path, is_class)
    by_class: dict[str, list[str]] = {}
    for name in tree.entries(path).folders:
        images = tree.images_below(join(path, name))
        if images or not tree.holds_runs(join(path, name)):
            by_class.setdefault(same_form(name), []).extend(images)
    return _Folder(shown=tree.shown / path, by_class=by_class, unlabelled=tree.images_in(path))


def _check_labels(folders: dict[str, _Folder]) -> None:
    """Every folder states classes as its split requires, and none that train does not have."""
    train = folders["train"]
    if not train.by_class:
        found = f", but {len(train.unlabelled)} images directly in it" if train.unlabelled else " and no images"
        raise DataError(f"{train.shown} has no class folders{found}; lay the images out as {LAYOUT}")
    for split in ("val", "test"):
        if split not in folders:
            continue
        folder = folders[split]
        named = {name for name, paths in folder.by_class.items() if paths}
        unknown = sorted(named - set(train.by_class))
        if unknown:
            hint = "; unlabelled images go directly into it" if split == "test" else ""
            what = f"the class {unknown[0]!r}" if len(unknown) == 1 else f"the classes {listed(unknown)}"
            raise DataError(
                f"{folder.shown} has {what}, which {train.shown} does not have; add the images there or remove them "
                f"here{hint}"
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


def _rows(folders: dict[str, _Folder]) -> list[Row]:
    """The pictures as the folders have them."""
    rows = [
        Row(path, name, split)
        for split, folder in folders.items()
        for name, paths in folder.by_class.items()
        for path in paths
    ]
    if "test" in folders:
        rows += [Row(path, None, "test") for path in folders["test"].unlabelled]
    return rows
