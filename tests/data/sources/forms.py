"""The same pictures in every form in which people have them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Given(NamedTuple):
    """A picture's bytes, its class, and its split (empty: not stated)."""

    content: bytes
    label: str
    split: str = ""


def place(number: int, each: Given) -> str:
    return "/".join(filter(None, (each.split, each.label, f"picture {number}.png")))


def as_folder(root: Path, pictures: Sequence[Given]) -> Path:
    for number, each in enumerate(pictures):
        file = root / place(number, each)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(each.content)
    return root


def as_csv(root: Path, pictures: Sequence[Given]) -> Path:
    """With the delimiter of Europe, the mark of Windows, and names of its own."""
    root.mkdir()
    with (root / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Category", "Image Path", "subset"])
        for number, each in enumerate(reversed(pictures)):
            (root / f"{number}.png").write_bytes(each.content)
            table.writerow([each.label, f"{number}.png", each.split])
    return root / "list.csv"


def as_parquet(root: Path, pictures: Sequence[Given]) -> Path:
    """Pictures in the table, as Hugging Face stores them."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root.mkdir()
    columns = {
        "image": [{"bytes": each.content, "path": None} for each in pictures],
        "label": [each.label for each in pictures],
        "split": [each.split or None for each in pictures],
    }
    pq.write_table(pa.table(columns), root / "data.parquet")
    return root / "data.parquet"


def as_zip(root: Path, pictures: Sequence[Given]) -> Path:
    """In a folder too many."""
    root.mkdir()
    with zipfile.ZipFile(root / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, each in enumerate(pictures):
            archive.writestr(f"photos/{place(number, each)}", each.content)
    return root / "data.zip"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def as_shards(root: Path, pictures: Sequence[Given]) -> Path:
    """Two shards, with the class in JSON beside each picture."""
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"photos-{shard:04}.tar", "w") as archive:
            for number, each in list(enumerate(pictures))[shard::2]:
                said = {"label": each.label, **({"split": each.split} if each.split else {})}
                add(archive, f"{number:06}.json", json.dumps(said).encode())
                add(archive, f"{number:06}.png", each.content)
    return root


def as_tar(root: Path, pictures: Sequence[Given]) -> Path:
    root.mkdir()
    with tarfile.open(root / "data.tar.gz", "w:gz") as archive:
        for number, each in enumerate(pictures):
            add(archive, place(number, each), each.content)
    return root / "data.tar.gz"


#: How to write pictures into a folder, and what is given to a run then.
FORMS: dict[str, Callable[[Path, Sequence[Given]], Path]] = {
    "folder": as_folder,
    "csv": as_csv,
    "parquet": as_parquet,
    "zip": as_zip,
    "shards": as_shards,
    "tar": as_tar,
}
