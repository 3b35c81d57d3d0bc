"""Machines as they are: quotas, homes that are missing, full disks, closed streams, and what lies in the way."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fitwithin import api, files, machine
from fitwithin import request as requests
from fitwithin.cli.terminal import console
from fitwithin.engine.results import Failure, check_disk
from fitwithin.errors import DiskFull, RunFolderError, UsageError
from fitwithin.events import DataPacked, RunRequested
from fitwithin.inference.tables import BEGINNINGS
from fitwithin.store import Store

BEGINNING = BEGINNINGS[".csv"]

SMALL = [sys.executable, "-m", "fitwithin", "--version"]


@pytest.fixture(autouse=True)
def forget() -> None:
    files._not_makable.cache_clear()


# --- cores


@pytest.mark.parametrize(
    ("limit", "cores"), [("50000 100000", 1), ("250000 100000", 2), ("max 100000", 8), ("9900000 100000", 8)]
)
def test_a_quota_of_time_counts_as_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    (tmp_path / "docker" / "inner").mkdir(parents=True)
    (tmp_path / "docker" / "cpu.max").write_text(limit)
    (tmp_path / "groups").write_text("0::/docker/inner\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    found = machine._quota(tmp_path, tmp_path / "groups")
    monkeypatch.setattr(machine, "_quota", lambda: found)
    assert machine.cores() == cores


def test_the_older_kind_of_quota(tmp_path: Path) -> None:
    group = tmp_path / "cpu" / "job"
    group.mkdir(parents=True)
    (tmp_path / "groups").write_text("5:memory:/job\n4:cpuacct,cpu:/job\n")
    (group / "cpu.cfs_quota_us").write_text("150000")
    (group / "cpu.cfs_period_us").write_text("100000")
    assert machine._quota(tmp_path, tmp_path / "groups") == 1.5
    (group / "cpu.cfs_quota_us").write_text("-1")
    assert machine._quota(tmp_path, tmp_path / "groups") is None
    assert machine._quota(tmp_path, tmp_path / "nowhere") is None


# --- the cache


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No cache is named; the temporary folder is this test's."""
    for name in ("FITWITHIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"fitwithin-{os.getuid()}"


def test_without_a_home_the_cache_is_in_the_temporary_folder(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", no_home)
    assert files.cache_root() == nowhere
    assert nowhere.stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_written_to_is_none(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_root() == nowhere


def test_a_cache_that_is_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"cannot be used \(File exists\); set FITWITHIN_CACHE to another folder"):
        files.cache_root()


# --- full disks


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing file data/3"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "run.db").touch()
    words = r"free some space.*, then `fitwithin resume .*` goes on"
    with pytest.raises(DiskFull, match=words) as caught, files.naming_full_disks(tmp_path):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("free", "words"), [(2**20, "is full (1 MiB left)"), (2**33, "where something was to be")])
def test_a_disk_with_room_is_not_called_full(free: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    assert words in str(files.disk_full())


def test_other_errors_pass() -> None:
    with pytest.raises(OSError, match="denied"), files.naming_full_disks():
        raise OSError(errno.EACCES, "denied")


def test_a_full_disk_in_a_worker_ends_the_run_not_the_trial() -> None:
    with pytest.raises(OSError, match="No space left"):
        check_disk(Failure(kind="disk", reason="the disk is full"))


# --- folders of runs


def test_two_runs_in_one_second_have_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.time, "strftime", lambda form: "20260101-120000")
    first = files.default_folder(Path("photos"))
    files.create_run_dir(first)
    assert (str(first), str(files.default_folder(Path("photos")))) == (
        "runs/photos-20260101-120000",
        "runs/photos-20260101-120000-2",
    )


def test_a_folder_that_another_run_has_just_taken_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, exists = tmp_path / "run", Path.exists
    folder.mkdir()
    monkeypatch.setattr(files.Path, "exists", lambda path: path != folder and exists(path))
    with pytest.raises(RunFolderError, match="was taken by another run just now"):
        files.create_run_dir(folder)


# --- streams and the working folder


def test_a_folder_that_is_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone" / "run")
    with pytest.raises(RunFolderError, match="is a link to a folder that is not there; give another --out"):
        files.create_run_dir(tmp_path / "run")


def test_a_file_of_somebody_else_is_not_written_over(tmp_path: Path) -> None:
    for name, content in (("photo.jpg", b"\xff\xd8\xff"), ("labels.csv", b"file,label\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunFolderError, match="holds something else, which is kept; give another file"):
            files.check_writable(tmp_path / name, BEGINNING)
        assert (tmp_path / name).read_bytes() == content
    with (tmp_path / "predictions.csv").open("w") as file:
        file.write(f"{BEGINNING}\n")
    files.check_writable(tmp_path / "predictions.csv", BEGINNING)
    files.check_writable(tmp_path / "new.csv", BEGINNING)


def test_a_working_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f'cd "$0/gone" && rmdir "$0/gone" && exec {sys.executable} -m fitwithin --version'
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    ended = subprocess.run(["sh", "-c", command, tmp_path], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "the working folder is gone" in ended.stderr


def test_a_library_that_another_file_stands_in_for_is_named(tmp_path: Path) -> None:
    (tmp_path / "typer_stub.py").write_text("")
    code = (
        "import sys; from fitwithin.cli import main\n"
        "def broken(**words): import typer_stub.layers\n"
        "main.app = broken; main.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 3
    assert f"{tmp_path / 'typer_stub.py'} is in its place, move it away" in ended.stderr


def test_closed_streams_are_opened() -> None:
    closed = subprocess.run(["sh", "-c", 'exec "$@" 0<&- >&- 2>&-', "sh", *SMALL], check=False)
    assert closed.returncode == 0


def test_a_character_that_the_terminal_lacks_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    ended = subprocess.run(
        [sys.executable, "-m", "fitwithin", "report", "Größe-\udce9"],
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"fitwithin: Gr??e-? holds no")


@pytest.mark.parametrize("name", ["random.py", "torch/__init__.py"])
def test_modules_of_the_working_folder_stand_in_for_nothing(tmp_path: Path, name: str) -> None:
    """Of a worker; the command ``fitwithin`` looks beside itself, not in the working folder."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('mine')")
    program = (
        "from pathlib import Path\n"
        "from fitwithin.engine.launch import launched\n"
        "with launched() as server: print(server.await_ready())"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (ended.stdout.strip(), ended.returncode) == ("True", 0), ended.stderr


def test_output_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        screen = console()
        for _ in range(3):
            screen.print("line\n" * 50_000, highlight=False)
        assert os.fstat(gone.fileno()).st_rdev == os.stat(os.devnull).st_rdev
    assert isinstance(gone, io.TextIOWrapper)


# --- images that have moved


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run that was killed once its images were packed; they are gone from where they were."""
    folder = tmp_path / "run"
    folder.mkdir()
    request = requests.parse(tmp_path / "photos", memory="1GiB", time="60s", models="test_resnet", device="cpu")
    with Store(folder) as store:
        store.append(RunRequested(request=request))
        store.append(DataPacked(path=request.data, fingerprint="f" * 32, classes=("cat", "dog"), counts={}))
    return folder


def test_a_run_whose_images_have_moved_asks_where_they_are(interrupted: Path) -> None:
    with pytest.raises(UsageError, match=r"no longer in .*photos; say where they are with --data"):
        api.resume(interrupted)


def test_the_images_in_the_new_place_must_be_the_same(interrupted: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        for i in range(2):
            path = tmp_path / "elsewhere" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, i, 0)).save(path)
    with pytest.raises(UsageError, match=r"the images in .*elsewhere have changed since this run began"):
        api.resume(interrupted, data=tmp_path / "elsewhere")
