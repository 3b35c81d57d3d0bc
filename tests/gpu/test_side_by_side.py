"""Two candidates side by side on two GPUs, as a user asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fitwithin
from fitwithin import ledger as ledgers
from fitwithin.ledger import EntryOpened, EntrySettled
from fitwithin.machine import cuda_count
from fitwithin.store import Record, Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(cuda_count() < 2, reason="fewer than two CUDA devices on this machine"),
]

TIME_S = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two hundred pictures."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in range(3):
        (root / str(label)).mkdir()
        for number in range(200):
            pixels = rng.integers(0, 100, (80, 90, 3)) + np.array([50 * (label == c) for c in range(3)])
            Image.fromarray(pixels.astype(np.uint8)).save(root / str(label) / f"{number}.png")
    return root


@contextmanager
def watched(seen: list[set[str]]) -> Iterator[None]:
    """Look every half second on which GPUs processes are at work."""
    over = threading.Event()
    query = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader"]

    def look() -> None:
        while not over.wait(0.5):
            listing = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            seen.append({line.split(",")[0] for line in listing.splitlines() if line.count(",") == 1})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def spans(records: list[Record]) -> list[tuple[str, float, float]]:
    """Each trial's key, and between which instants of the calendar its entry was open."""
    told = [(r, json.loads(r.text)) for r in records]
    opened = {body["number"]: (r, body) for r, body in told if r.kind == EntryOpened.kind and body["concurrent"]}
    settled = {body["number"]: r.at for r, body in told if r.kind == EntrySettled.kind}
    return [(body["key"], r.at, settled[n]) for n, (r, body) in opened.items() if body["phase"] == "train"]


def test_two_turns_run_at_once_on_two_devices(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    seen: list[set[str]] = []
    begun_at = time.monotonic()
    with watched(seen):
        result = fitwithin.run(
            folder,
            out=tmp_path / "run",
            memory="3GiB",
            time=TIME_S,
            gpu_time=2 * TIME_S,
            models="resnet18,resnet26",
            precision="amp",
            sizes="64",
            recipe="paper",
            device="cuda:0",
            gpus=2,
        )
    wall_s = time.monotonic() - begun_at
    assert wall_s <= TIME_S
    with Store(tmp_path / "run", write=False) as store:
        records, books = store.all(), ledgers.read(store)
    assert books.balanced
    assert wall_s - 2.0 <= books.spent_s() <= wall_s + 2.0

    (one, one_at, one_end), (other, other_at, other_end) = spans(records)
    assert {one.partition("-")[0], other.partition("-")[0]} == {"resnet18", "resnet26"}
    both_s = min(one_end, other_end) - max(one_at, other_at)
    assert both_s > 0.8 * max(one_end - one_at, other_end - other_at), "they were at work at the same time"
    assert books.charged_s(one, phase="train") == pytest.approx(one_end - one_at, abs=0.5)
    for turn in result.table():
        assert turn["status"] == "trained"
        assert turn["actual_s"] > 0.4 * TIME_S, "each had the whole time, less what comes before and after"

    phases = {phase.phase: phase for phase in result.report.receipt.phases}
    each_s = books.charged_s(one, phase="train") + books.charged_s(other, phase="train")
    assert phases["train"].gpu_s == pytest.approx(each_s)
    assert phases["train"].spent_s < 0.6 * each_s
    assert {limit.name for limit in result.report.receipt.limits} == {"memory", "time", "device time"}
    assert all(limit.kept for limit in result.report.receipt.limits), result.report.receipt.limits

    theirs = {uuid for uuids in seen for uuid in uuids}
    assert len(theirs) >= 2, "processes were seen on two GPUs"
    assert sum(len(uuids) >= 2 for uuids in seen) > 0.3 * sum(bool(uuids) for uuids in seen)


def test_more_gpus_than_there_are_are_refused(folder: Path, tmp_path: Path) -> None:
    count = cuda_count()
    with pytest.raises(fitwithin.UsageError, match=f"--gpus {count + 1} needs the devices cuda:0 to cuda:{count}"):
        fitwithin.run(folder, out=tmp_path / "run", memory="3GiB", time=60, device="cuda:0", gpus=count + 1)
    assert not os.path.exists(tmp_path / "run")
