"""Image files are decoded by as many processes as there are cores, which append their pixels to one file.

Threads share Python's lock, and so read no more than 1,000 to 1,650 small images a second on 2 as on 16 cores. What is
decoded within a moment never meets a process: one takes 0.2 s to start.
"""

# H W pixels

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fitwithin.data.dataset import Broken
from fitwithin.data.decode import UNREADABLE, read
from fitwithin.data.fingerprint import Status, status_of
from fitwithin.errors import DataError
from fitwithin.files import bytecode_environment

#: What is decoded within so many seconds is decoded by this process; each other one is to have so much to do.
ALONE_S = 0.25

#: Images that a process decodes for one answer.
AT_ONCE = 8

#: An image is given up when so many processes ended by themselves that had it: once among others, then alone.
MOST_LOSSES = 3

#: Why an image is left out whose decoding ended a process, as bugs in image libraries do.
CRASHED = "decoding it ended the process"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An image in the file of pixels: where, its height and width, its checksum, and what is to be remarked on it."""

    offset: int
    height: int
    width: int
    crc: int
    remarks: tuple[str, ...]


#: What became of an image.
Found = Stored | Broken

#: What a process runs. Were this module its main one, what it answers could not be read here.
_MAIN = "from fitwithin.data.decode_pool import main; main()"


def decode_all(
    root: Path, paths: Sequence[str], shorter_px: int, file: Path, workers: int, until_at: float = math.inf
) -> Generator[tuple[int, Found], None, None]:
    """Decode the images at ``paths`` below ``root`` and append their pixels, uint8 [H, W, 3], to ``file``: yields the
    position in ``paths`` of each, and what became of it, as they are done.

    They are begun in order, and none is waited for after the monotonic instant ``until_at``; one at least is decoded.
    What was not waited for may have left bytes in the file that belong to no image.

    Raises:
        OSError: the file cannot be written.
        DataError: no process could be started.
    """
    began_at, done = time.monotonic(), 0
    with open(file, "ab", buffering=0) as out:
        for done, path in enumerate(paths, 1):
            yield done - 1, _stored(out.fileno(), [decode(root, path, shorter_px)])[0]
            now = time.monotonic()
            if now >= until_at:
                return
            if workers > 1 and now - began_at >= ALONE_S:
                break
    left = len(paths) - done
    if left:
        image_s = (time.monotonic() - began_at) / done
        num_processes = min(workers, math.ceil(left * image_s / max(ALONE_S, 1e-9)), -(-left // AT_ONCE))
        with closing(_Crew(root, shorter_px, file, num_processes)) as crew:
            yield from crew.decode(paths, done, until_at)


def decode(root: Path, path: str, shorter_px: int) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]] | Broken:
    """The pixels of an image, uint8 [H, W, 3] with min(H, W) <= shorter_px, and what is to be remarked on it; or why
    there are none."""
    before = status(root / path)
    try:
        # A JPEG decoded at a fraction keeps twice the pixels asked for, so that the resampling below decides.
        image, remarks = read(root / path, at_least=2 * shorter_px)
    except UNREADABLE as error:
        could_be_read = not (isinstance(error, OSError) and error.errno is not None)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return Broken(path=path, reason=reason, status=before if could_be_read else None)
    shorter = min(image.size)
    if shorter > shorter_px:
        width, height = (max(shorter_px, round(length * shorter_px / shorter)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image), remarks


def status(file: Path) -> Status | None:
    """The file's status; None if it cannot be had."""
    try:
        return status_of(os.stat(file))
    except OSError:
        return None


def _stored(descriptor: int, decoded: Sequence[tuple[npt.NDArray[np.uint8], tuple[str, ...]] | Broken]) -> list[Found]:
    """Append the pixels to the file at once, while no other process appends."""
    images = [each[0] for each in decoded if not isinstance(each, Broken)]
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        offset = os.lseek(descriptor, 0, os.SEEK_END)
        for image in images:
            rest = image.data.cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    found: list[Found] = []
    for each in decoded:
        if isinstance(each, Broken):
            found.append(each)
            continue
        image, remarks = each
        height, width, _ = image.shape
        crc = zlib.crc32(image.data)
        found.append(Stored(offset=offset, height=height, width=width, crc=crc, remarks=remarks))
        offset += image.nbytes
    return found


class _Crew:
    """Processes that decode. One that ends by itself is replaced, and the images that it had are tried one by one."""

    def __init__(self, root: Path, shorter_px: int, file: Path, num_processes: int) -> None:
        self.root, self.shorter_px, self.file = root, shorter_px, file
        self.num_processes = num_processes
        #: How often a process ended by itself that had the image at this position.
        self.losses: Counter[int] = Counter()
        self.failed_starts = 0
        #: The processes at work by what they answer on, and the images that they have: their places and paths.
        self.at_work: dict[Connection, tuple[subprocess.Popen[bytes], list[tuple[int, str]]]] = {}

    def launch(self) -> None:
        """Start a process. Its first answer, of no images, says that it is there."""
        ours, theirs = Pipe()
        words = [str(self.root), str(self.shorter_px), str(self.file)]
        with theirs:
            process = subprocess.Popen(
                # -P: modules of the user's working folder never stand in for those of Python.
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno()), *words],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=bytecode_environment(),
                start_new_session=True,
            )
        self.at_work[ours] = (process, [])

    def decode(self, paths: Sequence[str], first: int, until_at: float) -> Iterator[tuple[int, Found]]:
        """What became of the paths from the ``first`` on, as they are done."""
        whole = range(first, len(paths), AT_ONCE)
        waiting = deque([(at, paths[at]) for at in range(start, min(start + AT_ONCE, len(paths)))] for start in whole)
        for _ in range(self.num_processes):
            self.launch()
        while self.at_work:
            left_s = until_at - time.monotonic()
            ready = wait(list(self.at_work), None if left_s == math.inf else max(0.0, left_s))
            for ours in ready:
                assert isinstance(ours, Connection)
                process, images = self.at_work.pop(ours)
                try:
                    answer = ours.recv()
                except (EOFError, OSError):
                    ours.close()
                    found = self.ended(process, images, waiting)
                else:
                    if isinstance(answer, Exception):
                        self.at_work[ours] = (process, [])
                        raise answer
                    found = list(zip((position for position, _ in images), answer, strict=True))
                    if waiting:
                        self.at_work[ours] = (process, waiting.popleft())
                        with suppress(OSError):  # it has just ended, which its missing answer says
                            ours.send([path for _, path in self.at_work[ours][1]])
                    else:
                        self.end(ours, process)
                yield from found
            if not ready or time.monotonic() >= until_at:
                return

    def ended(
        self, process: subprocess.Popen[bytes], images: list[tuple[int, str]], waiting: deque[list[tuple[int, str]]]
    ) -> list[tuple[int, Found]]:
        """After a process ended by itself: the image that it ended at, if that is known."""
        code = process.wait()
        if not images:
            self.failed_starts += 1
            if self.failed_starts > self.num_processes:
                raise DataError(
                    f"a process that decodes images ended with code {code} as it started; is there memory for "
                    f"{self.num_processes} of them?"
                )
        self.launch()
        self.losses.update(position for position, _ in images)
        lost = [each for each in images if self.losses[each[0]] >= MOST_LOSSES]
        waiting.extendleft([each] for each in reversed(images) if each not in lost)
        return [(at, Broken(path=path, reason=CRASHED, status=status(Path(self.root, path)))) for at, path in lost]

    def end(self, ours: Connection, process: subprocess.Popen[bytes]) -> None:
        """End a process."""
        ours.close()
        process.kill()
        process.wait()

    def close(self) -> None:
        """End all of them."""
        while self.at_work:
            ours, (process, _) = self.at_work.popitem()
            self.end(ours, process)


def main() -> None:
    """A process that decodes, until its asker is gone."""
    number, root, shorter_px, file = sys.argv[1:]
    with Connection(int(number)) as asker, open(file, "ab", buffering=0) as out, suppress(EOFError, OSError):
        asker.send([])
        while True:
            paths = asker.recv()
            try:
                decoded = [decode(Path(root), path, int(shorter_px)) for path in paths]
                answer: list[Found] | Exception = _stored(out.fileno(), decoded)
            except Exception as error:  # it is raised again where the answer is read
                answer = error
            asker.send(answer)
