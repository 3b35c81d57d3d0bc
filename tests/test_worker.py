"""What a worker says of an error."""

import pytest

torch = pytest.importorskip("torch")

from fitwithin import worker  # noqa: E402 - the worker's errors are torch's
from fitwithin.errors import LoaderTimeout  # noqa: E402


def test_a_device_that_failed_is_no_error_of_the_model() -> None:
    """Another process goes on from the checkpoint."""
    error = torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure'\n")
    found = worker._failure(error, None)
    assert (found.kind, found.reason) == ("died", "CUDA error: unspecified launch failure")
    assert worker._failure(RuntimeError("size mismatch"), None).kind == "error"
    assert worker._failure(LoaderTimeout("no batch"), None).kind == "hung"
