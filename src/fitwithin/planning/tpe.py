"""Successive halving over an open-ended grid: Optuna says who enters next, by how those before did. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.planning.halving import Bracket, Halving, make_bracket
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
    A proposal is a function of the seed and of these accuracies, so that an interrupted search goes on as it was.
    """

    def __init__(self, entrants: Sequence[SearchCandidate], *, seed: int = 0, **more: Any) -> None:
        self._seed = seed
        super().__init__(entrants, **more)
        places = enumerate(self.entrants)
        self._traits = {one.candidate: traits(one.candidate, place, len(self.entrants)) for place, one in places}

    def _admit(self, budget_s: float) -> tuple[Bracket | None, tuple[SearchCandidate, ...]]:
        """The bracket of as many as two rungs can be paid for, whoever enters, or one rung; any may enter."""
        overhead_s = max((entrant.overhead_s for entrant in self.entrants), default=0.0)
        counts = range(len(self.entrants), self.devices, -1)
        brackets = [make_bracket(n, budget_s, overhead_s, eta=self.eta, devices=self.devices) for n in counts]
        found = [bracket for bracket in brackets if bracket is not None]
        if not found:
            return None, self.entrants[: self.devices]
        return next((each for each in found if len(each.counts) > 1), found[0]), self.entrants

    def _entrant(self) -> SearchCandidate:
        """Who enters next."""
        entered = [trial.candidate for trial in self._on(0)]
        waiting = [entrant for entrant in self.entrants if entrant.candidate not in entered]
        seen = [
            (self._traits[trial.candidate], self._share(trial)) for trial in self._on(0) if trial.number in self.scores
        ]
        wanted = proposal([*self._traits.values()], seen, self._seed + len(entered))
        return max(waiting, key=lambda entrant: num_shared_traits(self._traits[entrant.candidate], wanted))


def traits(candidate: Candidate, place: int, of: int) -> dict[str, str]:
    """What a candidate has in common with others: its family, its size, its precision and layout, its pace."""
    family = re.match(r"[a-z]+", candidate.model.split(".")[0].split("_")[0])
    return {
        "family": family.group() if family else candidate.model,
        "px": str(candidate.train_px),
        "variant": f"{candidate.precision} {candidate.layout}",
        "pace": str(place * PACES // of),
    }


def num_shared_traits(one: Mapping[str, str], other: Mapping[str, str]) -> int:
    """How many traits two have in common."""
    return sum(one[name] == other[name] for name in one)


def proposal(
    pool: Sequence[Mapping[str, str]], seen: Sequence[tuple[Mapping[str, str], float]], seed: int
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
    for params, accuracy in seen:
        done = optuna.trial.create_trial(params=dict(params), distributions=distributions, value=accuracy)
        study.add_trial(done)
    return dict(study.ask(distributions).params)
