"""fitwithin: the best image classifier that fits within a memory cap, a time budget and an inference budget.

    result = fitwithin.run("photos/", memory="6GiB", time="3h")
    print(result.table())
    result.predict(["new.jpg"])

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fitwithin.errors import (
    BudgetError,
    DataError,
    DeviceError,
    FitwithinError,
    OutOfMemory,
    RunFolderError,
    TrainingError,
    UsageError,
)
from fitwithin.version import __version__ as __version__

if TYPE_CHECKING:
    from fitwithin.api import plan, resume, run
    from fitwithin.inference.model import Model
    from fitwithin.inference.predictions import Prediction
    from fitwithin.inspection.inspect import inspect
    from fitwithin.pipeline.result import Result, load
    from fitwithin.planning.plan import Plan
    from fitwithin.report.schema import Report

#: The modules of what is imported when it is first used.
_HOMES = {
    "Model": "inference.model",
    "Plan": "planning.plan",
    "Prediction": "inference.predictions",
    "Report": "report.schema",
    "Result": "pipeline.result",
    "inspect": "inspection.inspect",
    "load": "pipeline.result",
    "plan": "api",
    "resume": "api",
    "run": "api",
}

__all__ = [
    "BudgetError",
    "DataError",
    "DeviceError",
    "FitwithinError",
    "Model",
    "OutOfMemory",
    "Plan",
    "Prediction",
    "Report",
    "Result",
    "RunFolderError",
    "TrainingError",
    "UsageError",
    "inspect",
    "load",
    "plan",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fitwithin' has no attribute {name!r}")
    return getattr(import_module(f"fitwithin.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
