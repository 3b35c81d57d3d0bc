"""Successive halving over an open-ended grid: Optuna says who enters next, by how those before did. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fitwithin.candidate import Candidate
from fitwithin.planning.halving import Bracket, Halving, make_bracket
from fitwithin.planning.search import SearchCandidate

#: The number of entrants that are drawn at random first.
AT_RANDOM = 6

#: The number of classes into which entrants are divided by their pace.
PACES = 4


class TPEHalving(Halving):
    """:class:`~fitwithin.planning.halving.Halving` with more entrants than the time pays for.

    A tree-structured Parzen estimator (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011,
    in Optuna's implementation) proposes traits from the accuracies of the first rung so far. The entrant that shares
    most of them enters, the faster one of equals. A proposal depends only on the seed and these accuracies, so an
    interrupted search goes on as it was.
    """

    def __init__(self, entrants: Sequence[SearchCandidate], *, seed: int = 0, **more: Any) -> None:
        self._seed = seed
        super().__init__(entrants, **more)
        places = enumerate(self.entrants)
        self._traits = {one.candidate: traits(one.candidate, place, len(self.entrants)) for place, one in places}

    def _admit(self, budget_s: float) -> tuple[Bracket | None, tuple[SearchCandidate, ...]]:
        """The bracket of as many trials as two rungs, else one, can be paid for; any entrant may enter."""
        overhead_s = max((entrant.overhead_s for entrant in self.entrants), default=0.0)
        counts = range(len(self.entrants), self.devices, -1)
        found = [*filter(None, (make_bracket(n, budget_s, overhead_s, devices=self.devices) for n in counts))]
        if not found:
            return None, self.entrants[: self.devices]
        return next((each for each in found if len(each.counts) > 1), found[0]), self.entrants

    def _entrant(self) -> SearchCandidate:
        entered = [trial.candidate for trial in self._on(0)]
        waiting = [entrant for entrant in self.entrants if entrant.candidate not in entered]
        seen = [
            (self._traits[trial.candidate], self._share(trial)) for trial in self._on(0) if trial.number in self.scores
        ]
        wanted = proposal([*self._traits.values()], seen, self._seed + len(entered))
        return max(waiting, key=lambda entrant: len(self._traits[entrant.candidate].items() & wanted.items()))


def traits(candidate: Candidate, place: int, of: int) -> dict[str, str]:
    """What a candidate may share with others: its family, size, precision with layout, and class of pace."""
    family = re.match(r"[a-z]+", candidate.model.split(".")[0].split("_")[0])
    return {
        "family": family.group() if family else candidate.model,
        "px": str(candidate.train_px),
        "variant": f"{candidate.precision} {candidate.layout}",
        "pace": str(place * PACES // of),
    }


def proposal(
    pool: Sequence[Mapping[str, str]], seen: Sequence[tuple[Mapping[str, str], float]], seed: int
) -> dict[str, str]:
    """The traits of the pool to try next; ``seen`` are traits with the accuracies that were reached."""
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
