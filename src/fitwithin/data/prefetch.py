"""Batches made by processes in memory shared with this one and pinned for the GPU: nothing is copied twice.

Threads share one interpreter: twelve made 2,000 to 5,000 images/s at 160 px (an H100's host, 16 cores). PyTorch's
DataLoader passes every batch through a file of shared memory, at 1 GB/s. Here each process writes its part of every
batch where the GPU fetches it. A supervisor process forks all of them before CUDA starts.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from fitwithin.data.batches import Batch, Batches
from fitwithin.data.pack import Pack
from fitwithin.errors import DataError, DeviceError
from fitwithin.machine import die_with_parent

#: A ring has so many slots for batches. A slot is filled again HELD batches later, when the device has fetched its
#: batch long ago (Cuda.limit_run_ahead lets the host run two steps ahead).
SLOTS, HELD = 5, 3

#: A worker's message about its part of a batch: the stream's number, the batch's, and the error if it failed.
DONE = struct.Struct("=ii248s")

#: The memory begins with the number of the stream that is open in each ring; whole pages keep the slots aligned.
HEADER = 4096

#: Seconds after which a silent worker is looked at, and those that slow ones have at the end of a stream.
LOOK_S, DRAIN_S = 1.0, 2.0

#: Linux: make all pages now (linux/mman.h; Python has no name for it yet).
MADV_POPULATE_WRITE = 23

MakeBatches = Callable[..., Batches]


def slot_bytes(batch: int, px: int) -> int:
    """The bytes of a batch of images with labels of up to three numbers, in whole pages."""
    return -(-batch * (px * px * 3 + 3 * 8) // HEADER) * HEADER


def ring_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    """The bytes of a ring for batches of these (images, pixels a side)."""
    return SLOTS * max(slot_bytes(batch, px) for batch, px in shapes)


class PrefetchLoader:
    """The processes and their rings. Start it before CUDA and before any thread.

    Args:
        pack: its images are loaded; the processes inherit it.
        workers: the number of processes.
        rings: bytes of each ring, from :func:`ring_bytes`; each serves one stream at a time.
        pin: whether a GPU fetches from them.
    """

    def __init__(self, pack: Pack, workers: int, rings: Sequence[int], *, pin: bool) -> None:
        self.pack = pack
        self.workers = workers
        self._rings = tuple(rings)
        self._starts = tuple(HEADER + sum(rings[:ring]) for ring in range(len(rings)))
        #: All of its memory, which is the host's.
        self.capacity_bytes = HEADER + sum(rings)
        self._pin = pin
        #: The memory's address once it is pinned.
        self._pinned_at = self._supervisor = self._opened = 0
        #: If a batch takes more seconds, the processes hang: it is ``stalled``, and no stream can be opened any more.
        self.loader_timeout_s = math.inf
        self.stalled = False
        self._commands: list[Connection] = []
        self._streams: dict[int, Stream] = {}

    def start(self) -> PrefetchLoader:
        """Fork the processes."""
        self._memory = mmap.mmap(-1, self.capacity_bytes)
        self._current = np.frombuffer(self._memory, np.int64, len(self._rings))
        pipes = [Pipe(duplex=False) for _ in range(self.workers)]
        receivers, self._commands = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
        self._done_reader, done_fd = os.pipe()
        self._supervisor = _fork(partial(_supervise, self.pack, receivers, self._commands, done_fd, self._memory))
        for receiver in receivers:
            receiver.close()
        os.close(done_fd)
        return self

    @contextmanager
    def stream(self, batches_cls: MakeBatches, *, until_at: float = math.inf, **arguments: Any) -> Iterator[Stream]:
        """Open a stream of the batches of ``batches_cls(pack, **arguments)``, in the first ring that has room.

        The stream ends if a batch is not there by ``until_at`` (monotonic), or within ``loader_timeout_s``.

        Raises:
            DataError: (while it is read) a worker failed or died.
        """
        batches = batches_cls(self.pack, **arguments)
        needed_bytes = ring_bytes([(batches.size, batches.px)])
        free = [n for n, size in enumerate(self._rings) if not self._current[n] and size >= needed_bytes]
        assert free, "no ring is free that has room"
        if self._pin and not self._pinned_at:
            self._pin_memory()
        ring, self._opened = free[0], self._opened + 1
        self._current[ring] = self._opened
        opened = Stream(self, self._memory, self._opened, self._starts[ring], batches, until_at)
        self._streams[opened.number] = opened
        self.command((opened.number, ring, self._starts[ring], batches_cls, arguments))
        try:
            yield opened
        finally:
            self._current[ring] = 0  # batches that were asked for and are not begun are not made any more
            if not self.stalled:
                with suppress(DataError):
                    opened.drain()
            if not self.stalled:
                del self._streams[opened.number]

    def settle(self) -> None:
        """Wait for processes that were slow when the time of a stream was over: then they are not stalled."""
        if self.stalled:
            self.stalled = False
            with suppress(DataError):
                for left in self._streams.values():
                    left.drain()
            if not self.stalled:
                self._streams.clear()

    def command(self, message: tuple[Any, ...]) -> None:
        """Send every worker a message."""
        for command in self._commands:
            with suppress(BrokenPipeError):  # :meth:`listen` will notice
                command.send(message)

    def listen(self, until_at: float) -> None:
        """Note the parts of batches that are done; waits until there is one, or until ``until_at``.

        Raises:
            DataError: a worker died.
        """
        while not select.select([self._done_reader], [], [], max(0.0, min(LOOK_S, until_at - time.monotonic())))[0]:
            self._check_alive()
            if time.monotonic() >= until_at:
                self.stalled = True
                return
        if not (data := os.read(self._done_reader, 64 * DONE.size)):
            self._check_alive(0)
        for stream, number, text in DONE.iter_unpack(data):
            self._streams[stream].note(number, text.rstrip(b"\0").decode("utf-8", "replace"))

    def _check_alive(self, options: int = os.WNOHANG) -> None:
        """DataError if the supervisor has ended; with ``options`` 0 once it has."""
        if not self._supervisor:
            raise DataError("the processes that load images have ended")
        pid, status = os.waitpid(self._supervisor, options)
        if pid:
            self._supervisor = 0
            code = os.waitstatus_to_exitcode(status)
            raise DataError(f"a process that loads images died (status {code}); the machine may be short of memory")

    def _pin_memory(self) -> None:
        size, address = self.capacity_bytes, int(self._current.ctypes.data)
        if failed := int(torch.cuda.cudart().cudaHostRegister(address, size, 0)):  # type: ignore[no-untyped-call]
            raise DeviceError(f"{size} bytes of host memory could not be pinned for the GPU (CUDA error {failed})")
        self._pinned_at = address

    def close(self) -> None:
        """End the processes. The memory goes with the last batch that is held."""
        if self._pinned_at:
            with suppress(RuntimeError):  # after an error of CUDA's nothing works; the process is about to end
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaHostUnregister(self._pinned_at)  # type: ignore[no-untyped-call]
            self._pinned_at = 0
        for command in self._commands:
            command.close()
        self._commands = []
        if self._supervisor:
            os.kill(self._supervisor, signal.SIGKILL)  # the workers, also those that hang, end with it
            os.waitpid(self._supervisor, 0)
            os.close(self._done_reader)
            self._supervisor = 0

    def __enter__(self) -> PrefetchLoader:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(eq=False)
class Stream:
    """Batches in order. A batch is valid until HELD later ones have been taken."""

    loader: PrefetchLoader
    memory: mmap.mmap
    number: int
    start: int
    batches: Batches
    until_at: float
    #: Batches that are made ahead.
    prefetch: ClassVar[int] = SLOTS - HELD + 1
    _asked: int = 0
    _taken: int = 0
    _made: Counter[int] = field(default_factory=Counter)
    _failed: str = ""

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self.batches)):
            while self._asked < min(number + self.prefetch, len(self.batches)):
                self.loader.command((self.number, self._asked))
                self._asked += 1
            if not self._wait(number, min(self.until_at, time.monotonic() + self.loader.loader_timeout_s)):
                return
            self._taken, _ = number + 1, self._made.pop(number)  # forgotten: a long training has many
            if self._failed:
                raise DataError(f"the images could not be loaded: {self._failed}")
            x_bhwc, y_b = _views(self.memory, self.start, self.batches, number)
            yield torch.from_numpy(x_bhwc), torch.from_numpy(y_b)

    def note(self, number: int, failed: str) -> None:
        """A worker is done with its part of that batch."""
        self._made[number] += 1
        self._failed = self._failed or failed

    def _wait(self, number: int, until_at: float) -> bool:
        """Wait until all parts of that batch are made or failed; whether they were in time."""
        while self._made[number] < self.loader.workers and not self.loader.stalled:
            self.loader.listen(until_at)
        return self._made[number] == self.loader.workers

    def drain(self) -> None:
        """Wait until no batch that was asked for is being made, whether or not the stream's time is over."""
        until_at = time.monotonic() + DRAIN_S
        for number in range(self._taken, self._asked):
            self._wait(number, until_at)


def _views(
    memory: mmap.mmap, start: int, batches: Batches, number: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The slot of a batch in the ring that begins at ``start``: pixels [B, H, W, 3] and labels [B] or [B, 3]."""
    size, px = batches.size, batches.px
    labels_at = start + number % SLOTS * slot_bytes(size, px)
    y_b = np.frombuffer(memory, np.int64, math.prod(batches.label_shape), labels_at).reshape(batches.label_shape)
    x_bhwc = np.frombuffer(memory, np.uint8, size * px * px * 3, labels_at + y_b.nbytes)
    return x_bhwc.reshape(size, px, px, 3), y_b


def _fork(work: Callable[[], None]) -> int:
    """Fork a process that does ``work`` and ends; its number."""
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 warns where there are threads: their locks stay as they are in the child, which uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        die_with_parent()
        if os.getppid() == parent:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
            gc.disable()  # nothing of the parent's is finalized here
            work()
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _supervise(
    pack: Pack, inputs: list[Connection], commands: list[Connection], done_fd: int, memory: mmap.mmap
) -> None:
    """Fork the workers, make the memory's pages, and end as soon as a worker does; the others end with this process."""
    for command in commands:
        command.close()  # or no worker would see the end of its commands
    for worker_id, receiver in enumerate(inputs):
        _fork(partial(_work, pack, worker_id, len(inputs), receiver, done_fd, memory))
    os.close(done_fd)
    with suppress(OSError):
        memory.madvise(MADV_POPULATE_WRITE)
    for _ in inputs:
        if os.wait()[1]:
            os._exit(1)


def _work(pack: Pack, worker_id: int, workers: int, commands: Connection, done_fd: int, memory: mmap.mmap) -> None:
    """Fill the ``worker_id``-th part of every batch that is asked for, until the commands end."""
    torch.set_num_threads(1)
    current = np.frombuffer(memory, np.int64, HEADER // 8)
    streams: dict[int, _Described] = {}
    while True:
        try:
            stream, *message = commands.recv()
        except EOFError:
            return
        if len(message) > 1:
            streams = {number: other for number, other in streams.items() if other.ring != message[0]}
            streams[stream] = _Described(*message)
            continue
        (number,), failure = message, b""
        try:
            if current[streams[stream].ring] == stream:
                _fill(memory, streams[stream], pack, number, worker_id, workers)
        except Exception as error:
            traceback.print_exc()
            failure = f"{type(error).__name__}: {' '.join(str(error).split())}".encode()[:248]
        os.write(done_fd, DONE.pack(stream, number, failure))


@dataclass
class _Described:
    """A stream as a worker knows it: its ring, where that begins, and its batches once they are needed."""

    ring: int
    start: int
    batches_cls: MakeBatches
    arguments: dict[str, Any]
    batches: Batches | None = None


def _fill(memory: mmap.mmap, stream: _Described, pack: Pack, number: int, worker_id: int, workers: int) -> None:
    batches = stream.batches = stream.batches or stream.batches_cls(pack, **stream.arguments)
    x_bhwc, y_b = _views(memory, stream.start, batches, number)
    edges = np.linspace(0, batches.size, workers + 1).astype(int)
    labels, fill = batches.prepare(number)
    part = range(int(edges[worker_id]), int(edges[worker_id + 1]))
    there = labels[part.start : part.stop]
    y_b[part.start : part.start + len(there)] = there
    fill(x_bhwc, part)
