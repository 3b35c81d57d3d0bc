"""Folders that are there whole or not at all: made under another name, and renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A sibling of ``target`` that names its host and process, removed if it is still there at the end."""
    folder = target.with_name(f"{target.name}@{socket.gethostname()}@{os.getpid()}@{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove(target: Path) -> None:
    """Takes ``target`` away whole: renamed first, so that nobody ever opens half of it."""
    with temporary(target) as folder, suppress(FileNotFoundError):
        os.rename(target, folder / "old")


def remove_stale(parent: Path) -> None:
    """Removes what killed builds of this host left behind."""
    for folder in parent.glob("*@*@*@*"):
        _, host, pid, _ = folder.name.rsplit("@", 3)
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and is somebody else's
        return True
    return True
