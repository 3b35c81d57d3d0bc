"""The words that several commands take, each with its help, and the list of those that are limits of a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from fitwithin.recipe import DEFAULT

Command = TypeVar("Command", bound=Callable[..., Any])

Data = Annotated[
    Path, typer.Argument(help="A folder of images: DATA/<class>/* or DATA/{train,val,test}/<class>/*.", metavar="DATA")
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN")]
Memory = Annotated[str | None, typer.Option("--memory", help="Cap on device memory, such as 6GiB.", show_default=False)]
Time = Annotated[str | None, typer.Option("--time", help="Wall-clock budget, such as 3h.", show_default=False)]
GpuTime = Annotated[
    str | None, typer.Option("--gpu-time", help="Budget of seconds the device is held, such as 9h.", show_default=False)
]
Inference = Annotated[
    str | None,
    typer.Option("--inference", help="Budget per image of the ensemble, such as 2ms.", show_default=False),
]
Scope = Annotated[
    str | None,
    typer.Option(
        "--scope", help="What the time bounds: 'total' run (default) or each 'candidate'.", show_default=False
    ),
]
Models = Annotated[
    str | None,
    typer.Option("--models", help="timm names or patterns; default: the paper's ten.", show_default=False),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Of amp, amp-bf16, fp32, tf32; default: the recipe's.", show_default=False),
]
Sizes = Annotated[
    str | None, typer.Option("--sizes", help="Training sizes in pixels; default: 160,224.", show_default=False)
]
TestSizes = Annotated[
    str | None, typer.Option("--test-sizes", help="Evaluation sizes; default: the recipe's.", show_default=False)
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help=f"A recipe's name or TOML file; default: {DEFAULT}.", show_default=False)
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Accounting = Annotated[
    str | None,
    typer.Option(
        "--memory-accounting",
        help="'process' (default): as the driver counts; 'allocator': as the challenge did.",
        show_default=False,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of split, weights and augmentation.", show_default=False)]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at images that cannot be read.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", help="Profile so many candidates at once, each under the cap; default: 1.", show_default=False
    ),
]
DataParallel = Annotated[
    int | None,
    typer.Option(
        "--data-parallel",
        help="Train each candidate on so many GPUs at once, from --device on; default: 1.",
        show_default=False,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        help="Work on so many GPUs at once, from --device on, candidates side by side; default: --data-parallel.",
        show_default=False,
    ),
]
Search = Annotated[
    str | None,
    typer.Option(
        "--search", help="How candidates share the time: halving (default), optuna or exhaustive.", show_default=False
    ),
]
MinGain = Annotated[
    float | None,
    typer.Option(
        "--min-gain",
        help="Of a search: leave time unspent that gains fewer points of accuracy per GPU-hour.",
        show_default=False,
    ),
]
Emulate = Annotated[
    str | None,
    typer.Option(
        "--emulate-device-memory",
        help="Hold the rest of the GPU's memory, as if it were a card of this size.",
        show_default=False,
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine", help="Where jobs run: 'local' (default), this machine; 'ray', a Ray cluster.", show_default=False
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="The cluster's head, HOST:PORT or auto; default: one of this machine.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for another program.")]

#: What may be asked of a run, by the names of the library; in this order they stand in every command that takes them.
LIMITS: dict[str, Any] = {
    "memory": Memory,
    "time": Time,
    "gpu_time": GpuTime,
    "inference": Inference,
    "models": Models,
    "precision": Precision,
    "sizes": Sizes,
    "test_sizes": TestSizes,
    "scope": Scope,
    "recipe": RecipeName,
    "device": Device,
    "accounting": Accounting,
    "seed": Seed,
    "strict": Strict,
    "jobs": Jobs,
    "data_parallel": DataParallel,
    "gpus": Gpus,
    "search": Search,
    "min_gain": MinGain,
    "emulate_device_memory": Emulate,
    "engine": EngineName,
    "ray_address": RayAddress,
}


def with_limits(*without: str) -> Callable[[Command], Command]:
    """Let a command take the LIMITS, but for some, between its first word and its own options.

    It gets those that were given as keywords, and ``device`` always.
    """

    def dress(command: Command) -> Command:
        first, *own = inspect.signature(command, eval_str=True).parameters.values()
        defaults: dict[str, Any] = {"device": "auto", "strict": False}
        limits = [
            inspect.Parameter(name, first.kind, default=defaults.get(name), annotation=LIMITS[name])
            for name in LIMITS
            if name not in without
        ]
        taken = [first, *limits, *(each for each in own if each.kind is not inspect.Parameter.VAR_KEYWORD)]

        @functools.wraps(command)
        def dressed(**asked: Any) -> Any:
            # A 0 is an answer, if a wrong one.
            absent = [name for name in LIMITS if asked.get(name) is None or asked[name] is False]
            return command(**{name: value for name, value in asked.items() if name not in absent})

        dressed.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
        dressed.__annotations__ = {each.name: each.annotation for each in taken}
        return cast("Command", dressed)

    return dress
