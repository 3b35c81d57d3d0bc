"""The server is launched before all else, and ends with whoever launched it."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fitwithin.engine.launch import Server, launched
from fitwithin.errors import DeviceError


def said_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_launching_needs_next_to_nothing() -> None:
    program = (
        "import sys, fitwithin.engine.launch\nprint(sorted({'numpy', 'typer', 'PIL', 'sqlite3'} & set(sys.modules)))"
    )
    assert said_by(program) == "[]"


@pytest.mark.parametrize("words", ["run x --memory 1GiB", "plan x", "demo"])
def test_commands_launch_before_they_import_the_library(words: str) -> None:
    """(Who resumes looks first whether there is time for workers.)"""
    program = f"""
import sys
from fitwithin.cli import main as cli
from fitwithin.engine import launch

def stop():
    print(sorted({{"fitwithin.api", "numpy", "rich"}} & set(sys.modules)))
    sys.exit(0)

launch.launched = stop
sys.argv = ["fitwithin", *{words.split()!r}]
cli.main()
"""
    assert said_by(program) == "[]"


def test_a_server_of_its_own_ends_with_the_block() -> None:
    with launched() as server:
        assert server.process.poll() is None
        assert server.log is not None
        assert server.log.is_file()
        begun_at = time.monotonic()
    assert time.monotonic() - begun_at < 5, "it was not waited for while it imports"
    assert server.process.returncode is not None
    assert not server.log.parent.exists()


def test_a_server_that_was_launched_before_is_the_launchers() -> None:
    with Server() as before:
        with launched(before) as server:
            assert server is before
        assert before.process.poll() is None


def test_a_server_is_waited_for_no_longer_than_there_is_time() -> None:
    with launched() as server:
        begun_at = time.monotonic()
        assert not server.await_ready(begun_at + 0.1)
        assert 0.1 <= time.monotonic() - begun_at < 1
        assert not server.await_ready(begun_at), "an instant that is over"
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(lambda _: server.await_ready(), range(3)))


def test_a_server_that_cannot_import_torch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with launched() as server, pytest.raises(DeviceError, match=r"did not start: ImportError: libtorch is gone"):
        server.await_ready()


def test_a_server_keeps_what_timm_knows_so_that_the_parent_need_not_import_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path))
    with launched() as server:
        server.await_ready()
    program = """
import sys
from fitwithin.weights import configs, model_names
assert "resnet18" in model_names.known_models()
assert configs.config_of("resnet18.a1_in1k").licence == "apache-2.0"
print(sorted({"torch", "timm"} & set(sys.modules)))
"""
    assert said_by(program) == "[]"
