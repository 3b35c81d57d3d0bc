"""The launch of the worker server: the first thing that a run does, because the server's imports take the longest.

They take 1.8 s on two cores, 3.3 with nothing in the page cache, and 7.9 if there is no bytecode either. So this module
imports next to nothing, and commands launch before they import the rest of the library (0.2 s) and ask nvidia-smi for
the GPUs. Where Python keeps no bytecode, the cache keeps it.
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

from fitwithin import files
from fitwithin.errors import DeviceError

READY, STARTED, ENDED = b"R", b"S", b"E"
MESSAGE = struct.Struct("=ci")

#: How long importing torch and timm may take before something is wrong.
READY_WITHIN_S = 180.0

#: PyTorch's CUDA allocator grows its segments: memory then is a line in the batch. Blocks of fixed size left 16 to 36 %
#: of it unused (H200: resnet18 amp at 520 images reserved 5,414 MiB for 3,438, and 3,476 this way). A user's own
#: setting stays.
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
                # -P: modules of the user's working folder never stand in for those of Python or torch.
                [sys.executable, "-P", "-m", "fitwithin.worker", str(theirs.fileno())],
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
            if self.ready:
                return True
            left_s = max(0.001, until_at - time.monotonic())
            try:
                kind, _ = receive(self.control, min(READY_WITHIN_S, left_s))
            except (TimeoutError, ConnectionError) as error:
                if isinstance(error, TimeoutError) and left_s < READY_WITHIN_S:
                    return False
                with suppress(subprocess.TimeoutExpired):  # its last words come after the socket's end
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

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def launched(server: Server | None = None) -> Iterator[Server]:
    """The given server; without one, a server that is launched now and ends with the block."""
    if server is not None:
        yield server
        return
    with tempfile.TemporaryDirectory(prefix="fitwithin-") as scratch, Server(Path(scratch) / "worker.log") as own:
        yield own


def environment() -> dict[str, str]:
    """The server's environment variables."""
    return {**files.bytecode_environment(), ALLOCATOR: allocator(), "PYTHONUNBUFFERED": "1"}


def allocator() -> str:
    """The settings of PyTorch's CUDA allocator; the variable's older name counts too."""
    return os.environ.get(ALLOCATOR) or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or GROWING


def receive(source: socket.socket, within_s: float) -> tuple[bytes, int]:
    """A message of the server; TimeoutError if none came, ConnectionError if it is gone."""
    source.settimeout(within_s)
    if not (data := source.recv(MESSAGE.size)):  # a local socket never splits five bytes that were sent at once
        raise ConnectionError("the worker server is gone")
    kind, value = MESSAGE.unpack(data)
    return kind, value
