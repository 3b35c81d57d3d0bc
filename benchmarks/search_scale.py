"""The search on paper: 2,000 candidates on 1 to 256 GPUs, with workers that die and nodes that are slow. No hardware.

    python benchmarks/search_scale.py

The scheduler is the product's (planning/halving.py), the machines are a discrete-event simulation, and how well a
candidate learns in a time is the law that the simulated engine goes by (tests/simulated/law.py). Utilisation:
GPU-seconds that were held by trials over GPUs times makespan. Regret: what an oracle that trains every candidate for as
long as the winner was trained in the end would reach, less what the search handed over; both by the law, without noise.
The search itself sees counts of right validation images, with their noise.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

import ground
from fitwithin.candidate import Candidate
from fitwithin.machine import cpu_name
from fitwithin.planning.halving import Halving
from fitwithin.planning.search import SearchCandidate, Trial
from fitwithin.planning.stats import Accuracy
from pages import GREY, PALETTE, save, table, text
from simulated.law import SimulatedMachine

RESULT = ground.ROOT / "benchmarks" / "results" / "search_scale.json"

CANDIDATES, GPUS, SEEDS = 2000, (1, 4, 16, 64, 256), (0, 1, 2)

#: GPU-seconds in all: 300 hours.
BUDGET_S = 300 * 3600.0

#: GPUs of a host, which are equally slow.
HOST = 8

#: A worker dies once in so many seconds of its life, is back after some, and has lost what it did since its checkpoint.
LIFE_S, BACK_S, CHECKPOINTS = 24 * 3600.0, 60.0, 10

#: One host in so many takes so many times as long for everything.
SLOW_HOSTS, SLOWNESS = 16, 2.0

#: Beside steps a trial takes so long.
OVERHEAD_S = 5.0

#: The data: images to train and to validate on, classes, and images/s of a backbone of weight 1.
N_TRAIN, N_VAL, CLASSES, PACE = 100_000, 5_000, 100, 5_000.0


@dataclass
class Running:
    """A trial on a GPU: what it was charged, and what it has learnt in, both in GPU-seconds."""

    trial: Trial
    charged_s: float = 0.0
    worked_s: float = 0.0


@dataclass(order=True)
class Event:
    """A trial's worker ends, or has died and is back."""

    at: float
    number: int
    running: Running = field(compare=False)
    host: int = field(compare=False)
    lasted_s: float = field(compare=False)
    died: bool = field(compare=False)


class Cluster:
    """Hosts with free GPUs."""

    def __init__(self, gpus: int, seed: int) -> None:
        count = -(-gpus // HOST)
        self.rng = np.random.default_rng(seed)
        self.free = [min(HOST, gpus - HOST * host) for host in range(count)]
        self._slowness = [SLOWNESS if host % SLOW_HOSTS == SLOW_HOSTS - 1 else 1.0 for host in range(count)]
        self.deaths = 0

    def place(self) -> int:
        """The host with the most free GPUs gives one of them."""
        host = max(range(len(self.free)), key=lambda place: self.free[place])
        self.free[host] -= 1
        return host

    def begin(self, running: Running, host: int, now: float) -> Event:
        """Work until all that was allotted is charged, or the worker dies."""
        left_s = running.trial.seconds - running.charged_s
        life_s = float(self.rng.exponential(LIFE_S))
        lasted_s, died = min(life_s, left_s), life_s < left_s
        return Event(now + lasted_s, running.trial.number, running, host, lasted_s, died)

    def end(self, event: Event) -> None:
        """Charge the trial; of a worker that died what came after its last checkpoint is lost."""
        running = event.running
        every_s = running.trial.seconds / CHECKPOINTS
        saved_s = event.lasted_s // every_s * every_s if event.died else event.lasted_s
        running.charged_s += event.lasted_s
        running.worked_s += saved_s / self._slowness[event.host]
        self.deaths += event.died


def accuracy(law: SimulatedMachine, candidate: Candidate, seconds: float) -> float:
    """The law's, after so many GPU-seconds."""
    epochs = max(0.0, seconds - OVERHEAD_S) * PACE / law.weight(candidate) / N_TRAIN
    return law.accuracy(candidate, epochs, 0.0, CLASSES)


def simulated(gpus: int, seed: int) -> dict[str, Any]:
    """One search."""
    law, cluster, now = SimulatedMachine(seed=seed, ceiling=0.95), Cluster(gpus, seed), 0.0
    candidates = [Candidate(model=f"backbone{n:04}", train_px=160, precision="amp") for n in range(CANDIDATES)]
    entrants = [SearchCandidate(candidate=candidate, overhead_s=OVERHEAD_S) for candidate in candidates]
    search = Halving(entrants, budget_s=BUDGET_S, devices=gpus)
    left_s, held_s = BUDGET_S, 0.0
    events: list[Event] = []
    learnt_s: dict[Candidate, float] = {}
    while True:
        while any(cluster.free) and (trial := search.ask(left_s=left_s)) is not None:
            left_s -= trial.seconds
            heapq.heappush(events, cluster.begin(Running(trial), cluster.place(), now))
        if not events:
            break
        event = heapq.heappop(events)
        now, running, trial = event.at, event.running, event.running.trial
        if event.lasted_s == 0.0 and running.charged_s > 0.0:  # it is back
            heapq.heappush(events, cluster.begin(running, event.host, now))
            continue
        cluster.end(event)
        held_s += event.lasted_s
        if event.died:
            heapq.heappush(events, Event(now + BACK_S, trial.number, running, event.host, 0.0, died=False))
            continue
        cluster.free[event.host] += 1
        # A final training goes on from what its candidate has learnt.
        learnt_s[trial.candidate] = running.worked_s + (learnt_s[trial.candidate] if trial.final else 0.0)
        share = accuracy(law, trial.candidate, learnt_s[trial.candidate])
        correct = int(cluster.rng.binomial(N_VAL, share))
        search.tell(trial.number, Accuracy(correct=correct, total=N_VAL))
    best = search.best
    assert best is not None
    learnt = learnt_s[best.candidate]
    reached = accuracy(law, best.candidate, learnt)
    oracle = max(accuracy(law, candidate, learnt) for candidate in candidates)
    return {
        "gpus": gpus,
        "seed": seed,
        "rungs": list(search.bracket.counts) if search.bracket else [],
        "trials": len(search.trials),
        "deaths": cluster.deaths,
        "held_gpu_s": held_s,
        "makespan_s": now,
        "utilisation": held_s / (gpus * now),
        "accuracy": 100 * reached,
        "regret_points": 100 * (oracle - reached),
    }


def main() -> None:
    """All searches; the result, its page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = []
    for gpus in GPUS:
        for seed in SEEDS:
            rows.append(simulated(gpus, seed))
            print(rows[-1], flush=True)
    machine = {"name": "simulated", "cpu": cpu_name()}
    summary: dict[str, Any] = {"candidates": CANDIDATES, "budget_gpu_s": BUDGET_S}
    for gpus in GPUS:
        found = [row for row in rows if row["gpus"] == gpus]
        summary[f"utilisation_{gpus}_gpus_min"] = min(row["utilisation"] for row in found)
        summary[f"makespan_s_{gpus}_gpus_mean"] = mean(row["makespan_s"] for row in found)
        summary[f"regret_points_{gpus}_gpus_mean"] = mean(row["regret_points"] for row in found)
    command = "python benchmarks/search_scale.py"
    ground.write(arguments.result, "search_scale", machine, None, command, summary=summary, rows=rows)
    write_page(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")


def write_page(value: dict[str, Any], docs: Path) -> None:
    """docs/results/search_scale.md and its picture."""
    rows = value["rows"]
    groups = {gpus: [row for row in rows if row["gpus"] == gpus] for gpus in sorted({row["gpus"] for row in rows})}

    def spread(found: list[dict[str, Any]], name: str, form: str, factor: float = 1.0) -> str:
        numbers = [factor * row[name] for row in found]
        return f"{mean(numbers):{form}} ({min(numbers):{form}} to {max(numbers):{form}})"

    lines = [
        [
            str(gpus),
            " → ".join(str(count) for count in found[0]["rungs"]),
            spread(found, "utilisation", ".1f", 100),
            spread(found, "makespan_s", ".2f", 1 / 3600),
            spread(found, "deaths", ".0f"),
            spread(found, "regret_points", ".2f"),
        ]
        for gpus, found in groups.items()
    ]
    summary, seeds = value["summary"], len(next(iter(groups.values())))
    how = (
        f"{summary['candidates']:,} candidates, {summary['budget_gpu_s'] / 3600:.0f} GPU-hours, hosts of {HOST} GPUs, "
        f"a worker that dies every {LIFE_S / 3600:.0f} hours of its life, every {SLOW_HOSTS}th host {SLOWNESS:g} times "
        f"as slow; {seeds} seeds each. No hardware: made by `benchmarks/search_scale.py` on {value['date']} at commit "
        f"`{value['commit'][:12]}`, from `benchmarks/results/search_scale.json`. The scheduler is the product's; the "
        f"machines and how well backbones learn are a law. Utilisation: GPU-seconds held by trials over GPUs times "
        f"makespan. Regret: points below what training every candidate as long as the winner would have found. Mean "
        f"(least to most)."
    )
    head = ["GPUs", "Trials by rung", "Utilisation, %", "Makespan, h", "Deaths", "Regret, points"]
    parts = [
        ["# The search on paper", "", *text(how)],
        ["![Utilisation and makespan by GPUs](../images/search_scale.svg)", ""],
        table(head, lines),
    ]
    save(docs / "results" / "search_scale.md", "\n".join(line for part in parts for line in part))
    save(docs / "images" / "search_scale.svg", _picture(groups))


def _picture(groups: dict[int, list[dict[str, Any]]]) -> str:
    """Utilisation, and how much sooner than one GPU, by the number of GPUs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "fitwithin", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.5, 2.6), layout="constrained")
        used, sooner = figure.subplots(1, 2)
        gpus = list(groups)
        used.plot(gpus, [100 * mean(row["utilisation"] for row in groups[n]) for n in gpus], "o-", color=PALETTE[0])
        used.axhline(95, color=GREY, linestyle=":", linewidth=1)
        used.set(ylim=(0, 102), ylabel="utilisation, %")
        alone_s = mean(row["makespan_s"] for row in groups[gpus[0]])
        times = [alone_s / mean(row["makespan_s"] for row in groups[n]) for n in gpus]
        sooner.plot(gpus, times, "o-", color=PALETTE[0])
        sooner.plot(gpus, gpus, ":", color=GREY, linewidth=1)
        sooner.set(yscale="log", ylabel=f"times as fast as {gpus[0]} GPU")
        for axes in (used, sooner):
            axes.set(xscale="log", xlabel="GPUs")
            axes.set_xticks(gpus, [str(n) for n in gpus])
            axes.minorticks_off()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


if __name__ == "__main__":
    main()
