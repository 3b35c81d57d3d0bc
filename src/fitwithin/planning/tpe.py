"""Successive halving over an open-ended grid: Optuna says who enters next, by how those before did. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.planning.halving import Bracket, Halving, ladder
from fitwithin.planning.search import SearchCandidate

#: So many enter at random before there is anything to learn from.
AT_RANDOM = 6

#: Into so many parts entrants are divided by their pace.
PACES = 4


class TPEHalving(Halving):
    """:class:`~fitwithin.planning.halving.Halving` whose entrants are more than the time pays for.

    Who enters is proposed by a tree-structured Parzen estimator (Bergstra et al., "Algorithms for Hyper-Parameter
    Optimization", NeurIPS 2011, in Optuna's implementation) over families of backbones, sizes, precisions and paces,
    from the accuracies of the first rung so far: the entrant that is most like the proposal, the faster one of equals.
    A proposal is a function of the seed and of what was told, so that an interrupted search goes on as it was.
    """

    def __init__(self, entrants: Sequence[SearchCandidate], *, seed: int = 0, **more: Any) -> None:
        self._seed = seed
        super().__init__(entrants, **more)
        places = enumerate(self.entrants)
        self._traits = {one.candidate: traits(one.candidate, place, len(self.entrants)) for place, one in places}

    def _drawn(self, budget_s: float) -> tuple[Bracket | None, tuple[SearchCandidate, ...]]:
        """The ladder of as many as two rungs can be paid for, whoever enters, or one; any may."""
        fixed_s = max((entrant.fixed_s for entrant in self.entrants), default=0.0)
        counts = range(len(self.entrants), self.finals, -1)
        found = [each for count in counts if (each := ladder(count, budget_s, fixed_s, **self._shape)) is not None]
        if not found:
            return None, self.entrants[: self.finals]
        return next((each for each in found if len(each.counts) > 1), found[0]), self.entrants

    def _chosen(self) -> SearchCandidate:
        """Who enters next."""
        entered = [trial.candidate for trial in self._on(0)]
        waiting = [entrant for entrant in self.entrants if entrant.candidate not in entered]
        told = [
            (self._traits[trial.candidate], self.scores[trial.number].accuracy)
            for trial in self._on(0)
            if trial.number in self.scores
        ]
        wanted = proposal([*self._traits.values()], told, self._seed + len(entered))
        return max(waiting, key=lambda entrant: likeness(self._traits[entrant.candidate], wanted))


def traits(candidate: Candidate, place: int, of: int) -> dict[str, str]:
    """What a candidate has in common with others: its family, its size, its precision and layout, its pace."""
    family = re.match(r"[a-z]+", candidate.model.split(".")[0].split("_")[0])
    return {
        "family": family.group() if family else candidate.model,
        "px": str(candidate.train_px),
        "variant": f"{candidate.precision} {candidate.layout}",
        "pace": str(place * PACES // of),
    }


def likeness(one: Mapping[str, str], other: Mapping[str, str]) -> int:
    """How many traits two have in common."""
    return sum(one[name] == other[name] for name in one)


def proposal(
    pool: Sequence[Mapping[str, str]], told: Sequence[tuple[Mapping[str, str], float]], seed: int
) -> dict[str, str]:
    """The traits that are worth trying next, of those in the pool, from accuracies of some."""
    import optuna

    choices = {name: sorted({one[name] for one in pool}) for name in pool[0]}
    distributions: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(found) for name, found in choices.items()
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params, accuracy in told:
        done = optuna.trial.create_trial(params=dict(params), distributions=distributions, value=accuracy)
        study.add_trial(done)
    return dict(study.ask(distributions).params)
