"""What is asked of a run: parsed once at the door from text into plain numbers, kept in the run store, read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

from fitwithin import recipe as recipes
from fitwithin import units
from fitwithin.budget import Budget
from fitwithin.candidate import TABLE_2, View, parse_precisions, parse_sizes, views_of
from fitwithin.errors import UsageError
from fitwithin.recipe import Recipe

#: The sizes of the paper.
SIZES = (160, 224)

#: How candidates share a budget: little by little (the default), so with Optuna's word on who enters, or all alike (the
#: default where each has the whole of it).
SEARCHES = ("halving", "optuna", "exhaustive")

#: Where jobs may run.
ENGINES = ("local", "ray")

#: Candidates that may be profiled side by side, GPUs that one may be trained on, and that may work at once.
MOST_JOBS, MOST_PARALLEL, MOST_GPUS = 32, 16, 64


class Limits(TypedDict, total=False):
    """What may be asked for, as text or numbers: bytes, seconds (``inference``: seconds per image) and pixels.

    ``memory`` ("6GiB") and one of ``time`` ("3h") and ``gpu_time`` are needed; ``models`` are timm names or patterns,
    ``sizes`` are trained at, ``test_sizes`` evaluated at; ``engine`` is ``local`` or ``ray``, a cluster whose head
    is at ``ray_address``. The other words are explained at :class:`~fitwithin.budget.Budget` and by the command line's
    help.
    """

    memory: str | int
    time: str | float
    gpu_time: str | float
    inference: str | float
    scope: str
    accounting: str
    models: str | Sequence[str]
    precision: str | Sequence[str]
    sizes: str | Sequence[int]
    test_sizes: str | Sequence[int]
    recipe: str
    seed: int
    strict: bool
    jobs: int
    data_parallel: int
    gpus: int
    search: str
    min_gain: float
    emulate_device_memory: str | int
    engine: str
    ray_address: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request. ``models`` are names or patterns; ``sizes`` are trained at, ``view_sizes`` evaluated at (pixels).

    A candidate is trained by ``data_parallel`` processes at once, on as many GPUs; ``gpus`` from ``device`` on work at
    once, so that ``slots`` candidates are trained side by side.
    """

    data: str
    budget: Budget
    recipe: Recipe
    models: tuple[str, ...] = TABLE_2
    precisions: tuple[str, ...] = ("amp", "fp32")
    sizes: tuple[int, ...] = SIZES
    view_sizes: tuple[int, ...] = SIZES
    device: str = "cpu"
    seed: int = 0
    strict: bool = False
    jobs: int = 1
    emulate_bytes: int | None = None
    data_parallel: int = 1
    search: str = "exhaustive"
    min_gain: float | None = None
    engine: str = "local"
    ray_address: str | None = None
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"{self.engine!r} is no engine; choose from {', '.join(ENGINES)}")
        if self.ray_address is not None and self.engine != "ray":
            raise UsageError(f"--ray-address {self.ray_address} was given without --engine ray; give both, or neither")
        if self.emulate_bytes is not None and self.engine == "ray":
            raise UsageError(
                "--emulate-device-memory would hold a GPU of the cluster that Ray gives to others; leave it out"
            )
        if self.data_parallel > 1 and self.engine == "ray":
            raise UsageError(f"--data-parallel {self.data_parallel} needs GPUs of one machine; leave out --engine ray")
        if self.jobs > 1 and self.engine == "ray":
            raise UsageError(
                f"--jobs {self.jobs} would hold several GPUs of the cluster at once and count one; give "
                f"--gpus {self.jobs}, which counts them"
            )
        if self.jobs > 1 and self.slots > 1:
            raise UsageError(
                f"--jobs {self.jobs} profiles side by side on one GPU, --gpus {self.gpus} on a GPU each; leave out one"
            )

    @property
    def slots(self) -> int:
        """How many candidates are profiled and trained side by side."""
        return max(1, self.gpus // self.data_parallel)

    @property
    def held(self) -> int:
        """How many GPUs are held at once, at the most."""
        return self.slots * self.data_parallel

    @property
    def limit_s(self) -> float:
        """The tighter of the two time limits in wall-clock seconds."""
        return self.budget.limit_s(self.data_parallel)

    @property
    def layouts(self) -> tuple[str, ...]:
        """The recipe's on CUDA; the CPU has one."""
        return ("nchw",) if self.device == "cpu" else self.recipe.layouts

    @property
    def views(self) -> tuple[View, ...]:
        """Every view that evaluation may use."""
        return tuple(views_of(self.view_sizes, flips=self.recipe.flips))

    @property
    def pack_side(self) -> int:
        """The shorter side images are stored at: what the largest view needs before its centre crop."""
        return -(-max(*self.sizes, *self.view_sizes) * 100 // round(self.recipe.crop_pct * 100))

    @property
    def canvas_px(self) -> int | None:
        """The side of the canvases on which crops travel to a GPU, which resizes them; on the CPU loaders do: None.

        It is the side that images are stored at, in whole eights for the sake of matrix products on tensor cores.
        """
        return -(-self.pack_side // 8) * 8 if self.device.startswith("cuda") else None


def placed(request: Request, limits: Limits) -> Request:
    """The request, its jobs where the limits say: a plan may be carried out, a run go on elsewhere."""
    engine = limits.get("engine", request.engine)
    kept = request.ray_address if engine == "ray" else None
    device = "cuda:0" if engine == "ray" and request.device != "cpu" else request.device  # what Ray shows a task
    jobs = request.jobs if engine == "local" else 1
    address = limits.get("ray_address", kept)
    return dataclasses.replace(request, engine=engine, ray_address=address, device=device, jobs=jobs)


def _list(value: str | Sequence[Any]) -> str:
    return value if isinstance(value, str) else ",".join(str(part) for part in value)


def _search(asked: str | None, scope: str, min_gain: float | None) -> str:
    """The search that was asked for, or else the scope's; UsageError unless the words about it go together."""
    search = asked or ("exhaustive" if scope == "candidate" else SEARCHES[0])
    if search not in SEARCHES:
        raise UsageError(f"{search!r} is no search; choose from {', '.join(SEARCHES)}")
    if search == "optuna" and find_spec("optuna") is None:
        raise UsageError("--search optuna needs Optuna; install it with: pip install 'fitwithin[optuna]'")
    if search != "exhaustive" and scope == "candidate":
        raise UsageError("--scope candidate gives every candidate the whole time: nothing is left to search by halving")
    if min_gain is not None and search == "exhaustive":
        raise UsageError(f"--min-gain {min_gain:g} is of a search that can stop early: halving or optuna")
    if min_gain is not None and not 0 < min_gain < math.inf:
        raise UsageError(f"--min-gain {min_gain:g} must be more than nothing: points of accuracy per GPU-hour, say 0.5")
    return search


def _check_gpus(gpus: int | None, data_parallel: int) -> None:
    """UsageError unless so many GPUs make slots of ``data_parallel``; without a number they are one slot's."""
    if gpus is None:
        return
    if not 1 <= gpus <= MOST_GPUS:
        raise UsageError(f"--gpus {gpus} is out of range; choose from 1 to {MOST_GPUS}")
    if gpus % data_parallel:
        fewer, more = gpus // data_parallel * data_parallel, -(-gpus // data_parallel) * data_parallel
        would = f"--gpus {fewer} or {more}" if fewer else f"--gpus {more}"
        raise UsageError(
            f"--gpus {gpus} cannot be shared out to candidates that take {data_parallel} each (--data-parallel "
            f"{data_parallel}); give {would}"
        )


def parse(
    data: str | Path,
    *,
    memory: str | int | None = None,
    time: str | float | None = None,
    gpu_time: str | float | None = None,
    inference: str | float | None = None,
    scope: str = "total",
    accounting: str = "process",
    models: str | Sequence[str] | None = None,
    precision: str | Sequence[str] | None = None,
    sizes: str | Sequence[int] | None = None,
    test_sizes: str | Sequence[int] | None = None,
    recipe: str = recipes.DEFAULT,
    device: str = "cpu",
    seed: int = 0,
    strict: bool = False,
    jobs: int = 1,
    data_parallel: int = 1,
    gpus: int | None = None,
    search: str | None = None,
    min_gain: float | None = None,
    emulate_device_memory: str | int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
) -> Request:
    """The request that these words make; numbers are bytes, seconds and pixels, ``inference`` seconds per image.

    Raises:
        UsageError: a word does not parse or is out of range; the message says which and what would do.
    """

    def seconds(value: str | float | None) -> float | None:
        return None if value is None else units.duration(str(value))

    if memory is None:
        raise UsageError("a run needs a memory cap: give --memory 6GiB")
    inference_s = seconds(inference)
    trained = parse_sizes(_list(sizes)) if sizes is not None else list(SIZES)
    names = tuple(word.strip() for word in _list(models).split(",") if word.strip()) if models is not None else TABLE_2
    if not names:
        raise UsageError("no model was given; write timm names or patterns, as in 'resnet*,resnest26d'")
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed {seed} is out of range; choose a whole number from 0 to {2**31 - 1}")
    if not 1 <= jobs <= MOST_JOBS:
        raise UsageError(f"--jobs {jobs} is out of range; choose from 1 to {MOST_JOBS}")
    if not 1 <= data_parallel <= MOST_PARALLEL:
        raise UsageError(f"--data-parallel {data_parallel} is out of range; choose from 1 to {MOST_PARALLEL}")
    _check_gpus(gpus, data_parallel)
    trains = recipes.load(recipe)
    viewed = parse_sizes(_list(test_sizes)) if test_sizes is not None else trains.view_sizes(trained)
    usual = trains.precisions_on(device)
    emulated = None if emulate_device_memory is None else units.size(str(emulate_device_memory))
    if emulated is not None and device == "cpu":
        raise UsageError("--emulate-device-memory is for GPUs; on the CPU --memory alone decides")
    if emulated is not None and emulated < units.size(str(memory)):
        raise UsageError(
            f"--memory {memory} is more than the card of {units.format_size(emulated)} that "
            f"--emulate-device-memory asks for; choose a smaller --memory"
        )
    return Request(
        data=str(data),
        budget=Budget(
            memory_bytes=units.size(str(memory)),
            accounting=accounting,
            time_s=seconds(time),
            gpu_time_s=seconds(gpu_time),
            scope=scope,
            inference_ms=None if inference_s is None else inference_s * 1e3,
        ),
        recipe=trains,
        models=names,
        precisions=tuple(parse_precisions(_list(precision))) if precision is not None else usual,
        sizes=tuple(trained),
        view_sizes=tuple(sorted(set(viewed))),
        device=device,
        seed=seed,
        strict=strict,
        jobs=jobs,
        emulate_bytes=emulated,
        data_parallel=data_parallel,
        search=_search(search, scope, min_gain),
        min_gain=min_gain,
        engine=engine,
        ray_address=ray_address,
        gpus=data_parallel if gpus is None else gpus,
    )
