"""The sha256 of large files, remembered for as long as a file's size and date stay."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from fitwithin.files import cache_root, write_text_atomic


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal; OSError if it cannot be read. A second look reads no more than a list."""
    real = path.resolve()
    state = real.stat()
    mark = [state.st_size, state.st_mtime_ns]
    remembered = _remembered()
    if remembered.get(str(real), [])[:2] == mark:
        return str(remembered[str(real)][2])
    with real.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    kept = {name: each for name, each in _remembered().items() if Path(name).is_file()}
    kept[str(real)] = [*mark, value]
    _list().parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(_list(), json.dumps(kept, indent=0), shared=True)
    return value


def _list() -> Path:
    return cache_root() / "weights" / "sha256.json"


def _remembered() -> dict[str, list[int | str]]:
    with suppress(OSError, ValueError):
        found = json.loads(_list().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
