"""The exceptions of fitwithin; ``exit_code`` is that of a command which such an error ends.

A message is a sentence: the value, the limit, and what to do next.
"""

from __future__ import annotations


class FitwithinError(Exception):
    """The base of every error that is raised on purpose."""

    exit_code = 1


class UsageError(FitwithinError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class DataError(UsageError):
    """The images do not do: there are none, only one class, a class that is too small, or files that cannot be read."""


class BudgetError(UsageError):
    """The limits leave no room for a single candidate."""


class RunFolderError(UsageError):
    """The output folder holds something else, cannot be written, or is not a run."""


class DeviceError(FitwithinError):
    """The device is absent, or does not do what its driver promised."""

    exit_code = 3


class OutOfMemory(DeviceError):
    """The memory cap was reached. Only engine/device.py and engine/cuda.py raise this."""


class DeviceFull(OutOfMemory):
    """An allocation within the memory cap failed: other processes hold the device's memory."""


class CaptureError(DeviceError):
    """A training step or an evaluation's pass cannot be recorded as a CUDA graph; it may run without one."""


class LoaderTimeout(DeviceError):
    """The loaders make no more batches; loaders of another process may."""


class PeerLost(DeviceError):
    """A process that trains together with this one is gone; its own outcome says why."""


class TrainingError(FitwithinError):
    """No candidate left a usable model."""

    exit_code = 4
