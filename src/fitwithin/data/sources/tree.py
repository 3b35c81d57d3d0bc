"""What lies below a folder of images, read in one way by runs, predictions and evaluations.

Left out everywhere: hidden entries, what systems and tools leave behind, and the folders of fitwithin's own runs.
Links are followed, and each folder is entered once.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fitwithin.data.decode import is_image
from fitwithin.errors import DataError
from fitwithin.units import listed

#: Names of folders and files, in lower case, that Windows, macOS, NAS boxes, disks and Python leave behind.
SYSTEM = frozenset(
    (
        "$recycle.bin",
        "#recycle",
        "#snapshot",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thevolumesettingsfolder",
        "thumbs.db",
    )
)

#: So many folders are looked into that hold nothing but another one; links can go in circles.
MOST_LEVELS = 8

#: A folder with this file is a run of fitwithin.
RUN_FILE = "run.db"


def same_form(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes é as two characters where others write one."""
    return unicodedata.normalize("NFC", name)


class Listing(NamedTuple):
    """The folders and files of a folder, by name, sorted."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


class Tree:
    """The folder ``root``, ``shown`` in messages; paths below it are posix paths relative to it, "" is itself.

    What is passed over is counted once a folder was looked into: ``endings`` of files that are no images, ``system``
    entries by name, and folders of ``runs``.
    """

    def __init__(self, root: Path, shown: Path | None = None) -> None:
        self.root, self.shown = root, shown or root
        self.endings: Counter[str] = Counter()
        self.system: Counter[str] = Counter()
        self.runs: set[str] = set()
        self._listed: dict[str, Listing] = {}
        self._images: dict[str, bool] = {}

    def entries(self, path: str) -> Listing:
        """What lies in a folder.

        Raises:
            DataError: it cannot be listed.
        """
        if path in self._listed:
            return self._listed[path]
        folders, files = [], []
        try:
            with os.scandir(self.root / path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{self.root / path} cannot be listed ({error.strerror}); make it readable or move it away"
            ) from error
        for entry in found:
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
                self.system[entry.name] += 1
            elif _is_folder(entry):
                if os.path.isfile(os.path.join(entry.path, RUN_FILE)):
                    self.runs.add(join(path, entry.name))
                else:
                    folders.append(entry.name)
            elif _is_file(entry):
                files.append(entry.name)
        self._listed[path] = Listing(tuple(folders), tuple(files))
        return self._listed[path]

    def images_in(self, path: str) -> list[str]:
        """The images that lie directly in a folder."""
        return [name for name in (join(path, file) for file in self.entries(path).files) if self._is_image(name)]

    def images_below(self, path: str) -> list[str]:
        """All images in a folder and the folders below it."""
        return [image for folder in self._folders(path) for image in self.images_in(folder)]

    def walk(self, path: str) -> Iterator[str]:
        """The same, folder by folder in the order of their names. No folder is remembered once it was looked into."""
        for folder in self._folders(path):
            yield from self.images_in(folder)
            self._listed.pop(folder, None)
            self._images.clear()

    def _folders(self, path: str) -> Iterator[str]:
        """A folder and those below it, by name; each once."""
        above = [] if not path else [Path(), *Path(path).parents]
        visited, stack = {_identity(self.root / folder) for folder in above}, [path]
        while stack:
            here = stack.pop()
            identity = _identity(self.root / here)
            if identity in visited:
                continue
            visited.add(identity)
            folders = self.entries(here).folders
            yield here
            stack += [join(here, folder) for folder in reversed(folders)]

    def holds_runs(self, path: str) -> bool:
        """Whether runs of fitwithin were found below a folder."""
        return any(run == path or run.startswith(f"{path}/") for run in self.runs)

    def descend(self, path: str, stop: Callable[[str], bool]) -> str:
        """The folder below ``path`` through those that hold a single folder and no image, but not into one to ``stop``
        at."""
        for _ in range(MOST_LEVELS):
            folders = self.entries(path).folders
            if len(folders) != 1 or self.images_in(path) or stop(child := join(path, folders[0])):
                break
            path = child
        return path

    def passed_over(self) -> list[str]:
        """What was passed over, in sentences."""
        said = []
        if self.endings:
            total = sum(self.endings.values())
            kinds = ", ".join(
                f"{count:,} {ending or 'without ending'}" for ending, count in self.endings.most_common(8)
            )
            more = f" and {len(self.endings) - 8} more kinds" if len(self.endings) > 8 else ""
            said.append(f"{total:,} {'file is' if total == 1 else 'files are'} not an image: {kinds}{more}")
        visible = {name: count for name, count in self.system.items() if not name.startswith(".")}
        if visible:
            names = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(visible.items()))
            said.append(f"left out as files of the system: {names}")
        if self.runs:
            count = len(self.runs)
            said.append(
                f"left out as {'a run' if count == 1 else f'{count} runs'} of fitwithin: {listed(sorted(self.runs), 3)}"
            )
        return said

    def _is_image(self, path: str) -> bool:
        if path not in self._images:
            self._images[path] = is_image(os.path.join(self.root, path))
            if not self._images[path]:
                self.endings[os.path.splitext(path)[1].lower()] += 1
        return self._images[path]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one. Only a link is looked up: of others the listing says what they are."""
    if entry.is_symlink():
        return os.path.isdir(entry.path)  # a link to itself is none; DirEntry.is_dir raises there
    return entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, and no pipe. A dangling link is one that decoding will report (git-annex leaves them)."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def join(path: str, name: str) -> str:
    """A path below another one."""
    return f"{path}/{name}" if path else name


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
