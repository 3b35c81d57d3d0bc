"""The profile phase on a GPU: Table 2's ten backbones x {amp, fp32} x {160, 224} under 6 GiB, and what became of it.

    python benchmarks/profile_phase.py --data IMAGENETTE [--jobs 12] [--device cuda:0]

IMAGENETTE holds train/val/test of https://github.com/fastai/imagenette at 224 px. One series without a pause: all
candidates are profiled as `fitwithin profile --jobs N` does it; TIMED ones train two epochs against their prediction
and 200 steps at their certified batch; PEERS are searched by Lightning's BatchSizeFinder and by accelerate, each in a
process of its own under the same cap. A process of its own reads the driver's count throughout.

The time error is that of the steps: from asking for the first batch until the device has finished the last step, the
start of the loader and slow first steps included, validation and checkpoints left out; the whole turn's error, process
start and validations included, stands beside it. Both lists were chosen before the first measurement.

Writes results/profile_phase.json and docs/results/profile_phase.md with its plot.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import ground
import profile_page
from fitwithin import api
from fitwithin.candidate import TABLE_2, Candidate, grid
from fitwithin.data import dataset, pack
from fitwithin.engine.jobs import JobSettings, TrainJob
from fitwithin.engine.local import Local
from fitwithin.engine.results import TrainResult
from fitwithin.machine import DeviceName, cores
from fitwithin.pipeline import slots
from fitwithin.planning import cost as costs
from fitwithin.profiling.candidate_profiler import CandidateProfiler
from fitwithin.profiling.profile import Profile, Rejection, prior

RESULT = ground.ROOT / "benchmarks" / "results" / "profile_phase.json"

#: Compared with the peers: the chosen model of the paper, a depthwise one, the smallest, the standard one.
PEERS = (
    "resnest50d_1s4x24d-fp32-160",
    "resnest50d_1s4x24d-amp-160",
    "efficientnet_b0-fp32-160",
    "efficientnet_b0-amp-160",
    "resnet18-amp-160",
    "resnet50-amp-160",
)

#: Trained for two epochs: those, a deep one, and others at 224 px.
TIMED = (*PEERS, "resnet101-fp32-160", "efficientnet_b1-amp-160", "resnest50d-amp-224", "resnet18-fp32-224")

SOAK_STEPS = 200

PARTS = ("time", "soak", "beside", "lightning", "accelerate", "alone")

#: The longest that any training of the check may last.
TURN_WITHIN_S = 180.0

#: A peer that has found nothing by then is ended.
PEER_WITHIN_S = 300.0

#: Profiling may take so long.
PROFILE_WITHIN_S = 900.0


def main() -> None:
    """The series, its result and its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="imagenette with train, val and test")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--models", default=",".join(TABLE_2))
    parser.add_argument("--timed", default=",".join(TIMED))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--parts", default=",".join(PARTS), help="for rehearsals; a result has all of them")
    parser.add_argument("--page-only", action="store_true", help="write the page from the result that is there")
    arguments = parser.parse_args()
    if not arguments.page_only:
        measure(arguments)
    profile_page.write(json.loads(arguments.result.read_text(encoding="utf-8")), ground.ROOT / "docs")


def measure(arguments: argparse.Namespace) -> None:
    """Every part, one after the other; the result is written after each."""
    workers = max(1, min(api.MOST_WORKERS, cores() - 1))
    images, setting = ground.prepared(
        arguments.data, device=arguments.device, memory=arguments.memory, sizes="160,224", workers=workers
    )
    candidates = grid(arguments.models.split(","), ("amp", "fp32"), (160, 224))
    with tempfile.TemporaryDirectory() as scratch, Local(setting.device, Path(scratch) / "worker.log") as engine:
        engine.prepare()
        series = Series(arguments, setting, engine, images, Path(scratch))
        parts, timed, compared = arguments.parts.split(","), arguments.timed.split(","), arguments.peers.split(",")
        watch = series.watch()
        series.profile(candidates)
        timed, compared = ([name for name in names if name in series.profiles] for names in (timed, compared))
        for name in timed if "time" in parts else ():
            series.two_epochs(name)
        for name in timed if "soak" in parts else ():
            series.soak(name)
        series.watched(watch)
        if "beside" in parts:
            series.again(compared, "side_by_side", arguments.jobs)
        for peer in ("lightning", "accelerate"):
            for name in compared if peer in parts else ():
                series.peer(peer, name)
        if "alone" in parts:
            series.again(compared, "one_by_one", 1)


class Series:
    """The rows so far, and what adds to them."""

    def __init__(
        self, arguments: argparse.Namespace, setting: JobSettings, engine: Local, images: pack.Pack, scratch: Path
    ) -> None:
        self.arguments, self.setting, self.engine, self.images, self.scratch = (
            arguments, setting, engine, images, scratch,
        )  # fmt: skip
        self.profiles: dict[str, Profile] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}
        self.n_train = len(images.indices("train"))
        self.machine = engine.describe()

    def _measure(self, candidates: list[Candidate], jobs: int) -> tuple[list[Profile | Rejection], float, int]:
        jobs = self.engine.max_parallel(jobs, self.setting.memory_bytes)
        begun_at = time.monotonic()
        waiting, searched, found = list(candidates), list[CandidateProfiler](), list[Profile | Rejection]()

        def next_search(_: int) -> slots.Work[tuple[CandidateProfiler, Rejection | None]] | None:
            if not waiting:
                return None
            profiler = CandidateProfiler(
                waiting.pop(0), self.setting, self.engine, n_train=self.n_train, on_progress=lambda progress: None
            )
            place = prior(searched, profiler.candidate)
            return lambda: (profiler, profiler.search(begun_at + PROFILE_WITHIN_S, place, alone=jobs == 1))

        def on_searched(done: tuple[CandidateProfiler, Rejection | None]) -> None:
            profiler, rejection = done
            if rejection is None:
                searched.append(profiler)
            else:
                record(rejection)

        def record(each: Profile | Rejection) -> None:
            say(f"{time.monotonic() - begun_at:6.1f} s  {told(each)}")
            found.append(each)

        slots.side_by_side(self.engine, jobs, next_search, on_searched)
        for profiler in searched:
            record(profiler.time(begun_at + PROFILE_WITHIN_S))
        return found, time.monotonic() - begun_at, jobs

    def profile(self, candidates: list[Candidate]) -> None:
        """The profile phase itself."""
        found, wall_s, jobs = self._measure(candidates, self.arguments.jobs)
        self.facts.update(wall_s=wall_s, jobs=jobs)
        for each in found:
            if isinstance(each, Profile):
                self.profiles[each.candidate.name] = each
            row = asdict(each) if isinstance(each, Profile) else {"reason": each.reason}
            self.rows[each.candidate.name] = {"candidate": each.candidate.name, "profile": row}
            if isinstance(each, Profile):
                self.rows[each.candidate.name].update(trials=each.num_tried, certified=certified(each))
        self.save()

    def again(self, names: list[str], key: str, jobs: int) -> None:
        """The peers' candidates alone, side by side or one after the other."""
        chosen = [self.profiles[name].candidate for name in names if name in self.profiles]
        found, wall_s, _ = self._measure(chosen, jobs)
        self.facts[f"peers_wall_s_{key}"] = wall_s
        for each in found:
            if isinstance(each, Profile):
                timed_s = math.fsum(probe.wall_s for probe in each.probes if probe.timing is not None)
                row = {"batch": each.batch, "search_s": each.wall_s - timed_s, "timing_s": timed_s}
                row["warmup_s"] = each.timing.warmup_s
                self.rows[each.candidate.name][key] = row
        self.save()

    def _train(self, name: str, folder: str, steps: int) -> tuple[TrainResult | Any, float]:
        profile = self.profiles[name]
        facts = dataset.DataFacts(train=self.n_train, val=len(self.images.indices("val")), test=0, classes=10)
        setting = self.setting
        workload = costs.Workload(data=facts, recipe=setting.recipe, view_sizes=setting.view_sizes, scope="candidate")
        cost = costs.costs(profile, workload)
        begun_at = time.monotonic()
        job = TrainJob(
            setting=replace(self.setting, recipe=replace(self.setting.recipe, validate_last_epochs=1)),
            candidate=profile.candidate,
            batch=profile.batch,
            steps=steps,
            folder=str(self.scratch / f"{folder}-{name}"),
            until_at=begun_at + TURN_WITHIN_S,
            step_s=profile.timing.step_s,
            validation_s=cost.validation_s,
            save_s=cost.save_s,
            checkpoint_every_s=TURN_WITHIN_S,
            frozen=True,
            non_allocator_bytes=profile.non_allocator_bytes,
            cuda_graph=profile.cuda_graph,
        )
        outcome = self.engine.run(job, until_at=begun_at + TURN_WITHIN_S + 10, on_progress=lambda progress: None)
        return outcome, time.monotonic() - begun_at

    def two_epochs(self, name: str) -> None:
        """Two epochs as a run trains them: a checkpoint after the first step, a validation at the end."""
        profile, timing = self.profiles[name], self.profiles[name].timing
        steps = -(-2 * self.n_train // profile.batch)
        outcome, wall_s = self._train(name, "two", steps)
        if not isinstance(outcome, TrainResult):
            self.rows[name]["two_epochs"] = {"failed": str(outcome)}
            return
        predicted_s = timing.warmup_s + steps * timing.step_s
        n_val = len(self.images.indices("val"))
        validation_s = (
            timing.eval_first_s[profile.candidate.train_px] + n_val * timing.eval_image_s[profile.candidate.train_px]
        )
        row: dict[str, Any] = {
            "steps": steps,
            "training_s": outcome.training_s,
            "predicted_s": predicted_s,
            "error_pct": 100 * (predicted_s / outcome.training_s - 1),
            "low_s": timing.warmup_s + steps * timing.step_low_s,
            "high_s": timing.warmup_s + steps * timing.step_high_s,
            "turn_s": wall_s,
            "turn_predicted_s": timing.startup_s + predicted_s + validation_s + 2 * timing.save_s,
            "startup_s": outcome.startup_s,
            "startup_predicted_s": timing.startup_s,
            "peak_bytes": outcome.peak_bytes,
            "curve": [(point["step"], point["elapsed_s"]) for point in outcome.curve],
        }
        row["turn_error_pct"] = 100 * (row["turn_predicted_s"] / wall_s - 1)
        self.rows[name]["two_epochs"] = row
        say(
            f"two epochs {name}: {outcome.training_s:.3f} s, predicted {predicted_s:.3f} ({row['error_pct']:+.2f} %); "
            f"turn {wall_s:.2f} s, predicted {row['turn_predicted_s']:.2f} ({row['turn_error_pct']:+.1f} %)"
        )
        self.save()

    def soak(self, name: str) -> None:
        """200 steps at the certified batch."""
        outcome, wall_s = self._train(name, "soak", SOAK_STEPS)
        fine = (
            isinstance(outcome, TrainResult)
            and outcome.steps == SOAK_STEPS
            and outcome.peak_bytes <= self.setting.memory_bytes
        )
        row: dict[str, Any] = {"passed": fine, "wall_s": wall_s}
        if isinstance(outcome, TrainResult):
            row.update(training_s=outcome.training_s, peak_bytes=outcome.peak_bytes)
            row["curve"] = [(point["step"], point["elapsed_s"]) for point in outcome.curve]
        else:
            row["failed"] = str(outcome)
        self.rows[name]["soak"] = row
        say(f"soak {name}: {'passed' if fine else outcome} in {wall_s:.1f} s")
        self.save()

    def watch(self) -> subprocess.Popen[bytes] | None:
        """Start the witness."""
        if not DeviceName.parse(self.arguments.device).is_cuda:
            return None
        script = str(ground.ROOT / "benchmarks" / "watch.py")
        return subprocess.Popen([sys.executable, script, str(self.scratch / "watch.json")])

    def watched(self, watch: subprocess.Popen[bytes] | None) -> None:
        """End the witness and keep what it saw."""
        if watch is None:
            return
        watch.send_signal(signal.SIGTERM)
        watch.wait(30)
        self.facts["watch"] = json.loads((self.scratch / "watch.json").read_text(encoding="utf-8"))
        self.save()

    def peer(self, peer: str, name: str) -> None:
        """The same candidate, another finder."""
        candidate = self.profiles[name].candidate
        words = [peer, candidate.model, candidate.precision, str(candidate.train_px)]
        command = [sys.executable, str(ground.ROOT / "benchmarks" / "peers.py"), *words]
        environment = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
        try:
            ran = subprocess.run(
                [*command, "--memory", str(self.setting.memory_bytes)],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                timeout=PEER_WITHIN_S,
            )
            row = json.loads(ran.stdout.strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            row = {"failed": f"not done within {PEER_WITHIN_S:g} s"}
        except (IndexError, ValueError):
            row = {"failed": ran.stderr[-500:]}
        self.rows[name][peer] = row
        say(f"{peer} {name}: {row}; ours {self.profiles[name].batch}")
        self.save()

    def save(self) -> None:
        """Write the result as it stands."""
        rows = list(self.rows.values())
        ground.write(
            self.arguments.result,
            "profile_phase",
            self.machine,
            self.arguments.commit,
            f"python benchmarks/profile_phase.py --data IMAGENETTE --jobs {self.arguments.jobs}",
            soak_steps=SOAK_STEPS,
            summary=summary(rows, self.facts, self.setting.memory_bytes),
            facts=self.facts,
            rows=rows,
        )


def summary(rows: list[dict[str, Any]], facts: dict[str, Any], cap_bytes: int) -> dict[str, Any]:
    """The flat numbers."""
    profiled = [row for row in rows if "trials" in row]
    errors = [abs(row["two_epochs"]["error_pct"]) for row in rows if "error_pct" in row.get("two_epochs", {})]
    turns = [abs(row["two_epochs"]["turn_error_pct"]) for row in rows if "error_pct" in row.get("two_epochs", {})]
    soaks = [row["soak"] for row in rows if "soak" in row]
    value: dict[str, Any] = {
        "candidates": len(rows),
        "certified": sum(row["certified"] for row in profiled),
        "trials_mean": mean(row["trials"] for row in profiled) if profiled else None,
        "trials_max": max((row["trials"] for row in profiled), default=None),
        "wall_s": facts.get("wall_s"),
        "jobs": facts.get("jobs"),
        "cap_bytes": cap_bytes,
        "time_checks": len(errors),
        "time_error_pct_median": median(errors) if errors else None,
        "time_error_pct_max": max(errors, default=None),
        "turn_error_pct_median": median(turns) if turns else None,
        "turn_error_pct_max": max(turns, default=None),
        "soaks": len(soaks),
        "soak_failures": sum(not soak["passed"] for soak in soaks),
    }
    if "watch" in facts:
        watch = facts["watch"]
        # The witness may have looked away; what each process knows of its own peak misses nothing.
        value["over_cap_bytes_max"] = max([*watch["peaks"].values(), *_own_peaks(rows)]) - cap_bytes
        value["over_cap_bytes_max_witness"] = max(watch["peaks"].values(), default=0) - cap_bytes
        value["watched_processes"] = len(watch["peaks"])
        value.update({f"watch_{key}": watch[key] for key in ("gap_ms_median", "gap_ms_p999", "gap_ms_max")})
    for peer in ("lightning", "accelerate"):
        found = [row for row in rows if "batch" in row.get(peer, {})]
        if not found or "peers_wall_s_side_by_side" not in facts:
            continue
        theirs_s = math.fsum(row[peer]["wall_s"] for row in found)
        value[f"candidates_{peer}"] = len(found)
        value[f"wall_ratio_{peer}"] = facts["peers_wall_s_side_by_side"] / theirs_s
        if "peers_wall_s_one_by_one" in facts:
            searched_s = math.fsum(row["one_by_one"]["search_s"] for row in found if "one_by_one" in row)
            value[f"wall_ratio_{peer}_one_by_one"] = facts["peers_wall_s_one_by_one"] / theirs_s
            value[f"search_ratio_{peer}_one_by_one"] = searched_s / theirs_s
        value[f"batch_ratio_{peer}_min"] = min(row["profile"]["batch"] / row[peer]["batch"] for row in found)
        value[f"trials_mean_{peer}"] = mean(row[peer]["trials"] for row in found)
    return value


def _own_peaks(rows: list[dict[str, Any]]) -> list[int]:
    """The peaks of all probes and turns by their own account."""
    probes = [probe["peak_bytes"] for row in rows for probe in row["profile"].get("probes", ())]
    turns = [row[part].get("peak_bytes") for row in rows for part in ("two_epochs", "soak") if part in row]
    return [peak for peak in (*probes, *turns) if peak is not None]


def certified(profile: Profile) -> bool:
    """Whether the batch ran, timed, and the next one did not, or the data set the limit."""
    passed = any(p.batch == profile.batch and p.passed and p.timing is not None for p in profile.probes)
    bounded = any(p.batch == profile.batch + 1 and not p.passed for p in profile.probes)
    return passed and bounded


def told(each: Profile | Rejection) -> str:
    """A line for whoever looks on."""
    if isinstance(each, Rejection):
        return f"{each.candidate.name}: rejected, {each.reason}"
    timing = each.timing
    tried = " ".join(f"{p.batch}{'+' if p.passed else '-'}{p.wall_s:.1f}" for p in each.probes)
    return (
        f"{each.candidate.name}: batch {each.batch}, trials {each.num_tried} [{tried}]; ms a step: dummy "
        f"{timing.dummy_step_s * 1e3:.2f}, loader {timing.loader_step_s * 1e3:.2f}, both {timing.step_s * 1e3:.2f} "
        f"(±{100 * (timing.step_high_s / timing.step_s - 1):.2f} %); start {timing.startup_s:.2f} s, warm-up "
        f"{timing.warmup_s:.2f}, first evaluation {max(timing.eval_first_s.values()):.2f}, save {timing.save_s:.2f}"
    )


def say(text: str) -> None:
    """One line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
