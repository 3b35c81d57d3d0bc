"""What a run tries where its user named no backbones or no sizes: chosen for the data, the machine and the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fitwithin.candidate import Candidate, grid, match
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.results import StepTiming
from fitwithin.errors import BudgetError
from fitwithin.events import PoolChosen
from fitwithin.files import cache_root
from fitwithin.machine import cores
from fitwithin.pipeline import linear_probes
from fitwithin.pipeline.context import RunContext
from fitwithin.planning import pool as pools
from fitwithin.planning import prior
from fitwithin.planning.pool import Machine, Pool, Task
from fitwithin.profiling import pace
from fitwithin.profiling.profile import Rejection
from fitwithin.request import Request
from fitwithin.units import format_duration
from fitwithin.weights import model_names
from fitwithin.weights.find import Weights

#: A machine whose step takes a smaller share of the time on the table's machine chooses no larger sizes for that. The
#: table's CPU has TABLE_CORES.
FAST, TABLE_CORES = 0.5, 2

#: A precision is slower if its step takes more than this many times the fastest one's.
NOTICEABLE = 1.05

#: About so long the measurement takes on the table's machines, in seconds.
REFERENCE_S = 4.0

#: A refusal names this many times what is expected to be needed: the next start may be slower.
REFUSAL_FACTOR = 1.5

#: Measuring the machine's pace takes at most this share of the time that is left; in a short time rather
#: 1.5 * REFERENCE_S, up to the larger share.
PACE_SHARE, MOST_PACE_SHARE = 0.1, 0.3


def is_open(request: Request) -> bool:
    """Whether something is left to be chosen."""
    return not (request.models and request.sizes)


def largest_px(request: Request, data: DataFacts, data_px: int, left_s: float) -> int:
    """The largest size that may be chosen, in pixels, before the machine's pace is known: as if it were a fast one."""
    if request.sizes:
        return max(request.sizes)
    fast = FAST if request.device.is_cuda else FAST * min(1.0, TABLE_CORES / cores())
    machine = Machine(kind=request.device.kind, dense=fast, depthwise=fast)
    return max(_make_pool(request, data, data_px, left_s, machine).sizes)


def choose(run: RunContext, data_px: int, most_px: int, weights: Sequence[Weights]) -> RunContext:
    """The run with its candidates: those of its request, or those that are chosen now, or were before.

    ``data_px`` is the images' median shorter side, ``most_px`` the largest size that they are stored for; it may start
    from ``weights``.
    """
    if weights and (started := linear_probes.start(run, weights)).weights:
        return started
    request = run.request
    if not is_open(request):
        names = match(request.models, model_names.known_models(run.engine.prepare))
        return replace(run, candidates=[each for name in names for each in _variants(request, name, request.sizes)])
    chosen = run.store.latest(PoolChosen)
    if chosen is None:
        chosen = PoolChosen(pool=_choose(run, data_px, most_px, measure_machine(run)), most_px=most_px)
        run.store.append(chosen)
        run.reporter.say(chosen.pool.why)
    return _with_pool(run, chosen.pool)


def _choose(run: RunContext, data_px: int, most_px: int, machine: Machine) -> Pool:
    """The pool for what is left of the time; BudgetError if that cannot pay for any backbone."""
    request = run.request
    left_s = run.remaining().less(run.closing_s).together_s / request.slots
    pool = _make_pool(request, run.data, data_px, left_s, machine, most_px)
    spent_s = run.accountant.ledger().spent_s()
    least_s = pools.least_s(pool, run.data)
    if least_s > left_s and not request.models and request.budget.scope == "total":
        needed_s = math.ceil(REFUSAL_FACTOR * (spent_s + run.closing_s + least_s))
        raise BudgetError(
            f"{format_duration(request.limit_s)} are too short for this machine: {format_duration(max(0.0, left_s))} "
            f"are left after the start, and the fastest backbone needs {format_duration(least_s)}; give "
            f"{format_duration(needed_s)} or more"
        )
    return pool


def _make_pool(
    request: Request,
    data: DataFacts,
    data_px: int,
    left_s: float,
    machine: Machine,
    most_px: int | None = None,
) -> Pool:
    table = prior.load()
    names = match(request.models, model_names.known_models()) if request.models else ()
    if request.device.is_cuda and request.data_parallel > 1:  # processes on a CPU share its cores
        gpus = request.data_parallel
        machine = replace(machine, dense=machine.dense / gpus, depthwise=machine.depthwise / gpus)
    task = Task(
        data=data,
        data_px=data_px,
        recipe=request.recipe,
        machine=machine,
        seconds=left_s,
        memory_bytes=request.budget.memory_bytes,
        profile_share=pools.profile_share(request.limit_s),
        slots=request.slots,
        inference_ms=request.budget.image_ms,
        inference_bytes=request.budget.inference_bytes,
    )
    sizes = request.sizes or [px for px in pools.sizes_for(data_px) if most_px is None or px <= most_px]
    return pools.make_pool(table, names or table.tried, sizes, task, named=bool(names))


def measure_machine(run: RunContext) -> Machine:
    """The pace of the machine by its references' steps; that of the table's machine where they cannot be run."""
    request = run.request
    kind = request.device.kind
    references = reference_candidates(request)
    px = prior.PACE_PX[kind]
    setting = replace(run, request=replace(request, sizes=(px,), test_sizes=(px,))).setting
    whole_s, begun_at = run.remaining().usable_s, run.engine.now()
    left_s = min(max(PACE_SHARE * whole_s, 1.5 * REFERENCE_S), MOST_PACE_SHARE * whole_s)
    with run.accountant.entry("profile", "machine", gpus=1, reserved_s=run.promise_s(left_s, gpus=1)) as opened:
        paces = pace.reference_paces(
            references,
            replace(setting, data_parallel=1),
            run.engine,
            folder=cache_root() / "profiles",
            until_at=run.engine.now() + left_s,
            begin=run.reporter.begin,
            on_progress=run.progress,
            on_peak=opened.peak,
        )
    if not paces and (took_s := run.engine.now() - begun_at) >= left_s > REFERENCE_S:
        slow = took_s / REFERENCE_S  # at the least: it did not come to an end
        return Machine(kind=kind, dense=slow, depthwise=slow)
    return machine_of(kind, references, paces)


def reference_candidates(request: Request) -> list[Candidate]:
    """The dense and the depthwise reference in every precision."""
    kind = request.device.kind
    dense, depthwise = prior.REFERENCES[kind]
    layout = "channels_last" if "channels_last" in request.layouts else "nchw"
    px = prior.PACE_PX[kind]
    return [
        *(Candidate(model=dense, train_px=px, precision=each, layout=layout) for each in request.precisions),
        *(Candidate(model=depthwise, train_px=px, precision=each) for each in request.precisions),
    ]


def machine_of(kind: str, references: Sequence[Candidate], paces: dict[str, StepTiming]) -> Machine:
    """How fast the machine is, and its precisions, the fastest first."""
    dense, depthwise = prior.REFERENCES[kind]
    slow, precisions = _pace_of(kind, [each for each in references if each.model == dense], paces)
    slow_depthwise, others = _pace_of(kind, [each for each in references if each.model == depthwise], paces)
    return Machine(
        kind=kind,
        dense=slow or 1.0,
        depthwise=slow_depthwise or slow or 1.0,
        precisions=precisions,
        depthwise_precisions=others or precisions,
    )


def _pace_of(
    kind: str, variants: Sequence[Candidate], paces: dict[str, StepTiming]
) -> tuple[float | None, tuple[str, ...]]:
    """The time of the fastest variant's step by that on the table's machine, and the variants' precisions in order."""
    timed = [candidate for candidate in variants if candidate.name in paces]
    if not timed:
        return None, ()
    least_s = min(paces[candidate.name].step_s for candidate in timed)
    # Those that are about as fast as the fastest keep their order.
    timed.sort(key=lambda candidate: max(paces[candidate.name].step_s, NOTICEABLE * least_s))
    known = paces[timed[0].name]
    expected_s = prior.load().of(timed[0].model).step_s(kind, known.batch)
    return known.step_s / expected_s, tuple(candidate.precision for candidate in timed)


def _with_pool(run: RunContext, pool: Pool) -> RunContext:
    """The run with the candidates of a pool; what is left out is rejected with its reason."""
    request = run.request
    sizes, table = request.sizes or pool.sizes, prior.load()
    request = replace(
        request,
        models=tuple(prospect.model for prospect in pool.taken),
        sizes=sizes,
        test_sizes=request.test_sizes or tuple(request.recipe.test_sizes(sizes)),
    )
    candidates: list[Candidate] = []
    for prospect in pool.taken:
        depthwise = table.of(prospect.model).depthwise
        order = pool.machine.depthwise_precisions if depthwise else pool.machine.precisions
        candidates += _variants(request, prospect.model, sizes, order)
    return replace(run, request=request, candidates=candidates, pool=pool)


def _variants(request: Request, model: str, sizes: Sequence[int], precisions: Sequence[str] = ()) -> list[Candidate]:
    """The candidates of a backbone; without time to compare them the first of each size is taken.

    ``precisions`` are the request's in another order. Depthwise kernels in channels_last are built at run time, which
    takes seconds; other backbones are up to twice as fast so (docs/log.md).
    """
    first = "nchw" if prior.load().of(model).depthwise else "channels_last"
    layouts = sorted(request.layouts, key=lambda layout: layout != first)
    ordered = sorted(request.precisions, key=lambda word: _place(word, precisions))
    return grid([model], ordered, sizes, layouts)


def left_out(run: RunContext) -> list[Rejection]:
    """The backbones that were not chosen, each with the reason."""
    precision = run.request.precisions[0]
    return [
        Rejection(
            candidate=Candidate(model=prospect.model, train_px=prospect.px, precision=precision), reason=prospect.reason
        )
        for prospect in (run.pool.prospects if run.pool else ())
        if not prospect.taken
    ]


def _place(word: str, order: Sequence[str]) -> int:
    return order.index(word) if word in order else len(order)
