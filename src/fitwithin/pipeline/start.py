"""The start of a run: open the ledger, pack the images, start the workers."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fitwithin.accountant import Accountant
from fitwithin.budget import Budget, Clock
from fitwithin.data import pack_builder
from fitwithin.data.dataset import DataFacts, Dataset, packed
from fitwithin.data.decode import shorter_side
from fitwithin.data.framing import elongation
from fitwithin.data.inspection import leaks
from fitwithin.data.pack import Pack
from fitwithin.engine.base import Engine
from fitwithin.engine.margins import CLOSING_S, HAND_OVER_S, PROBABILITY_S
from fitwithin.events import DataPacked, MachineDescribed, PoolChosen, ProcessStarted
from fitwithin.inference.calibration import BALANCED, IMBALANCED
from fitwithin.machine import boot_id, cores
from fitwithin.pipeline import choose, linear_probes
from fitwithin.pipeline.context import Reporter, RunContext
from fitwithin.planning.pool import SIZES
from fitwithin.planning.stats import format_tells_apart
from fitwithin.planning.transfer import ELONGATED
from fitwithin.request import Request
from fitwithin.store import Store

#: The most loader processes: with these a batch is made faster than any GPU takes it (20,000 images/s at 160 px).
MOST_WORKERS = 12

#: The share of the time left that reading and decoding images may take.
READING_SHARE = 0.5

#: The pixels of so many images are looked up before sizes are chosen.
SAMPLED = 60

#: Fewer validation images than these are called few: one of 50 is two points.
FEW_IMAGES = 50

#: The accuracy for which it is said what the validation images can tell apart, before there is any.
TYPICAL_SHARE = 0.9


def open_accountant(store: Store, budget: Budget, clock: Clock, started_at: float) -> Accountant:
    """The accountant of a process that started then; entries that an earlier process left open are closed."""
    boot, before = boot_id(), store.latest(ProcessStarted)
    same_clock = bool(boot) and before is not None and before.boot == boot
    store.append(ProcessStarted(pid=os.getpid(), boot=boot))
    return Accountant(store, budget, clock, started_at=started_at, same_clock=same_clock)


def too_late_for_workers(accountant: Accountant) -> bool:
    """Whether a resumed run has no time left to start workers: it delivers what there is."""
    return accountant.ends_at() - accountant.now() < HAND_OVER_S


def reading_ends_at(left_s: float) -> float:
    """The monotonic instant by which the images must be read and decoded, where so much time is left."""
    return time.monotonic() + READING_SHARE * left_s


def _notes(request: Request, dataset: Dataset, found: Dataset, images: Pack) -> tuple[str, ...]:
    """What a user should know of the images."""
    notes = [*dataset.notes, *map(str, images.remarks)]
    if images.partial:
        read, total = len(found.samples) + len(images.broken), len(dataset.samples)
        notes.append(
            f"{read:,} of {total:,} images could be decoded in half of the time; the run goes on with these. With more "
            f"time it uses all"
        )
    if n_val := found.counts()["val"]:
        few = "; they are few" if n_val < FEW_IMAGES else ""
        notes.append(format_tells_apart(n_val, TYPICAL_SHARE) + few)
    train_K = np.bincount(images.labels[images.indices("train")], minlength=len(images.classes))
    if train_K.max() >= IMBALANCED * max(1, train_K.min()):
        sizes = f"classes have {train_K.min():,} to {train_K.max():,} training images"
        notes.append(f"{sizes}. {BALANCED[request.balance]}")
    if (ratio := elongation(images.heights, images.widths)) >= ELONGATED:
        notes.append(
            f"half of the images are {ratio:.1f} times as long as wide or more; a square from the centre leaves out "
            f"{1 - 1 / ratio:.0%} of such an image, --fit squash or --fit pad shows all of it"
        )
    return tuple(notes)


def _near_leaks(images: Pack, accountant: Accountant, reporter: Reporter, hands_over: bool) -> tuple[str, ...]:
    """What there is to say of near twins across splits, where looking for them costs next to nothing."""
    if hands_over:
        return ()
    if leaks.affordable(images, accountant.ends_at() - accountant.now()):
        return leaks.near_leaks(images)
    reporter.say("near twins across splits are not looked for in so short a run; `fitwithin inspect` does")
    return ()


def open_run(
    request: Request,
    folder: Path,
    engine: Engine,
    store: Store,
    reporter: Reporter,
    accountant: Accountant,
    dataset: Dataset,
    *,
    hands_over: bool = False,
) -> RunContext:
    """Everything a run works with.

    A run that only ``hands_over`` starts no workers and keeps all the time that is left for closing.
    """
    closing_s = CLOSING_S if request.budget.scope == "total" else 0.0
    if not hands_over:
        with accountant.entry("start-up"):
            reporter.begin("starting workers")
            engine.prepare(accountant.ends_at() - closing_s)
            store.append(MachineDescribed(facts=engine.describe()))
    with accountant.entry("data"):
        reporter.begin("packing images", len(dataset.samples))
        if hands_over:
            weights = linear_probes.known_weights(store)
        else:
            weights = linear_probes.find_weights(request, engine, store, reporter)
        before, data_px = store.latest(DataPacked), sampled_px(dataset)
        most_px = _most_px(request, dataset, data_px, accountant, store)
        own_px = tuple(each.px for each in weights)
        images = pack_builder.build(
            dataset,
            request.pack_side or request.pack_side_for((most_px, *own_px)),
            on_progress=reporter.advance,
            strict=request.strict,
            until_at=reading_ends_at(math.inf if hands_over else accountant.ends_at() - accountant.now()),
            partial=before is not None and before.partial > 0,
        )
        found = packed(dataset, images)
        notes = (*_notes(request, dataset, found, images), *_near_leaks(images, accountant, reporter, hands_over))
        store.append(
            DataPacked(
                path=request.data,
                fingerprint=dataset.fingerprint,
                classes=dataset.classes,
                counts=found.counts(),
                split=dataset.split_why,
                broken=tuple(replace(item, status=None) for item in images.broken),
                ignored=dataset.ignored,
                notes=notes,
                copies=dataset.copies,
                excluded=dataset.excluded,
                partial=len(dataset.samples) if images.partial else 0,
            )
        )
    if closing_s:
        judged = sum(len(images.indices(split)) for split in ("val", "test"))
        closing_s += PROBABILITY_S * len(dataset.classes) * judged
    if hands_over:
        closing_s = max(closing_s, accountant.ends_at() - engine.now())
    machine = store.latest(MachineDescribed)
    node_cores = cores() if machine is None else machine.facts.get("cores", cores())
    # A cluster's node reports the cores of one job.
    jobs_per_host = request.data_parallel if request.engine == "ray" else request.num_gpus
    counts = ", ".join(f"{n:,} {split}" for split, n in found.counts().items())
    reporter.say(f"{request.data}: {len(dataset.classes)} classes, {counts} images; {len(images.broken)} broken")
    for note in notes:
        reporter.say(note)
    run = RunContext(
        request=request,
        folder=folder,
        engine=engine,
        store=store,
        accountant=accountant,
        reporter=reporter,
        candidates=(),
        images=images,
        workers=max(1, min(MOST_WORKERS, (node_cores - 1) // jobs_per_host)),
        closing_s=closing_s,
    )
    return choose.choose(run, data_px, most_px, weights)


def sampled_px(dataset: Dataset) -> int:
    """The median shorter side of some of the images, in pixels."""
    step = max(1, len(dataset.samples) // SAMPLED)
    some = (dataset.root / sample.path for sample in dataset.samples[::step])
    return shorter_side(some) or max(SIZES)


def _most_px(request: Request, dataset: Dataset, data_px: int, accountant: Accountant, store: Store) -> int:
    """The largest training size that images are stored for: of those that may be chosen, or might have been."""
    if (chosen := store.latest(PoolChosen)) is not None:
        return chosen.most_px
    facts = DataFacts(**dataset.counts(), classes=len(dataset.classes))
    return choose.largest_px(request, facts, data_px, accountant.ends_at() - accountant.now())
