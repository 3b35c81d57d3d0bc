"""The entry point that the ICCV 2023 RCV Budgeted Model Training Challenge asked for, built on fitwithin.

    python main.py --data_dir DIR

Trains within 6 GiB of GPU memory and 9 hours, everything included, and writes ``submission.csv`` into the current
folder: one row ``image_id,label`` for each picture of ``DIR/test``. Nobody needs to watch.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fitwithin
from fitwithin import units
from fitwithin.cli.progress import Plain
from fitwithin.data.decode import is_image
from fitwithin.engine.device import open_device
from fitwithin.machine import process_started_at, resolve_device

SUBMISSION = Path("submission.csv")

#: Kept back from the run for what follows it: this share of the time, and at least so many seconds.
KEPT_SHARE, KEPT_LEAST_S = 0.005, 2.0


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the organisers gave ``--data_dir`` alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="the challenge's folder, or one of class folders")
    parser.add_argument("--memory", default="6GiB", help="cap on GPU memory (default: 6GiB)")
    parser.add_argument("--time", default="9h", help="budget for everything (default: 9h)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--models", help="timm names or patterns (default: the paper's ten)")
    parser.add_argument("--precision", help="of amp, fp32 (default: both)")
    parser.add_argument("--sizes", help="training sizes in pixels (default: 160,224)")
    parser.add_argument("--test-sizes", help="evaluation sizes (default: as --sizes)")
    parser.add_argument("--recipe", default="paper", help="a recipe's name or TOML file (default: paper)")
    parser.add_argument("--scope", default="total", help="what the time bounds: total or candidate (default: total)")
    parser.add_argument(
        "--memory-accounting", default="allocator", help="allocator, the organisers' measure (default), or process"
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: rcv2023-<time>)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Train, predict, write the submission."""
    started_at = process_started_at()
    asked = arguments(words)
    out = asked.out or Path(time.strftime("rcv2023-%Y%m%d-%H%M%S"))
    pictures = test_pictures(asked.data_dir)
    data = arranged(asked.data_dir, out / "images")
    time_s = units.duration(asked.time)
    options = {name: getattr(asked, name) for name in ("models", "precision", "sizes", "test_sizes")}
    result = fitwithin.run(
        data,
        out=out / "run",
        memory=asked.memory,
        time=time_s - max(KEPT_SHARE * time_s, KEPT_LEAST_S),
        scope=asked.scope,
        accounting=asked.memory_accounting,
        recipe=asked.recipe,
        device=asked.device,
        reporter=plain_lines(),
        started_at=started_at,
        **{name: value for name, value in options.items() if value is not None},
    )
    labels = predicted(result, data, pictures, device=asked.device, memory=asked.memory)
    write(labels, SUBMISSION, otherwise=commonest_class(data))
    print(f"{len(labels)} rows written to {SUBMISSION}; the receipt is {result.folder / 'receipt.json'}")


def plain_lines() -> Plain:
    """Progress as lines, fit for a log file."""
    from rich.console import Console

    return Plain(Console(width=160))


def test_pictures(data_dir: Path) -> list[str]:
    """The pictures of ``data_dir/test`` as posix paths relative to it, sorted; class folders are looked into."""
    root = data_dir / "test"
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if is_image(path.name))
    if not found:
        raise fitwithin.DataError(f"{root} holds no pictures to predict; put the test pictures there")
    return found


def arranged(data_dir: Path, links: Path) -> Path:
    """A folder that fitwithin reads: ``data_dir`` itself, or links to the challenge's pictures sorted into classes.

    The challenge's folder had ``train.csv`` and ``val.csv`` with the columns ``image_id`` and ``class``, and the
    pictures in ``train/``, ``val/`` and ``test/`` without class folders.
    """
    if not (data_dir / "train.csv").is_file():
        return data_dir
    for split in ("train", "val"):
        table = data_dir / f"{split}.csv"
        if not table.is_file():
            continue
        pictures = {path.stem: path for path in (data_dir / split).iterdir() if is_image(path.name)}
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                picture = pictures.get(row["image_id"])
                if picture is None:
                    raise fitwithin.DataError(f"{table} names {row['image_id']!r}, which is not in {data_dir / split}")
                link(picture, links / split / row["class"] / picture.name)
    for name in test_pictures(data_dir):
        link(data_dir / "test" / name, links / "test" / name)
    return links


def link(picture: Path, place: Path) -> None:
    """A symbolic link to the picture."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(picture.resolve())


def predicted(
    result: fitwithin.Result, data: Path, pictures: Sequence[str], *, device: str, memory: str
) -> dict[str, str]:
    """The class of each picture, empty for one that cannot be read.

    They come from the run, which evaluates the test pictures within its budget. Where its time was over before that,
    they are predicted now.
    """
    try:
        answers = {answer.path: answer.label for answer in result.test_predictions()}
        return {name: answers.get(f"test/{name}", "") for name in pictures}
    except fitwithin.UsageError as error:
        print(f"the test pictures are predicted now: {error}", file=sys.stderr)
    if (chosen := resolve_device(device)).is_cuda:
        open_device(chosen).set_memory_cap(
            units.size(memory), "allocator"
        )  # this process has not touched the GPU so far
    answers_now = result.predict([data / "test" / name for name in pictures], device=str(chosen))
    return {name: answer.label for name, answer in zip(pictures, answers_now, strict=True)}


def commonest_class(data: Path) -> str:
    """The class with the most training pictures: the guess for a picture that cannot be read."""
    root = data / "train"
    root = root if root.is_dir() else data
    counts = Counter(
        path.relative_to(root).parts[0]
        for path in sorted(root.rglob("*"))
        if is_image(path.name) and len(path.relative_to(root).parts) > 1
    )
    return max(counts, key=lambda name: counts[name])


def write(labels: dict[str, str], path: Path, *, otherwise: str) -> None:
    """The submission: ``image_id`` is the file's name without its ending, or its path where two share a name."""
    names = Counter(Path(name).stem for name in labels)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label"])
        for name, label in labels.items():
            stem = Path(name).stem
            if not label:
                print(f"{name} cannot be read; its row says {otherwise!r}", file=sys.stderr)
            writer.writerow([stem if names[stem] == 1 else name, label or otherwise])


if __name__ == "__main__":
    try:
        main()
    except fitwithin.FitwithinError as error:
        print(f"main.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
