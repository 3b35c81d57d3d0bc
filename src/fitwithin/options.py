"""The words that several commands take, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fitwithin.recipe import DEFAULT

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
Search = Annotated[
    str | None,
    typer.Option(
        "--search", help="How candidates share the time: 'exhaustive' (default) or 'halving'.", show_default=False
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
