"""The command line as a user has it: subprocesses, tiny pictures, and what a run leaves behind, read from outside."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from PIL import Image, ImageDraw

from fitwithin import api  # noqa: F401 - imported before any fork
from fitwithin.cli import main
from fitwithin.cli.interrupt import GRACE_S
from fitwithin.engine import launch
from fitwithin.pipeline import result  # noqa: F401 - imported before any fork

SRC = Path(__file__).parents[2] / "src"
CLASSES = ("blue-disc", "green-ring", "red-square", "yellow-bar")
TINY = ("--device", "cpu", "--memory", "1GiB", "--precision", "fp32", "--recipe", "upright")
SIZES = ("--sizes", "32", "--test-sizes", "32,40")
MODELS = ("--models", "test_resnet,test_byobnet,test_efficientnet")


def load() -> float:
    """How many processes want each core, now or in the last minute, whichever is more."""
    mean, _, _, running, _ = Path("/proc/loadavg").read_text(encoding="ascii").split()
    return max(float(mean), int(running.partition("/")[0])) / (os.cpu_count() or 1)


def teardown_s() -> float:
    """What leaving a Python process may take beyond the instant up to which its budget counts, in seconds: so much
    longer on busy cores as there are others that want them."""
    return 0.3 * max(1.0, load())


def budget_s(quiet_s: float) -> float:
    """A time budget, in whole seconds: so many where the tests have the machine to themselves, up to four times as many
    beside others. (A start of 5 s takes 25 where five want each core, and a run that is too short for it is refused.)
    """
    return float(round(quiet_s * min(4.0, max(1.0, load() / 1.5))))


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended: exit code, what it printed, and its wall clock seen from outside."""

    code: int
    out: str
    err: str
    wall_s: float


def environment(cache: Path, **more: str) -> dict[str, str]:
    """Ours, with the library's sources, the cache, and no GPU; one thread, so that a busy machine slows it 2x, not 30x.

    (OpenMP's threads wait for one another at every layer: beside another busy process two are far slower than one.)
    """
    return {
        **os.environ,
        "PYTHONPATH": str(SRC),
        "FITWITHIN_CACHE": str(cache),
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "160",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def command(*words: object) -> list[str]:
    """``fitwithin WORDS`` with this interpreter."""
    return [sys.executable, "-m", "fitwithin", *(str(word) for word in words)]


class Door:
    """The command line with one cache and one working directory."""

    def __init__(self, cache: Path, cwd: Path) -> None:
        self.cache, self.cwd = cache, cwd
        self.environment = environment(cache)

    def __call__(self, *words: object, cwd: Path | None = None, timeout: float = 240) -> Ended:
        """Run to the end."""
        begun_at = time.monotonic()
        done = subprocess.run(
            command(*words),
            cwd=cwd or self.cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        wall_s = time.monotonic() - begun_at
        return Ended(code=done.returncode, out=done.stdout, err=done.stderr, wall_s=wall_s)

    def forked(self, *words: object) -> Ended:
        """Run to the end in a fork of this process, which spares the start of Python: for words that are refused.

        No worker server is launched: who is refused too late, or not at all, misses it.
        """
        begun_at = time.monotonic()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads in the test runner
                child = os.fork()
            if child == 0:
                self._become(command(*words)[3:], out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            wall_s = time.monotonic() - begun_at
            for printed in (out, err):
                printed.seek(0)
            return Ended(code=os.waitstatus_to_exitcode(status), out=out.read(), err=err.read(), wall_s=wall_s)

    def _become(self, words: list[str], out: int, err: int) -> NoReturn:
        """Be the command, with its own environment, folder and output, until it ends."""
        code = 1
        try:
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
            sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
            os.chdir(self.cwd)
            os.environ.clear()
            os.environ.update(self.environment)
            sys.argv = ["fitwithin", *words]
            absent: Any = SimpleNamespace(log=None, close=lambda: None)
            launch.launched = lambda server=None: nullcontext(server or absent)  # type: ignore[assignment]
            main.main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def fine(self, *words: object, **how: Any) -> Ended:
        """Run to the end, which must be a good one."""
        ended = self(*words, **how)
        assert ended.code == 0, f"{words} ended with {ended.code}\n{ended.out[-3000:]}\n{ended.err[-3000:]}"
        return ended


def draw(kind: str, rng: random.Random, px: int) -> Image.Image:
    """A coloured shape somewhere on a noisy grey ground."""
    grey = rng.randrange(60, 190)
    image = Image.effect_noise((px, px), 40).point(lambda value: max(0, min(255, value + grey - 128))).convert("RGB")
    pen = ImageDraw.Draw(image)
    side = rng.randrange(px // 3, px // 2)
    left, top = rng.randrange(2, px - side - 2), rng.randrange(2, px - side - 2)
    box = (left, top, left + side, top + side)
    if kind == "blue-disc":
        pen.ellipse(box, fill=(30, 60, 220))
    elif kind == "green-ring":
        pen.ellipse(box, outline=(30, 190, 60), width=max(2, px // 12))
    elif kind == "red-square":
        pen.rectangle(box, fill=(220, 30, 40))
    else:
        pen.rectangle((left, top, left + side, top + side // 3), fill=(230, 210, 40))
    return image


def write_shapes(folder: Path, each: int, *, seed: int = 0, px: int = 40, classes: Iterable[str] = CLASSES) -> Path:
    """``folder/<class>/<number>.png``, ``each`` of every class."""
    rng = random.Random(seed)
    for kind in classes:
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            draw(kind, rng, px).save(folder / kind / f"{number:03d}.png")
    return folder


def tree(*roots: Path) -> dict[str, tuple[int, int] | None]:
    """Every path below the roots, files with size and time of change: equal trees, nothing was written."""
    found: dict[str, tuple[int, int] | None] = {}
    for root in roots:
        for path in [root, *root.rglob("*")] if root.exists() else []:
            stat = path.stat()
            found[str(path)] = (stat.st_size, stat.st_mtime_ns) if path.is_file() else None
    return found


def receipt(run: Path) -> dict[str, Any]:
    """receipt.json."""
    return json.loads((run / "receipt.json").read_text(encoding="utf-8"))


def report(run: Path) -> dict[str, Any]:
    """report.json."""
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def delivered(run: Path) -> dict[str, Any]:
    """The row of what was handed over."""
    return next(row for row in report(run)["methods"] if row["delivered"])


def events(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """The run's events so far, read beside its writer; none where there is no store yet."""
    path = run / "run.db"
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as store:
            rows = store.execute("SELECT kind, body FROM events ORDER BY number").fetchall()
    except sqlite3.OperationalError:  # being made
        return []
    return [(kind, json.loads(body)) for kind, body in rows]


def phase_of(run: Path) -> str | None:
    """The phase whose entry is open, None between entries."""
    phase = None
    for kind, body in events(run):
        if kind == "ledger.open":
            phase = body["phase"]
        elif kind in ("ledger.settle", "ledger.abandon"):
            phase = None
    return phase


def processes_with(marker: str) -> Iterator[int]:
    """Processes, zombies left out, whose environment has the marker."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker.encode() in (entry / "environ").read_bytes():
                state = re.search(r"^State:\s+(\w)", (entry / "status").read_text(), re.MULTILINE)
                if state is not None and state[1] not in "ZX":
                    yield int(entry.name)
        except OSError:
            continue


def until(what: Callable[[], Any], within_s: float, *, every_s: float = 0.005, why: str = "") -> Any:
    """What ``what`` returns as soon as it is true; fails after ``within_s``."""
    ends_at = time.monotonic() + within_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < ends_at, f"not within {within_s} s: {why}"
        time.sleep(every_s)


class Alive:
    """A command that is running, to be killed; everything it starts carries a marker of its own."""

    def __init__(self, door: Door, log: Path, *words: object) -> None:
        self.marker = f"FITWITHIN_TEST_MARKER={os.urandom(8).hex()}"
        name, _, value = self.marker.partition("=")
        self.begun_at = time.monotonic()
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                command(*words),
                cwd=door.cwd,
                env={**door.environment, name: value, "PYTHONFAULTHANDLER": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                # Where the tests run in a shell's background Ctrl-C is ignored, and by all that they start.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._log = log

    def when(self, what: Callable[[], Any], within_s: float = 90, why: str = "") -> Any:
        """Wait for something to be true while the command lives."""

        def look() -> Any:
            found = what()
            assert found or self._process.poll() is None, f"it ended before {why}: {self._log.read_text()[-2000:]}"
            return found

        return until(look, within_s, why=why)

    def kill(self) -> float:
        """kill -9 of the command alone, not of what it started; its wall clock."""
        self._process.send_signal(signal.SIGKILL)
        code = self._process.wait()
        wall_s = time.monotonic() - self.begun_at
        assert code == -signal.SIGKILL, f"it had ended with {code} before the kill"
        return wall_s

    def interrupt(self) -> float:
        """Ctrl-C, which the command answers by itself, before it is ended for it; its wall clock."""
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(timeout=GRACE_S - 1)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # it tells where its threads are
            code = self._process.wait()
        assert code == 130, f"it ended with {code}: {self._log.read_text()[-6000:]}"
        return time.monotonic() - self.begun_at

    def nothing_left(self, within_s: float = 2.0) -> None:
        """No process that it started lives on."""
        until(lambda: not list(processes_with(self.marker)), within_s, why="a worker outlived its parent")

    def __enter__(self) -> Alive:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in processes_with(self.marker):
            os.kill(pid, signal.SIGKILL)
