"""What is asked of a run: parsed once from text into plain numbers, kept in the run store, read back."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Unpack

from fitwithin import recipe as recipes
from fitwithin import units
from fitwithin.budget import Budget
from fitwithin.candidate import View, views_of
from fitwithin.errors import UsageError
from fitwithin.machine import CPU, DeviceName
from fitwithin.options import OPTIONS, Limits
from fitwithin.recipe import Recipe
from fitwithin.weights.licences import PERMISSIVE

#: How candidates share the time: a little for all, more for the best; the same, with entrants proposed by Optuna; or
#: equal shares (the default if each candidate has the whole time).
SEARCHES = ("halving", "optuna", "exhaustive")

#: Where weights may come from.
INITS = ("auto", "random", "weights")

#: What rare classes get: weights by validation data after the training, nothing, weights in the loss, or to be drawn as
#: often as others.
BALANCES = ("auto", "none", "weights", "sampling")

#: What a square input shows of an elongated picture.
FITS = ("auto", *recipes.FITS)

#: How a split that is not stated comes about: drawn from the seed, so with near twins on one side, or by time or name.
SPLITTINGS = ("auto", "grouped", "order")

#: Where jobs may run.
ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request in plain values. It is checked when it is made: UsageError where values do not go together."""

    data: str
    budget: Budget
    recipe: Recipe
    #: timm names or patterns; none until they are chosen for the data and the time (pipeline/choose.py).
    models: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("amp", "fp32")
    #: The sizes in pixels to train at, and those to evaluate at; none until they are chosen.
    sizes: tuple[int, ...] = ()
    test_sizes: tuple[int, ...] = ()
    #: The first device; others follow it.
    device: DeviceName = CPU
    seed: int = 0
    #: How a split that is not stated comes about, and the columns of a table by their roles.
    split: str = SPLITTINGS[0]
    columns: tuple[tuple[str, str], ...] = ()
    strict: bool = False
    #: The list of images to leave out.
    exclude: str | None = None
    jobs: int = 1
    #: The memory of the GPU that libraries are made to see; None: all of it.
    emulate_bytes: int | None = None
    #: How many processes train a candidate together, each on its own GPU.
    data_parallel: int = 1
    search: str = SEARCHES[0]
    min_gain: float | None = None
    engine: str = ENGINES[0]
    ray_address: str | None = None
    #: How many GPUs are used at once.
    gpus: int = 1
    #: Where weights come from at first, a folder of pretrained ones, and the licences that these may have.
    init: str = INITS[0]
    #: How classes with few images are treated.
    balance: str = BALANCES[0]
    #: What a square input shows of an elongated picture; the recipe says what is in force.
    fit: str = FITS[0]
    weights: str | None = None
    licences: tuple[str, ...] = PERMISSIVE

    def __post_init__(self) -> None:
        if self.split not in SPLITTINGS:
            raise UsageError(f"{self.split!r} is no way to split; choose from {', '.join(SPLITTINGS)}")
        self._check_engine()
        self._check_init()
        if self.balance not in BALANCES:
            raise UsageError(f"{self.balance!r} is not a balance; choose from {', '.join(BALANCES)}")
        if self.fit not in FITS:
            raise UsageError(f"{self.fit!r} is not a fit; choose from {', '.join(FITS)}")
        self._check_search()
        if self.jobs > 1 and self.slots > 1:
            raise UsageError(
                f"--jobs {self.jobs} profiles side by side on one GPU, --gpus {self.gpus} on a GPU each; leave out one"
            )
        if self.emulate_bytes is None:
            return
        if not self.device.is_cuda:
            raise UsageError("--emulate-device-memory is for GPUs; leave it out on the CPU, where --memory is enough")
        if self.emulate_bytes < self.budget.memory_bytes:
            raise UsageError(
                f"--memory {units.format_size(self.budget.memory_bytes)} is more than the card of "
                f"{units.format_size(self.emulate_bytes)} of --emulate-device-memory; give a smaller --memory"
            )

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"{self.engine!r} is not an engine; choose from {', '.join(ENGINES)}")
        if self.engine != "ray":
            if self.ray_address is not None:
                raise UsageError(
                    f"--ray-address {self.ray_address} was given without --engine ray; give both, or neither"
                )
            return
        if self.emulate_bytes is not None:
            raise UsageError(
                "--emulate-device-memory would hold a GPU that Ray gives to others; leave it out, or leave out "
                "--engine ray"
            )
        if self.data_parallel > 1:
            raise UsageError(f"--data-parallel {self.data_parallel} needs GPUs of one machine; leave out --engine ray")
        if self.jobs > 1:
            raise UsageError(
                f"--jobs {self.jobs} would hold several GPUs of the cluster at once and count one; give "
                f"--gpus {self.jobs}, which counts them"
            )

    def _check_init(self) -> None:
        if self.init not in INITS:
            raise UsageError(f"{self.init!r} is not a start; choose from {', '.join(INITS)}")
        if self.init == "random" and (self.weights or self.recipe.init == "pretrained"):
            asked = f"--weights {self.weights}" if self.weights else f"--recipe {self.recipe.name}"
            raise UsageError(f"{asked} is for pretrained weights, --init random is for drawn ones; leave out one")
        if (self.init == "weights" or self.weights) and not self.may_transfer:
            asked = f"--weights {self.weights}" if self.weights else "--init weights"
            why = (
                f"recipe {self.recipe.name!r} always starts from random weights; leave out --recipe"
                if not (self.recipe.transfer or self.recipe.init == "pretrained")
                else "they need --engine local and --scope total; leave out the other"
            )
            raise UsageError(f"{asked} is for pretrained weights, but {why}")

    @property
    def may_transfer(self) -> bool:
        """Whether the run may start from pretrained weights."""
        allowed = bool(self.recipe.transfer) or self.recipe.init == "pretrained"
        return allowed and self.init != "random" and self.engine == "local" and self.budget.scope == "total"

    @property
    def must_transfer(self) -> bool:
        """Whether the run must start from pretrained weights; else it does where they promise more."""
        return self.init == "weights" or self.recipe.init == "pretrained"

    def _check_search(self) -> None:
        if self.search not in SEARCHES:
            raise UsageError(f"{self.search!r} is not a search; choose from {', '.join(SEARCHES)}")
        if self.search != "exhaustive" and self.budget.scope == "candidate":
            raise UsageError(
                f"--scope candidate gives each candidate the whole time, so there is nothing to search for; leave out "
                f"--search {self.search}"
            )
        if self.min_gain is None:
            return
        if self.search == "exhaustive":
            raise UsageError(
                f"--min-gain {self.min_gain:g} needs a search that can stop early; give --search halving or optuna"
            )
        if not 0 < self.min_gain < math.inf:
            raise UsageError(
                f"--min-gain {self.min_gain:g} is out of range; give points of accuracy per GPU-hour above 0, say 0.5"
            )

    @property
    def slots(self) -> int:
        """How many candidates are profiled and trained side by side."""
        return max(1, self.gpus // self.data_parallel)

    @property
    def num_gpus(self) -> int:
        """How many GPUs are held at once, at the most."""
        return self.slots * self.data_parallel

    @property
    def limit_s(self) -> float:
        """The tighter of the two time limits in wall-clock seconds."""
        return self.budget.limit_s(self.data_parallel)

    @property
    def layouts(self) -> tuple[str, ...]:
        """The recipe's layouts on CUDA; the CPU has one."""
        return self.recipe.layouts if self.device.is_cuda else ("nchw",)

    @property
    def views(self) -> tuple[View, ...]:
        """Every view that evaluation may use."""
        return tuple(views_of(self.test_sizes, flips=self.recipe.flips))

    @property
    def pack_side(self) -> int:
        """The shorter side in pixels at which images are stored: what the largest view needs before its crop. Without
        sizes it is 0."""
        return self.pack_side_for(self.sizes) if self.sizes else 0

    def pack_side_for(self, sizes: tuple[int, ...]) -> int:
        """The same for these training sizes."""
        largest = max(*sizes, *(self.test_sizes or self.recipe.test_sizes(sizes)))
        return -(-largest * 100 // round(self.recipe.crop_pct * 100))

    @property
    def canvas_px(self) -> int | None:
        """The side in pixels of the canvases that carry crops to a GPU, which resizes them; None on the CPU.

        It is ``pack_side``, rounded up to a multiple of 8 for matrix products on tensor cores.
        """
        return -(-self.pack_side // 8) * 8 if self.device.is_cuda else None


def with_engine(request: Request, engine: str | None, ray_address: str | None) -> Request:
    """The request with another engine or cluster, where they are given."""
    engine = engine or request.engine
    cluster = engine == "ray"
    return replace(
        request,
        engine=engine,
        ray_address=ray_address or (request.ray_address if cluster else None),
        device=replace(request.device, index=0) if cluster else request.device,  # Ray shows a task its own GPU alone
        jobs=1 if cluster else request.jobs,
    )


def with_budget(request: Request, limits: Limits) -> Request:
    """The request with those limits of its budget that are given anew; a new time limit replaces both kinds."""
    given = {name: OPTIONS[name].read(value) for name, value in limits.items() if value is not None}
    changes: dict[str, Any] = {}
    if "memory" in given:
        changes["memory_bytes"] = given["memory"]
    if "time" in given or "gpu_time" in given:
        changes |= {"time_s": given.get("time"), "gpu_time_s": given.get("gpu_time")}
    if "inference" in given:
        changes["inference_ms"] = given["inference"] * 1e3
    if "throughput" in given:
        changes["throughput_per_s"] = given["throughput"]
    if "inference_memory" in given:
        changes["inference_bytes"] = given["inference_memory"]
    return replace(request, budget=replace(request.budget, **changes))


def _check_gpus(gpus: int, data_parallel: int) -> None:
    """UsageError unless so many GPUs can be divided into groups of ``data_parallel``."""
    if gpus % data_parallel:
        fewer, more = gpus // data_parallel * data_parallel, -(-gpus // data_parallel) * data_parallel
        would = f"--gpus {fewer} or {more}" if fewer else f"--gpus {more}"
        raise UsageError(
            f"--gpus {gpus} cannot be divided among candidates that take {data_parallel} each (--data-parallel "
            f"{data_parallel}); give {would}"
        )


def parse(data: str | Path, **limits: Unpack[Limits]) -> Request:
    """The request that these limits make. ``device`` is a device that was found to be there; by default the CPU.

    Raises:
        UsageError: a limit does not parse or is out of range; the message says which and what to give instead.
        TypeError: there is no such limit.
    """
    for name in limits:
        if name not in OPTIONS:
            near = "".join(f"; did you mean {word}?" for word in difflib.get_close_matches(name, OPTIONS, n=1))
            raise TypeError(f"there is no limit called {name!r}{near}")
    given: dict[str, Any] = {"device": CPU, **limits}
    word = {name: option.read(given.get(name)) for name, option in OPTIONS.items()}
    if word["memory"] is None:
        raise UsageError("a run needs a memory cap; give one, such as --memory 6GiB")
    if word["search"] == "optuna" and find_spec("optuna") is None:
        raise UsageError("--search optuna needs Optuna; install it with: pip install 'fitwithin[optuna]'")
    if word["gpus"] is not None:
        _check_gpus(word["gpus"], word["data_parallel"])
    recipe = recipes.load(word["recipe"])
    if word["fit"] in recipes.FITS:
        recipe = replace(recipe, fit=word["fit"])
    sizes = word["sizes"] or recipe.sizes
    return Request(
        data=str(data),
        budget=Budget(
            memory_bytes=word["memory"],
            accounting=word["accounting"],
            time_s=word["time"],
            gpu_time_s=word["gpu_time"],
            scope=word["scope"],
            inference_ms=None if word["inference"] is None else word["inference"] * 1e3,
            throughput_per_s=word["throughput"],
            inference_bytes=word["inference_memory"],
        ),
        recipe=recipe,
        models=word["models"] or recipe.models,
        precisions=word["precision"] or recipe.precisions_on(word["device"]),
        sizes=sizes,
        test_sizes=word["test_sizes"] or tuple(recipe.test_sizes(sizes)),
        device=word["device"],
        seed=word["seed"],
        split=word["split"],
        columns=word["columns"] or (),
        strict=word["strict"],
        exclude=None if word["exclude"] is None else os.path.abspath(word["exclude"]),
        jobs=word["jobs"],
        emulate_bytes=word["emulate_device_memory"],
        data_parallel=word["data_parallel"],
        search=word["search"] or ("exhaustive" if word["scope"] == "candidate" else SEARCHES[0]),
        min_gain=word["min_gain"],
        engine=word["engine"],
        ray_address=word["ray_address"],
        gpus=word["gpus"] or word["data_parallel"],
        init=word["init"],
        balance=word["balance"],
        fit=word["fit"],
        weights=None if word["weights"] is None else os.path.abspath(word["weights"]),
        licences=word["licences"],
    )
