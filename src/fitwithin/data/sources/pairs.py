"""Pictures with a file beside each that says its class, as in WebDataset's shards: ``key.jpg`` and ``key.cls``,
``key.json`` or ``key.txt``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fitwithin.data.sources import columns
from fitwithin.data.sources.columns import Record
from fitwithin.data.sources.listing import Listing
from fitwithin.data.sources.splits import split_alike
from fitwithin.data.sources.tree import Tree, join
from fitwithin.errors import DataError

#: Endings of the files that say a class, the first of several that are there.
SIDECARS = (".cls", ".json", ".txt")

#: A file that says a class is no longer than this.
MOST_BYTES = 2**20


def are_pairs(tree: Tree, *, shards: bool) -> bool:
    """Whether the pictures below a folder have files beside them that say their class. Texts may be anything, so they
    count only in ``shards`` and where the pictures lie in no folder."""
    first = next(tree.walk(""), None)
    if first is None:
        return False
    folder, name = _split(first)
    beside = {file.lower() for file in tree.entries(folder).files}
    endings = [ending for ending in SIDECARS if f"{_key(name)}{ending}".lower() in beside]
    return ".cls" in endings or (bool(endings) and (shards or not folder))


def read(root: Path, *, source: str, given: Mapping[str, str], timed: bool, shards: bool) -> Listing:
    """The pictures of such a folder. Of ``shards`` each is a folder at the top, whose name may state its split.

    Raises:
        DataError: a picture without its class, or a file beside it that makes no sense.
    """
    tree = Tree(root)
    role_of = {"label": "label"}
    records = list(_records(tree, role_of, source, given, timed=timed, shards=shards))
    return columns.listing(
        records, source=source, root=root, columns=role_of, timed=timed, stated="the shards have them"
    )


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _key(name: str) -> str:
    """A name up to its first point, as WebDataset has it."""
    return name.partition(".")[0]


def _records(
    tree: Tree, role_of: dict[str, str], source: str, given: Mapping[str, str], *, timed: bool, shards: bool
) -> Iterator[Record]:
    """The pictures with what is beside them; the first JSON decides ``role_of`` for all."""
    beside: dict[str, str] = {}
    here: str | None = None
    for place, path in enumerate(tree.walk(""), 1):
        folder, name = _split(path)
        if folder != here:
            here, beside = folder, {file.lower(): file for file in tree.entries(folder).files}
        key = _key(name)
        sidecar = next((beside[f"{key}{end}".lower()] for end in SIDECARS if f"{key}{end}".lower() in beside), None)
        if sidecar is None:
            raise DataError(f"{source} has {path} without its class; put {key}.cls, {key}.json or {key}.txt beside it")
        said = _read(tree.root / join(folder, sidecar), source)
        if isinstance(said, dict):
            if "json" not in role_of:
                where = f"{sidecar} in {source}"
                found = columns.roles(list(said), source=where, given=given, timed=timed, needed=("label",))
                role_of.update(found, json="")
            values = {role: said.get(name) for role, name in role_of.items() if role not in ("path", "json")}
        else:
            values = {"label": said}
        if shards and values.get("split") is None:
            values["split"] = split_alike(folder.partition("/")[0])
        yield Record(place, path, values.pop("label"), **values)


def _read(file: Path, source: str) -> Any:
    """The text of a file beside a picture, or the object in it; DataError if it is neither."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
        found = json.loads(text) if file.suffix.lower() == ".json" else text
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file.name} in {source} cannot be read ({error})") from error
    if len(content) > MOST_BYTES or not isinstance(found, (str, dict)):
        raise DataError(f"{file.name} in {source} does not say a class; it is to hold a name, or an object with one")
    return found
