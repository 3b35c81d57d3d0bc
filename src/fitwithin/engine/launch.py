"""The worker server's launch: the first thing that a run does, for it waits for the server's imports in the end.

They take 1.8 s on two cores, 3.3 with nothing in the page cache, and 7.9 so without bytecode. So this module imports
next to nothing, commands launch before they import the rest of the library (0.2 s) and ask the driver for the GPUs
there are (nvidia-smi, a process of its own), and where Python keeps no bytecode it is kept in the cache.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from fitwithin import files
from fitwithin.errors import DeviceError

READY, STARTED, ENDED = b"R", b"S", b"E"
MESSAGE = struct.Struct("=ci")

#: How long importing torch and timm may take before something is wrong.
READY_WITHIN_S = 180.0

#: PyTorch's CUDA allocator grows its segments: memory then is a line in the batch, where blocks of fixed size
#: left 16 to 36 % of it unused (H200: resnet18 amp at 520 images reserved 5,414 MiB for 3,438, and 3,476 this way).
#: A setting of the user's own stays.
ALLOCATOR = "PYTORCH_ALLOC_CONF"
GROWING = "expandable_segments:True"


class Server:
    """The process of :mod:`fitwithin.worker`, and the socket on which jobs are asked for.

    Args:
        log: a file for what the server and its children print.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, open(log, "ab") if log else open(os.devnull, "wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fitwithin.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment(),
                start_new_session=True,
            )
        self.ready = False
        self._waiting = threading.Lock()

    def await_ready(self, until_at: float = math.inf) -> bool:
        """Wait until it has imported everything, no longer than ``until_at``; whether it has. DeviceError if it cannot.

        Several threads may wait.
        """
        with self._waiting:
            return self.ready or self._told(until_at)

    def _told(self, until_at: float) -> bool:
        left_s = max(0.001, until_at - time.monotonic())
        try:
            kind, _ = receive(self.control, min(READY_WITHIN_S, left_s))
        except (TimeoutError, ConnectionError) as error:
            if isinstance(error, TimeoutError) and left_s < READY_WITHIN_S:
                return False
            with suppress(subprocess.TimeoutExpired):  # its last word comes after the socket's end
                self.process.wait(timeout=1)
            last_line = self.log.read_text(errors="replace").strip().splitlines()[-1:] if self.log else []
            raise DeviceError(
                f"the worker server, which imports torch and timm, did not start: {''.join(last_line)}"
            ) from error
        assert kind == READY
        self.ready = True
        return True

    def close(self) -> None:
        """End it, and with it any child."""
        self.control.close()
        if not self.ready:  # still importing, without a child: it would take seconds to notice
            self.process.kill()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def launched(server: Server | None = None) -> Iterator[Server]:
    """The server that was launched before; without one, one that is launched now and ends with the block."""
    if server is not None:
        yield server
        return
    with tempfile.TemporaryDirectory(prefix="fitwithin-") as scratch, Server(Path(scratch) / "worker.log") as own:
        yield own


def environment() -> dict[str, str]:
    """What the server finds in its environment."""
    return {**files.bytecode_environment(), ALLOCATOR: allocator(), "PYTHONUNBUFFERED": "1"}


def allocator() -> str:
    """The settings of PyTorch's CUDA allocator; the variable's older name counts where it is set."""
    return os.environ.get(ALLOCATOR) or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or GROWING


def receive(source: socket.socket, within_s: float) -> tuple[bytes, int]:
    """A message of the server's; TimeoutError if none came, ConnectionError if it is gone."""
    source.settimeout(within_s)
    data = b""
    while len(data) < MESSAGE.size:
        part = source.recv(MESSAGE.size - len(data))
        if not part:
            raise ConnectionError("the worker server is gone")
        data += part
    kind, value = MESSAGE.unpack(data)
    return kind, value
