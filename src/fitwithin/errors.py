"""The exceptions of fitwithin, and the exit code with which each ends a command.

    FitwithinError              1   any of those below
    ├── UsageError              2   what was asked for cannot be done as asked
    │   ├── DataError           2   the images: none, one class, a class too small, unreadable
    │   ├── BudgetError         2   the limits leave no room for even one candidate
    │   ├── RunFolderError      2   the output folder: taken, unwritable, or not a run
    │   └── WeightsError        2   pretrained weights: damaged, of another model, or not to be had
    ├── DeviceError             3   the device: absent, or it does not do what its driver promised
    │   ├── OutOfMemory         3   the memory cap was reached (recognised in engine/memory.py alone)
    │   │   └── DeviceFull      3   others left less of the device's memory than the cap
    │   ├── CaptureError        3   a step or pass cannot be recorded as a CUDA graph; it can still run
    │   ├── LoaderTimeout       3   the loaders make no more batches; another process may continue
    │   └── PeerLost            3   a process that shares the job is gone
    ├── DiskFull                3   a disk is full; what was done is kept, and the run can go on
    └── TrainingError           4   nothing that was tried left a usable model

A message is a sentence: the value, the limit, and what to do next.
"""

from __future__ import annotations


class FitwithinError(Exception):
    """The base of every error that is raised on purpose."""

    exit_code = 1


class UsageError(FitwithinError):
    """The request cannot be carried out as written; nothing was spent or written."""

    exit_code = 2


class DataError(UsageError):
    """The images cannot be read, or cannot serve as a classification data set."""


class BudgetError(UsageError):
    """The limits leave no room for a single candidate."""


class RunFolderError(UsageError):
    """The output folder holds something else, cannot be written, or is not a run."""


class WeightsError(UsageError):
    """Pretrained weights are damaged, belong to another model, hold code, or cannot be had."""


class DeviceError(FitwithinError):
    """The device is absent or cannot do what is asked."""

    exit_code = 3


class OutOfMemory(DeviceError):
    """An allocation went past the memory cap."""


class DeviceFull(OutOfMemory):
    """An allocation within the memory cap failed: other processes hold the device's memory."""


class CaptureError(DeviceError):
    """A training step or an evaluation's pass cannot be recorded as a CUDA graph; it may run without one."""


class LoaderTimeout(DeviceError):
    """The loaders make no more batches; loaders of another process may."""


class PeerLost(DeviceError):
    """A process that trains together with this one is gone; its own outcome says why."""


class DiskFull(FitwithinError):
    """A disk has no room left. What was done is kept."""

    exit_code = 3


class TrainingError(FitwithinError):
    """No candidate left a usable model."""

    exit_code = 4
