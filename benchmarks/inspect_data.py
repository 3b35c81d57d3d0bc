"""What `fitwithin inspect` finds of planted faults, how fast, and in how much memory.

    python benchmarks/inspect_data.py --kind twins --data FOLDER    # copies, near twins, leaks and broken files
    python benchmarks/inspect_data.py --kind labels --data FOLDER   # 2 and 5 % of the labels are wrong
    python benchmarks/inspect_data.py --kind speed --data FOLDER    # the command as it stands, without weights
    python benchmarks/inspect_data.py --kind index                  # a million synthetic images

FOLDER has train, val and test by class. Rows are added to the result; one of the same kind and name is replaced.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import defaults
import ground
import inspect_page
from fitwithin.files import cache_root

RESULT = ground.ROOT / "benchmarks" / "results" / "inspect.json"

COMMAND = "python benchmarks/inspect_data.py (each row holds its own values)"

#: Faults of each kind that are planted.
PLANTED = 200

#: The share of labels that are made wrong.
FLIPPED = (0.02, 0.05)

#: Synthetic images of the two sizes, and how many of them are crops of others.
SYNTHETIC, CROPS = (100_000, 1_000_000), 1000


class Fault(NamedTuple):
    """A planted fault: the kind of suspect that it should be, its file and the one that it was made from."""

    what: str
    path: str
    source: str


def main() -> None:
    """Make rows, and the file and page with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["twins", "labels", "speed", "index", "one-index"], required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--classes", type=int, help="take the first so many classes alone")
    parser.add_argument("--weights", type=int, default=3, help="take the features of so many weights")
    parser.add_argument("--count", type=int, help="synthetic images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--commit", default=None)
    arguments = parser.parse_args()
    if arguments.kind == "one-index":
        print(json.dumps(one_index(arguments.count)))
        return
    rows = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"] if arguments.result.exists() else []
    made = {"twins": of_twins, "labels": of_labels, "speed": of_speed, "index": of_index}[arguments.kind](arguments)
    versions = {name: version(name) for name in ("torch", "timm")} | {"python": platform.python_version()}
    machine, commit = defaults.machine_of({}) | versions, arguments.commit or ground.head()
    for row in made:
        row |= {"kind": arguments.kind, "hardware": machine["name"], "commit": commit}
        rows = [each for each in rows if (each["kind"], each["name"]) != (row["kind"], row["name"])] + [row]
        print(json.dumps(row), flush=True)
    ground.write(arguments.result, "inspect", machine, commit, COMMAND, summary=summary(rows), rows=rows)
    if arguments.result == RESULT:
        inspect_page.write(json.loads(RESULT.read_text(encoding="utf-8")), ground.ROOT / "docs")


def copied(arguments: argparse.Namespace, to: Path) -> list[str]:
    """A copy of the data set by hard links, or of some classes; its paths."""
    classes = sorted(path.name for path in (arguments.data / "train").iterdir())[: arguments.classes]
    for split in ("train", "val", "test"):
        for name in classes:
            if (source := arguments.data / split / name).is_dir():
                shutil.copytree(source, to / split / name, copy_function=_link)
    return sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file())


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def inspected(folder: Path, *words: str) -> dict[str, Any]:
    """What the command says of a folder, with the seconds that it took by the clock and of processors."""
    command = [sys.executable, "-P", "-m", "fitwithin", "inspect", str(folder), "--json", *words]
    before, begun_at = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        told = subprocess.run([*command, "--out", f"{out}/found"], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {**json.loads(told), "wall_s": time.monotonic() - begun_at, "cpu_s": cpu_s}


def saved(image: Image.Image, quality: int) -> bytes:
    """An image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    """90 % of both sides, anywhere."""
    width, height = round(0.9 * image.width), round(0.9 * image.height)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file that is cut short, or empty, or holds something else."""
    way = rng.randrange(4)
    if way == 0:
        return content[: rng.randint(1, int(0.95 * len(content)))]
    if way == 1:
        return rng.randbytes(len(content))
    return b"" if way == 2 else b"<html><body>404 Not Found</body></html>"


def _opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


#: How each kind of fault is made, and which kind of suspect it is.
WAYS: dict[str, tuple[str, Callable[[bytes, random.Random], bytes]]] = {
    "exact": ("copy", lambda content, _: content),
    "jpeg 50": ("near twin", lambda content, _: saved(_opened(content), 50)),
    "crop 90": ("near twin", lambda content, rng: saved(cropped(_opened(content), rng), 90)),
    "mirrored": (
        "near twin",
        lambda content, _: saved(_opened(content).transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
    ),
    "turned": ("near twin", lambda content, _: saved(_opened(content).transpose(Image.Transpose.ROTATE_90), 90)),
    "leak, exact": ("leak", lambda content, _: content),
    "leak, crop 90": ("leak", lambda content, rng: saved(cropped(_opened(content), rng), 75)),
    "two labels": ("two labels", lambda content, _: saved(_opened(content), 75)),
    "broken": ("broken", damaged),
}


def plant(root: Path, paths: list[str], rng: random.Random) -> dict[str, list[Fault]]:
    """Plant faults of every kind, each made from an image of its own."""
    sources = [path for path in paths if path.startswith("train/")]
    rng.shuffle(sources)
    classes, planted = sorted({path.split("/")[1] for path in paths}), {}
    for kind, (what, make) in WAYS.items():
        faults = []
        for number in range(PLANTED):
            source = sources.pop()
            split, name, file = source.split("/", 2)
            if what == "leak":
                split = rng.choice(("val", "test"))
            if what == "two labels":
                name = rng.choice([each for each in classes if each != name])
            content = make((root / source).read_bytes(), rng)
            path = f"{split}/{name}/planted-{re.sub('[^a-z0-9]+', '-', kind)}-{number}{Path(file).suffix}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            faults.append(Fault(what, path, source))
        planted[kind] = faults
    return planted


def of_twins(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Copies, near twins, leaks, pictures with two labels, and broken files."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("FITWITHIN_SCRATCH")) as scratch:
        root = Path(scratch, "data")
        paths = copied(arguments, root)
        planted = plant(root, paths, random.Random(arguments.seed))
        told = inspected(root, "--quick")
    pairs = {(each["what"], *sorted((each["path"], each["other"]))) for each in told["suspects"]}
    alarms = {what: sum(each["what"] == what for each in told["suspects"]) for what, _ in WAYS.values()}
    wanted = {(each.what, *_pair(each)) for faults in planted.values() for each in faults}
    own = {pair for pair in pairs - wanted if pair[0] in alarms}
    rows = []
    for kind, faults in planted.items():
        what = WAYS[kind][0]
        missed = [each for each in faults if (each.what, *_pair(each)) not in pairs]
        others = [pair for pair in own if pair[0] == what]
        rows.append(
            {
                "name": f"{_named(arguments)}: {kind}",
                "data": arguments.data.name,
                "images": len(paths),
                "planted": len(faults),
                "found_pct": round(100 * (1 - len(missed) / len(faults)), 2),
                "other_alarms": len(others),
                "false_alarm_pct": round(100 * len(others) / len(paths), 3),
                "missed": [each.source for each in missed][:20],
                "others": [list(pair[1:]) for pair in sorted(others)][:60],
                "wall_s": round(told["wall_s"], 1),
                "cpu_s": round(told["cpu_s"], 1),
            }
        )
    return rows


def _pair(fault: Fault) -> tuple[str, ...]:
    return ("", fault.path) if fault.what == "broken" else tuple(sorted((fault.path, fault.source)))


def of_labels(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A share of the labels is made wrong, each by another class at random, after the images were packed: features are
    computed once. The sets' own wrong labels count as false alarms. Enough draws for PLANTED wrong labels."""
    from fitwithin.data import pack_builder
    from fitwithin.data.inspection import label_errors
    from fitwithin.data.sources.door import open_dataset
    from fitwithin.inspection import out_of_fold
    from fitwithin.inspection.inspect import PACK_PX
    from fitwithin.machine import CPU
    from fitwithin.weights.find import find
    from fitwithin.weights.licences import PERMISSIVE

    out_of_fold.FEATURES_S, out_of_fold.MOST_WEIGHTS = math.inf, arguments.weights
    dataset = open_dataset(arguments.data, cache_dir=cache_root() / "folders")
    if arguments.classes:
        dataset = replace(
            dataset,
            classes=dataset.classes[: arguments.classes],
            samples=tuple(sample for sample in dataset.samples if sample.label < arguments.classes),
        )
    pack = pack_builder.build(dataset, PACK_PX)
    truth, families, weights = pack.labels, np.arange(len(pack)), find(None, PERMISSIVE)[0]
    rows = []
    for share in FLIPPED:
        begun_at, count = time.monotonic(), round(share * len(pack))
        hits = alarms = planted = right = expected = 0
        for seed in range(-(-PLANTED // count)):
            rng = np.random.default_rng(arguments.seed + seed)
            wrong = rng.choice(len(pack), count, replace=False)
            labels = truth.copy()
            labels[wrong] = (truth[wrong] + rng.integers(1, len(pack.classes), count)) % len(pack.classes)
            found = out_of_fold.out_of_fold(replace(pack, labels=labels), families, weights, CPU, lambda *_: None)
            suspicion = label_errors.suspect(found.probabilities, labels[found.positions])
            suspected = found.positions[suspicion.positions]
            hits += len(np.intersect1d(suspected, wrong))
            alarms, planted, expected = alarms + len(suspected), planted + count, expected + suspicion.expected
            right += int((found.probabilities.argmax(1) == truth[found.positions]).sum())
        draws = planted // count
        rows.append(
            {
                "name": f"{_named(arguments)}: {100 * share:.0f} % wrong",
                "share": share,
                "images": len(pack),
                "draws": draws,
                "planted": planted,
                "suspected": alarms,
                "recall_pct": round(100 * hits / planted, 2),
                "precision_pct": round(100 * hits / max(1, alarms), 2),
                "false_alarm_pct": round(100 * (alarms - hits) / (draws * len(pack) - planted), 2),
                "expected": expected,
                "right_pct": round(100 * right / (draws * len(pack)), 2),
                "weights": list(found.weights),
                "wall_s": round(time.monotonic() - begun_at, 1),
            }
        )
    return rows


def _named(arguments: argparse.Namespace) -> str:
    return f"{arguments.data.name}{f', {arguments.classes} classes' if arguments.classes else ''}"


def of_speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The command without weights."""
    images = sum(path.is_file() for path in arguments.data.rglob("*"))
    busy = os.getloadavg()[0]
    told = inspected(arguments.data, "--quick")
    return [
        {
            "name": f"{arguments.data.name} without weights",
            "images": images,
            "cores": len(os.sched_getaffinity(0)),
            "load_before": round(busy, 1),
            "wall_s": round(told["wall_s"], 1),
            "cpu_s": round(told["cpu_s"], 1),
            "steps_s": told["seconds"],
        }
    ]


def of_index(_: argparse.Namespace) -> list[dict[str, Any]]:
    """The search for near twins among synthetic images, each size in a process of its own."""
    rows = []
    for count in SYNTHETIC:
        command = [sys.executable, __file__, "--kind", "one-index", "--count", str(count)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return rows


def one_index(count: int) -> dict[str, Any]:
    """The same of so many: smooth random pictures, the last CROPS of which are crops of the first ones."""
    from fitwithin.data.inspection import align, search
    from fitwithin.data.inspection.greys import SIDE, Greys

    rng, at_once = np.random.default_rng(0), 500
    grid = np.linspace(0, 7, SIDE)
    to_side = np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(8)))
    fine = np.kron(np.eye(SIDE // 2), np.ones((2, 1)))

    def pictures(many: int) -> np.ndarray:
        coarse = to_side @ rng.normal(0, 40, (many, 8, 8)) @ to_side.T
        details = fine @ rng.normal(0, 12, (many, SIDE // 2, SIDE // 2)) @ fine.T
        return np.clip(128 + coarse + details, 0, 255).astype(np.uint8)

    with Greys(count) as greys:
        for first in range(0, count, at_once):
            greys.put(first, pictures(min(at_once, count - first)).tobytes())
        for number in range(CROPS):
            picture = Image.fromarray(greys.run(number, number + 1)[0])
            side, draw = 0.9 * SIDE, random.Random(number)
            left, top = draw.uniform(0, SIDE - side), draw.uniform(0, SIDE - side)
            box = (left, top, left + side, top + side)
            crop = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
            greys.put(count - CROPS + number, crop.tobytes())
        before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        begun_at, cpu_s = time.monotonic(), time.process_time()
        pairs = search.candidates(greys, lambda done, total: None)
        same = align.same(greys, pairs) >= align.LEAST
        found = {(int(a), int(b)) for a, b in zip(pairs.first[same], pairs.second[same], strict=True)}
        wall_s, cpu_s = time.monotonic() - begun_at, time.process_time() - cpu_s
    wanted = {(number, count - CROPS + number) for number in range(CROPS)}
    met = sum(pair in found or pair[::-1] in found for pair in wanted)
    return {
        "name": f"{count:,} synthetic images",
        "images": count,
        "found_pct": 100 * met / CROPS,
        "other_pairs": len(found) - met,
        "candidates": len(pairs),
        "before_mib": round(before_mib),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Flat numbers: the worst of all data sets."""
    value: dict[str, Any] = {"rows": len(rows)}
    for kind in WAYS:
        mine = [row for row in rows if row["kind"] == "twins" and row["name"].endswith(f": {kind}")]
        if mine:
            name = re.sub("[^a-z0-9]+", "_", kind)
            value[f"{name}_found_pct"] = min(row["found_pct"] for row in mine)
            value[f"{name}_false_alarm_pct"] = max(row["false_alarm_pct"] for row in mine)
    for share in FLIPPED:
        mine = [row for row in rows if row["kind"] == "labels" and row["share"] == share]
        if mine:
            for word in ("recall_pct", "precision_pct"):
                value[f"labels_{100 * share:.0f}_{word}"] = min(row[word] for row in mine)
            value[f"labels_{100 * share:.0f}_false_alarm_pct"] = max(row["false_alarm_pct"] for row in mine)
    if speed := [row for row in rows if row["kind"] == "speed" and row["images"] >= 60_000]:
        value["seconds_60000"] = max(row["wall_s"] for row in speed)
    if index := {row["images"]: row for row in rows if row["kind"] == "index"}:
        largest = index[max(index)]
        value["index_peak_mib"] = largest["peak_mib"]
        value["index_growth_mib"] = largest["peak_mib"] - index[min(index)]["peak_mib"]
        value["index_found_pct"] = largest["found_pct"]
    return value


if __name__ == "__main__":
    main()
