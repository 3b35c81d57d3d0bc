"""The table of src/fitwithin/planning/prior.csv, from the rows of benchmarks/results/prior.json.

    python benchmarks/prior_table.py [--without clothing10 ...] [--out FILE]

``--without`` leaves data sets out: a table that is used for a figure on a data set must not know it. Pixels of the data
sets left out still count for paces, which do not depend on what the images show.

The model: the logit of the accuracy of backbone m on data set d after n images, e epochs, at s pixels is
``level_d + rate * log2(e / (1 + e / knee)) + size_gain(s) + skill_m + growth_m * grown(n)``, the last two functions as
in planning/prior.py. Skills and growths have normal priors around a line in log2(parameters), log2(operations) and
depthwise or not, so a backbone that was measured once leans on those like it. Least squares; the knee is the best of a
few. The constants below are guesses that the data correct as far as they can tell. Rows with ``how`` are whole runs of
the product, entered from their reports.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch

import ground
from fitwithin.planning import prior
from fitwithin.training.model import depthwise

RESULT = ground.ROOT / "benchmarks" / "results" / "prior.json"
TABLE = ground.ROOT / "src" / "fitwithin" / "planning" / "prior.csv"

#: Standard deviations: of a backbone's skill and growth around the line, and of what a data set adds to a skill.
SKILL_SD, GROWTH_SD, DATA_SD = 0.25, 0.07, 0.12

#: The same of the lines' slopes, for a doubling of parameters or operations and for depthwise kernels.
SKILL_LINE_SD, GROWTH_LINE_SD = 0.2, 0.05

#: What the first doublings of the epochs gain, and its standard deviation between data sets.
RATE, RATE_SD = 0.9, 0.1

#: Epochs at which the gain of a doubling has halved: the best of these is taken.
KNEES = (10.0, 15.0, 20.0, 30.0, 45.0, 60.0)

#: What a doubling of the classes takes away where all data sets have the same number.
CLASS_LOSS = 0.5

#: At most this share of a step's time does not depend on the number of pixels: on a CPU the smallest sizes scatter.
MOST_FIXED = 0.75

#: What a doubling of the pixels' side gains, up to SMALL_PX, and what it gains depthwise nets more up to LARGE_PX, each
#: with its standard deviation between data sets. (clothing10 hardly needs more than 96 px.)
PX_GAIN, PX_GAIN_SD = 0.2, 0.05
SMALL_PX_GAIN, SMALL_PX_GAIN_SD = 0.6, 0.2
DEPTHWISE_PX_GAIN, DEPTHWISE_PX_GAIN_SD = 0.3, 0.1


def main(words: Sequence[str] | None = None) -> None:
    """Write the table; ``words`` are the command line's, by default this process's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args(words)
    result = json.loads(arguments.result.read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if "failed" not in row]
    curves = [row for row in rows if row["what"] == "curve" and row["data"] not in arguments.without]
    paces = [row for row in rows if row["what"] == "pace"]
    heads, backbones = table(curves, paces)
    heads |= {"date": datetime.date.today().isoformat(), "made by": "benchmarks/prior_table.py"}
    heads |= {"without": ", ".join(arguments.without) or "none", "hardware": hardware(paces)}
    arguments.out.write_text(text_of(heads, backbones), encoding="utf-8")
    print(f"{len(backbones)} backbones from {len(curves)} trainings and {len(paces)} paces; {heads}")


def table(curves: list[dict[str, Any]], paces: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The values that hold for all backbones, and a row for each."""
    names = sorted({row["model"] for row in (*curves, *paces)})
    facts = {name: shape_of(name) for name in names}
    heads, skills = fit(curves, facts)
    costs = {kind: costs_of([row for row in paces if is_kind(row, kind)], facts, kind) for kind in ("cuda", "cpu")}
    memory = {row["model"]: row["peak_bytes"] / 2**20 / 128 for row in paces if is_kind(row, "cuda")}
    builds = {row["model"]: row["warmup_s"] + row["change_s"] for row in paces if is_kind(row, "cuda")}
    found = []
    for name in names:
        parameters, macs, is_depthwise = facts[name]
        likely = median(builds.values()) if builds else 0.0
        found.append(
            {
                "model": name,
                "parameters": round(parameters, 3),
                "macs": round(macs, 1),
                "depthwise": int(is_depthwise),
                "trials": sum(row["model"] == name for row in curves),
                **{key: round(value, 3) for key, value in skills[name].items()},
                **{f"{kind}_{key}": round(v, 1) for kind in costs for key, v in costs[kind][name].items()},
                "build_s": round(builds.get(name, likely), 2),
                "image_mib": round(memory.get(name, 6.0 + 0.006 * macs), 1),
            }
        )
    return heads, found


def fit(
    curves: list[dict[str, Any]], facts: dict[str, tuple[float, float, bool]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The common values, and each backbone's skill, growth and error."""
    names, sets = sorted(facts), sorted({row["data"] for row in curves})
    features = np.array([[1.0, math.log2(p), math.log2(m), float(d)] for p, m, d in (facts[name] for name in names)])
    features[:, 1:] -= features[:, 1:].mean(0)
    first_skill = len(sets) + 4
    columns = first_skill + 2 * len(names) + 2 * features.shape[1]
    first_growth = first_skill + len(names)
    first_line = first_growth + len(names)
    best: tuple[float, Any] | None = None
    for knee in KNEES:
        design: list[Any] = []
        target: list[float] = []
        add = partial(add_line, design, target, columns)
        for row in curves:
            correct, total = row["correct"] + 0.5, row["total"] + 1
            share = correct / total
            m, grown = names.index(row["model"]), prior.grown(row["images"])
            epochs = row["images"] / row["train_images"]
            values = {
                sets.index(row["data"]): 1.0,
                len(sets): math.log2(epochs / (1 + epochs / knee)),
                len(sets) + 1: math.log2(max(row["px"], prior.SMALL_PX) / 128),
                len(sets) + 2: math.log2(min(row["px"], prior.SMALL_PX) / prior.SMALL_PX),
                len(sets) + 3: facts[row["model"]][2] * math.log2(min(row["px"], prior.LARGE_PX) / prior.LARGE_PX),
                first_skill + m: 1.0,
                first_growth + m: grown,
            }
            add(values, math.log(share / (1 - share)), math.hypot(DATA_SD, 1 / math.sqrt(total * share * (1 - share))))
        for m in range(len(names)):
            for first, sd, line in ((first_skill, SKILL_SD, 0), (first_growth, GROWTH_SD, features.shape[1])):
                around = {first_line + line + k: -float(features[m, k]) for k in range(features.shape[1])}
                add({first + m: 1.0, **around}, 0.0, sd)
        for k in range(1, features.shape[1]):
            add({first_line + k: 1.0}, 0.0, SKILL_LINE_SD)
            add({first_line + features.shape[1] + k: 1.0}, 0.0, GROWTH_LINE_SD)
        add({first_line: 1.0}, 0.0, 0.001)  # the mean skill and growth are 0: the data's levels and the rate hold them
        add({first_line + features.shape[1]: 1.0}, 0.0, 0.001)
        add({len(sets): 1.0}, RATE, RATE_SD)
        add({len(sets) + 1: 1.0}, PX_GAIN, PX_GAIN_SD)
        add({len(sets) + 2: 1.0}, SMALL_PX_GAIN, SMALL_PX_GAIN_SD)
        add({len(sets) + 3: 1.0}, DEPTHWISE_PX_GAIN, DEPTHWISE_PX_GAIN_SD)
        a, b = np.array(design), np.array(target)
        solved, *_ = np.linalg.lstsq(a, b, rcond=None)
        loss = float(((a @ solved - b) ** 2).sum())
        if best is None or loss < best[0]:
            best = loss, (knee, solved, np.linalg.pinv(a.T @ a))
    assert best is not None
    knee, solved, covariance = best[1]
    levels = dict(zip(sets, solved, strict=False))
    classes = {row["data"]: row["classes"] for row in curves}
    heads = {
        "rate": round(float(solved[len(sets)]), 3),
        "knee": knee,
        "px_gain": round(float(solved[len(sets) + 1]), 3),
        "small_px_gain": round(float(solved[len(sets) + 2]), 3),
        "depthwise_px_gain": round(float(solved[len(sets) + 3]), 3),
        **level_of(levels, classes),
    }
    skills = {
        name: {
            "skill": float(solved[first_skill + m]),
            "growth": float(solved[first_growth + m]),
            "error": math.hypot(DATA_SD, math.sqrt(max(0.0, float(covariance[first_skill + m, first_skill + m])))),
        }
        for m, name in enumerate(names)
    }
    return heads, skills


def add_line(
    design: list[Any], target: list[float], columns: int, values: dict[int, float], y: float, sd: float
) -> None:
    """One equation of the least squares: the sum of the ``values`` by column is ``y``, give or take ``sd``."""
    line = np.zeros(columns)
    for place, value in values.items():
        line[place] = value / sd
    design.append(line)
    target.append(y / sd)


def level_of(levels: dict[str, float], classes: dict[str, int]) -> dict[str, float]:
    """The level of data with one class, and what each doubling of the classes takes away."""
    kinds = sorted(set(classes.values()))
    if len(kinds) < 2:
        loss = CLASS_LOSS
    else:
        means = {n: float(np.mean([levels[d] for d in levels if classes[d] == n])) for n in kinds}
        loss = -float(np.polyfit([math.log2(n) for n in kinds], [means[n] for n in kinds], 1)[0])
    level = float(np.mean([levels[d] + loss * math.log2(classes[d]) for d in levels]))
    return {"level": round(level, 3), "class_loss": round(loss, 3)}


def shape_of(name: str) -> tuple[float, float, bool]:
    """Millions of parameters, millions of operations for an image of 224 px, and whether it is depthwise."""
    try:
        with torch.device("meta"):
            net = timm.create_model(name).eval()
    except NotImplementedError:  # some timm releases compute the widths of a RegNet with tensors
        net = timm.create_model(name).eval().to("meta")
    macs = 0

    def count(module: torch.nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        macs += weight[0].numel() * out.numel() if weight.dim() > 2 else weight.shape[1] * out.numel()

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    net(torch.zeros(1, 3, 224, 224, device="meta"))
    return sum(p.numel() for p in net.parameters()) / 1e6, macs / 1e6, depthwise(net)


def is_kind(row: dict[str, Any], kind: str) -> bool:
    """Whether a pace was measured on a device of that kind."""
    return ("cores)" in row["device"]) == (kind == "cpu")


def costs_of(paces: list[dict[str, Any]], facts: dict[str, tuple[float, float, bool]], kind: str) -> dict[str, Any]:
    """Microseconds of an image at the reference size and at none, by backbone; one without a pace is taken to be slow
    for its operations.

    The time grows with the number of pixels, on the line through the smallest and the largest size.
    """
    found = {}
    measured: dict[str, dict[int, float]] = {}
    for row in sorted(paces, key=lambda row: -row["px"]):
        measured.setdefault(row["model"], {}).update({int(px): us for px, us in row["image_us"].items()})
    for name, times in measured.items():
        small, large = min(times), max(times)
        slope = max(0.0, (times[large] - times[small]) / (large**2 - small**2))
        whole = times[large] + slope * (prior.PACE_PX[kind] ** 2 - large**2)
        fixed = min(max(0.0, times[large] - slope * large**2), MOST_FIXED * whole)
        found[name] = {"us": whole, "fixed_us": fixed}
    each = {
        is_depthwise: [found[name]["us"] / facts[name][1] for name in found if facts[name][2] == is_depthwise]
        for is_depthwise in (False, True)
    }
    for name in facts:
        if name not in found:
            per_mac = float(np.quantile(each[facts[name][2]] or list(itertools.chain(*each.values())) or [1.0], 0.9))
            found[name] = {"us": per_mac * facts[name][1], "fixed_us": 0.2 * per_mac * facts[name][1]}
    return found


def hardware(paces: list[dict[str, Any]]) -> str:
    """The devices of the paces."""
    return ", ".join(sorted({row["device"] for row in paces}))


def text_of(heads: dict[str, Any], backbones: list[dict[str, Any]]) -> str:
    """The table's text."""
    out = io.StringIO()
    for name, value in heads.items():
        out.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(out, list(backbones[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(backbones, key=lambda row: (-row["skill"], row["model"])))
    return out.getvalue()


if __name__ == "__main__":
    main()
