"""What each image file is, read once: its bytes, size, format, mode, and a small grey picture to compare it by.

Processes of data/crew.py read the files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from fitwithin.data import crew
from fitwithin.data.decode import UNREADABLE, header, read
from fitwithin.data.decode_pool import CRASHED
from fitwithin.data.fingerprint import digest
from fitwithin.data.inspection.greys import SIDE, Greys, grey_of
from fitwithin.machine import cores

#: A JPEG is decoded at a fraction that keeps so many pixels.
AT_LEAST = 4 * SIDE

#: Files that a process reads for one answer.
AT_ONCE = 16

#: Gets the number of things that are done, and how many there are.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A file: its ``size`` in bytes, the ``digest`` of all of them, and what its header says, in pixels.

    ``reason`` says why it cannot be read; it is "" where it can. ``remarks`` are those of data/decode.py.
    """

    size: int = 0
    digest: bytes = b""
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    remarks: tuple[str, ...] = ()
    reason: str = ""


def look(
    root: Path, paths: Sequence[str], greys: Greys, on_progress: OnProgress, workers: int | None = None
) -> tuple[Seen, ...]:
    """Read the files at ``paths`` below ``root``: what each is, in their order. The ``greys`` get their pictures.

    Raises:
        DataError: no process could be started.
    """
    seen, total = [Seen()] * len(paths), len(paths)
    task = f"{__name__}:looker"
    work = crew.work(task, [str(root)], paths, workers=workers or cores(), at_once=AT_ONCE, total=total)
    with closing(work) as found:
        for done, each in enumerate(found, 1):
            if each.lost:
                seen[each.position] = Seen(reason=CRASHED)
            else:
                seen[each.position], grey = each.answer
                if grey:
                    greys.put(each.position, grey)
            on_progress(done, total)
    return tuple(seen)


def looker(root: str) -> Callable[[list[str]], list[tuple[Seen, bytes]]]:
    """A function that looks at the files at paths below ``root``; a grey picture is b"" where there is none."""

    def look_at(paths: list[str]) -> list[tuple[Seen, bytes]]:
        return [_look(Path(root, path)) for path in paths]

    return look_at


def _look(path: Path) -> tuple[Seen, bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        return Seen(reason=error.strerror or str(error)), b""
    seen = Seen(size=len(content), digest=digest(content))
    try:
        image, remarks = read(io.BytesIO(content), at_least=AT_LEAST)
        about = header(io.BytesIO(content))
    except UNREADABLE as error:
        return replace(seen, reason=str(error) or type(error).__name__), b""
    return replace(seen, remarks=remarks, **about._asdict()), grey_of(image).tobytes()
