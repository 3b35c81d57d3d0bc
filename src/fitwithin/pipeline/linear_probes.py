"""The start from pretrained weights: linear probes on frozen features, and what they decide.

A linear probe is a trial: it leaves a model, which is delivered unless fine-tuning from it becomes better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

from fitwithin import recipe as recipes
from fitwithin.candidate import Candidate, match
from fitwithin.data.framing import elongation
from fitwithin.engine.base import Engine
from fitwithin.engine.jobs import LinearProbeJob
from fitwithin.engine.margins import WATCHDOG_S
from fitwithin.engine.results import Failure, LinearProbe, Progress
from fitwithin.errors import UsageError
from fitwithin.events import LinearProbed, PlanGiven, StartChosen, WeightsFound
from fitwithin.files import cache_root
from fitwithin.pipeline.context import Reporter, RunContext
from fitwithin.pipeline.train_phase import CANDIDATES
from fitwithin.planning import prior, transfer
from fitwithin.planning.plan import Plan, TrialPlan, probe_trial
from fitwithin.planning.pool import START_S, profile_share
from fitwithin.planning.transfer import Prospect
from fitwithin.request import Request
from fitwithin.store import Store
from fitwithin.units import format_duration
from fitwithin.weights import find, model_names
from fitwithin.weights.find import Weights

#: Images of a forward pass. On a CPU few fit into its caches: tf_efficientnet_lite2 at 260 px made 98 images/s in
#: batches of 8, 54 of 32 and 42 of 128 (two cores, bfloat16).
BATCH = {"cuda": 128, "cpu": 8}

#: Where these do not fit into the memory cap, a quarter of them is tried, down to so many.
LEAST_BATCH = 2

#: No linear probe is begun with less time, in seconds.
LEAST_S = 1.0

#: No more weights than these are probed.
MOST = 24


def find_weights(request: Request, engine: Engine, store: Store, reporter: Reporter) -> tuple[Weights, ...]:
    """The pretrained weights that the run may start from, those of the models that its user named.

    Raises:
        UsageError: pretrained weights were asked for, or a folder of them was named, and there are none.
    """
    if not request.may_transfer:
        return ()
    given = store.latest(PlanGiven)
    if given is not None and not given.plan.probed:
        return ()
    expected = request.must_transfer or request.weights is not None
    known = store.latest(WeightsFound)
    if known is None:
        engine.prepare()  # timm's names are read by its imports
        found, refused = find.find(Path(request.weights) if request.weights else None, request.licences)
        names = set(match(request.models, model_names.known_models())) if request.models else set()
        own = tuple(each for each in found if not names or each.model in names)
        known = WeightsFound(weights=own, refused=tuple(refused), named=bool(names))
        store.append(known)
        if refused and expected:
            for each in refused:
                reporter.say(f"left out: {each.reason}")
        elif refused:
            reporter.say(f"{len(refused)} pretrained weights are left out; `fitwithin weights list` says why")
    if not known.weights and expected:
        raise UsageError(
            "there are no pretrained weights that may be used; `fitwithin weights list` says what there is, "
            "`fitwithin weights pull` fetches some"
        )
    return known.weights


def known_weights(store: Store) -> tuple[Weights, ...]:
    """The weights that an earlier process of the run found: images are stored for their sizes, too."""
    known = store.latest(WeightsFound)
    return () if known is None else known.weights


def start(run: RunContext, weights: Sequence[Weights]) -> RunContext:
    """The run from pretrained weights, with its candidates; or, where a random start promises more, as it was."""
    chosen, given = run.store.latest(StartChosen), run.store.latest(PlanGiven)
    if chosen is None:
        probing = _Probing(_transferring(run, weights, ()), asked=run.request.must_transfer)
        chosen = probing.choose() if given is None else probing.repeat(given.plan)
        run.store.append(chosen)
        run.reporter.say(chosen.why)
    if not chosen.pretrained:
        return run
    run = replace(_transferring(run, weights, tuple(sorted(chosen.sizes)), chosen.fit), candidates=chosen.tuned)
    if chosen.tuned:
        return _with_likely_batch(run)
    return replace(run, request=replace(run.request, test_sizes=run.request.sizes))  # as the head was fitted


def probed(run: RunContext) -> tuple[Candidate, ...]:
    """The pretrained candidates that have a linear head, each once."""
    trials = [event.trial for event in run.store.read(LinearProbed) if event.trial is not None]
    return tuple({trial.candidate.init: trial.candidate for trial in trials}.values())


def from_probes(run: RunContext, trial: TrialPlan) -> TrialPlan:
    """The trial of a pretrained candidate, which starts from its linear probe's model."""
    probed = [event.trial for event in run.store.read(LinearProbed) if event.trial is not None]
    own = [each for each in probed if each.candidate.init == trial.candidate.init]
    return replace(trial, warm_start_from=own[-1].name) if trial.candidate.init and own else trial


def _transferring(run: RunContext, weights: Sequence[Weights], sizes: tuple[int, ...], fit: str = "") -> RunContext:
    """The run under its recipe for pretrained weights, with another ``fit`` if one is given."""
    request = run.request
    if request.recipe.init != "pretrained":
        recipe = transfer.recipe_for(recipes.load(request.recipe.transfer), request.recipe)
        request = replace(request, recipe=recipe)
    if fit:
        request = replace(request, recipe=replace(request.recipe, fit=fit))
    sizes = sizes or request.sizes
    request = replace(
        request,
        models=tuple(dict.fromkeys(each.model for each in weights)),
        sizes=sizes,
        test_sizes=request.test_sizes or tuple(request.recipe.test_sizes(sizes)),
    )
    return replace(run, request=request, weights=tuple(weights))


def _with_likely_batch(run: RunContext) -> RunContext:
    """The run with its recipe's limit of the batch lowered to what seems to fit into a GPU's memory for all candidates:
    a search for the largest batch would cost several probes of seconds each."""
    request, most = run.request, run.request.recipe.max_batch
    if most is None or not request.device.is_cuda:
        return run
    table, memory_bytes = prior.load(), request.budget.memory_bytes
    likely = [transfer.likely_batch(table.of(one.model), one.train_px, memory_bytes, most) for one in run.candidates]
    return replace(run, request=replace(request, recipe=replace(request.recipe, max_batch=min(likely))))


class _Probing:
    """Linear probes of what the time pays for, and what they decide.

    Where there is no time for the features of all images by all weights, the weights are compared on some images, and
    the best goes on with all.
    """

    def __init__(self, run: RunContext, *, asked: bool) -> None:
        self.run = run
        #: Whether the run must start from pretrained weights: then nothing else is decided.
        self.asked = asked
        request = run.request
        found = transfer.prospects(
            run.weights,
            prior.load(),
            request.device.kind,
            run.data,
            precisions=request.precisions,
            layouts=request.layouts,
            sizes=request.sizes,
        )
        self.prospects = {each.name: each for each in found[:MOST]}
        self.whole_s = run.remaining().less(run.closing_s).usable_s
        self.began_at = run.engine.now()
        epochs_s = [each.epoch_s for each in found[:1]]
        self.share = transfer.PROBING_SHARE if transfer.num_tuned(epochs_s, self.whole_s) else transfer.ALONE_SHARE
        #: The results by the names of the weights, those of an interrupted process too.
        known = [event for event in run.store.read(LinearProbed) if event.fit == request.recipe.fit]
        self.probes = {event.name: event.probe for event in known if event.probe is not None}
        self.fits: dict[str, int] = {}
        #: How many times as long as expected an image takes, and the seconds of a probe beside its images, by the last
        #: one that was probed.
        self.slower, self.fixed_s = 1.0, START_S[run.request.device.kind] + transfer.HEAD_S[run.request.device.kind]

    def choose(self) -> StartChosen:
        """Probe, and decide by the results."""
        data = self.run.data
        every, n_val = min(data.train, transfer.MOST_FITTED), data.val
        evaluated = n_val + data.test  # with a head on all images
        cheapest, *others = self.prospects.values()
        both_s = self.expected_s([cheapest], every + evaluated) + self.expected_s(others[:1], n_val + transfer.SAMPLE)
        alone = not others or both_s > self.left_s
        first_s = (self.share if alone else min(self.share, transfer.FIRST_SHARE)) * self.whole_s
        self.probe(cheapest, every if alone else min(every, transfer.SAMPLE), first_s)
        if not self.asked and transfer.foreign([*self.probes.values()], data):
            return self.decide()
        affords_all = self.expected_s(self.prospects.values(), every + evaluated) <= self.left_s
        for prospect in others:
            images = every if affords_all else min(every, transfer.SAMPLE)
            if self.expected_s([prospect], images + (evaluated if images == every else n_val)) <= self.left_s:
                self.probe(prospect, images)
        for _ in range(len(self.probes)):
            best = next((one for one in transfer.best_first([*self.probes.values()]) if one.images < every), None)
            if best is not None and self.left_s > self.fixed_s:
                self.probe(self.prospects[best.candidate.init], every)
        self.compare_fits()
        return self.decide()

    def compare_fits(self) -> None:
        """Where pictures are elongated, probe the best weights with all of them shown, too; go on with the best."""
        run, images = self.run, self.run.images
        ranked = transfer.best_first([*self.probes.values()])
        open_fit = run.request.fit == "auto" and run.request.recipe.fit == "crop"
        if not (ranked and open_fit and elongation(images.heights, images.widths) >= transfer.ELONGATED):
            return
        best, n_val = ranked[0], self.run.data.val
        name, candidates, within_s = best.candidate.init, (best.candidate,), self.left_s
        made = {"crop": next(each for each in run.store.read(LinearProbed) if each.probe == best)}
        for fit in ("squash", "pad"):
            if self.expected_s([self.prospects[name]], best.images + n_val) <= self.left_s:
                shown = _transferring(run, run.weights, run.request.sizes, fit)
                made[fit] = _probe(shown, name, candidates, best.images, self.left_s)
                run.store.append(made[fit])
        self.fits = {fit: event.probe.correct for fit, event in made.items() if event.probe is not None}
        if len(self.fits) > 1:
            fit = transfer.best_fit(self.fits, n_val)
            self.run = _transferring(run, run.weights, run.request.sizes, fit)
            if _probe(self.run, name, candidates, best.images, max(within_s, self.fixed_s)).probe is not None:
                run.store.append(made[fit])  # with the times of features that were not known yet
                self.probes[name] = made[fit].probe or best

    def repeat(self, plan: Plan) -> StartChosen:
        """Probe what a plan probed, as it was."""
        for candidate in plan.probed:
            if candidate.init not in self.prospects:
                raise UsageError(
                    f"the plan starts from {candidate.init}, which is not among the pretrained weights here "
                    f"(`fitwithin weights list` shows them); fetch it with `fitwithin weights pull`, or make a new plan"
                )
            prospect = replace(self.prospects[candidate.init], candidates=(candidate,))
            self.probe(prospect, min(self.run.data.train, transfer.MOST_FITTED), self.share * self.whole_s)
        tuned = tuple(trial.candidate for trial in plan.trials)
        sizes = tuple(sorted({candidate.train_px for candidate in plan.probed}))
        fit = self.run.request.recipe.fit
        return StartChosen(pretrained=bool(sizes), why="The plan says so.", tuned=tuned, sizes=sizes, fit=fit)

    @property
    def left_s(self) -> float:
        """What is left of the time for linear probes."""
        return self.share * self.whole_s - (self.run.engine.now() - self.began_at)

    def expected_s(self, prospects: Iterable[Prospect], images: int) -> float:
        """Seconds of probing on so many images."""
        return math.fsum(self.fixed_s + self.slower * images * each.image_s for each in prospects)

    def probe(self, prospect: Prospect, images: int, within_s: float | None = None) -> None:
        """A linear probe on so many training images within so many seconds, by default those that are left for probes;
        on fewer where time ends. It is noted if it left a model."""
        run = self.run
        fit, name = run.request.recipe.fit, prospect.name
        known = [event for event in run.store.read(LinearProbed) if (event.name, event.fit) == (name, fit)]
        done = next((event for event in known if event.wanted == images), None)
        if done is None:
            within_s = self.left_s if within_s is None else within_s
            if within_s < LEAST_S:
                return
            before = self.probes.get(prospect.name)
            candidates = prospect.candidates if before is None else (before.candidate,)
            done = _probe(run, prospect.name, candidates, images, within_s)
            run.store.append(done)
        if done.probe is None:
            return
        found = self.probes[prospect.name] = done.probe
        made = found.images + run.data.val - found.cached
        if made and found.image_s:
            self.fixed_s = found.took_s - made * found.image_s
            px = max(one.train_px for one in prospect.candidates)
            self.slower = found.image_s * (px / found.candidate.train_px) ** 2 / prospect.image_s

    def decide(self) -> StartChosen:
        """Whether the run starts from pretrained weights, and what is fine-tuned."""
        run, data = self.run, self.run.data
        probes = transfer.quick_to_use([*self.probes.values()], run.request.budget.image_ms)
        ranked = transfer.best_first(probes)
        if not ranked:
            reasons = "; ".join(event.reason for event in run.store.read(LinearProbed))
            if self.asked or run.request.weights is not None:
                raise UsageError(f"no pretrained weights could be used: {reasons}")
            return StartChosen(pretrained=False, why=f"The weights are drawn, since none could be used: {reasons}.")
        best = ranked[0]
        if not self.asked and (reason := transfer.foreign(ranked, data)):
            return StartChosen(pretrained=False, why=f"The weights are drawn: {reason}.")
        places = [(self.prospects[one.candidate.init], one.candidate) for one in ranked]
        epochs_s = [self.slower * transfer.epoch_s_at(*place) for place in places]
        left_s, limit_s = run.remaining().less(run.closing_s).usable_s, run.request.limit_s
        facts = data.train, run.request.recipe, profile_share(limit_s) * limit_s, run.request.device.kind
        quick = [*compress(zip(ranked, epochs_s, strict=True), transfer.quick_to_profile(epochs_s, *facts))]
        tuned = [one.candidate for one, _ in quick[: transfer.num_tuned([epoch_s for _, epoch_s in quick], left_s)]]
        share = f"{100 * best.correct / data.val:.1f} %"
        why = f"{best.candidate.init} with a linear head is right for {share} of the validation images"
        if len(ranked) > 1:
            why += f", the best of {len(ranked)}"
        names = " and ".join(one.init for one in tuned)
        why += f"; {names} {'is' if len(tuned) == 1 else 'are'} fine-tuned." if tuned else "; more would take too long."
        fit = run.request.recipe.fit
        if len(self.fits) > 1:
            shares = ", ".join(f"{each} {100 * correct / data.val:.1f} %" for each, correct in self.fits.items())
            why += f" Pictures are elongated: --fit {fit} is taken ({shares} of the validation images right)."
        sizes = tuple(sorted({one.train_px for one in tuned or (best.candidate,)}))
        return StartChosen(pretrained=True, why=why, tuned=tuple(tuned), sizes=sizes, fit=fit)


def _probe(run: RunContext, name: str, candidates: tuple[Candidate, ...], images: int, within_s: float) -> LinearProbed:
    """One linear probe on so many training images, within so many seconds."""

    def note(progress: Progress) -> None:
        opened.peak(progress.facts.get("peak_bytes"))
        run.progress(progress)

    sizes = tuple(sorted({one.train_px for one in candidates}))
    sized = replace(run, request=replace(run.request, sizes=sizes, test_sizes=sizes))
    until_at = run.engine.now() + within_s
    shown = {"crop": name, "pad": f"{name}, padded", "squash": f"{name}, squashed"}[run.request.recipe.fit]
    run.reporter.begin(f"linear probe of {shown}")
    with run.book("linear probe", name, reserved_s=run.promise_s(within_s, gpus=1)) as opened:
        job = LinearProbeJob(
            setting=replace(sized.setting, data_parallel=1),
            candidates=candidates,
            batch=BATCH[run.request.device.kind],
            folder=str(run.folder / CANDIDATES),
            features=str(cache_root() / "features"),
            most_images=images,
            all_within_s=transfer.FEATURES_SHARE * within_s,
            until_at=until_at - WATCHDOG_S,
            evaluates=images >= min(run.data.train, transfer.MOST_FITTED),
        )
        outcome = run.engine.run(job, until_at=until_at, on_progress=note)
        while isinstance(outcome, Failure) and outcome.kind == "memory" and job.batch > LEAST_BATCH:
            job = replace(job, batch=job.batch // 4)
            outcome = run.engine.run(job, until_at=until_at, on_progress=note)
        opened.peak(outcome.peak_bytes)
    if isinstance(outcome, Failure):
        run.reporter.say(f"  {name}: failed, {outcome.reason}")
        return LinearProbed(name=name, wanted=images, reason=f"{name}: {outcome.reason}", fit=run.request.recipe.fit)
    assert isinstance(outcome, LinearProbe)
    trial = probe_trial(outcome, batch=job.batch, val=run.data.val, allotted_s=within_s)
    run.reporter.say(
        f"  {name} at {outcome.candidate.train_px} px: {outcome.correct / run.data.val:.1%} on validation data, linear "
        f"head on {outcome.images:,} images ({format_duration(outcome.took_s)})"
    )
    return LinearProbed(name=name, wanted=images, trial=trial, probe=outcome, fit=run.request.recipe.fit)
