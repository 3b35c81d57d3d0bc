"""Bytecode is kept where Python keeps none, and only there."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from fitwithin.files import bytecode_dir


def said_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch that was installed without bytecode, where Python may write it; what imports it fails."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "torch.py").write_text("raise ImportError('a torch of straw')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setenv("FITWITHIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    return tmp_path


WHERE = "from fitwithin.files import bytecode_dir\nprint(bytecode_dir())"


def test_python_keeps_the_bytecode_where_it_may(bare: Path) -> None:
    del bare
    assert said_by(WHERE) == "None"


def test_bytecode_that_is_there_is_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    py_compile.compile(str(bare / "site" / "torch.py"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert said_by(WHERE) == "None"


def test_where_python_keeps_no_bytecode_the_server_does(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = bare / "cache" / "bytecode"
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert said_by(WHERE) == str(kept)
    program = """
from fitwithin.errors import DeviceError
from fitwithin.engine.launch import launched

with launched() as server:
    try:
        server.await_ready()
    except DeviceError as error:
        print(error)
"""
    assert "of straw" in said_by(program)
    assert list(kept.rglob("launch.*.pyc"))
    assert not (bare / "site" / "__pycache__").exists(), "the user wanted none beside the sources"


def test_bytecode_is_kept_where_the_packages_are_somebody_elses(bare: Path) -> None:
    """(Root may write anywhere, so that it is told here that it may not.)"""
    forbidden = f"import os\nos.access = lambda path, mode: str(path) != {str(bare / 'site')!r}\n"
    assert said_by(forbidden + WHERE) == str(bare / "cache" / "bytecode")


def test_no_torch_is_the_servers_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bytecode_dir() is None


def test_the_command_line_keeps_its_own_too(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(bare / "nowhere"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    kept = bare / "cache" / "bytecode"
    for _ in range(2):
        told = subprocess.run([sys.executable, "-m", "fitwithin", "--version"], capture_output=True, check=True)
        assert told.stdout.strip()
        assert list(kept.rglob("cli/main.*.pyc"))
    assert not (bare / "nowhere").exists()


def test_a_server_launched_by_the_command_line_keeps_it_at_the_same_place(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    program = """
from fitwithin import files
from fitwithin.engine import launch

files.keep_bytecode()
print(launch.environment()["PYTHONPYCACHEPREFIX"], "PYTHONDONTWRITEBYTECODE" in launch.environment())
"""
    for _ in range(2):  # the second time it is there
        assert said_by(program) == f"{bare / 'cache' / 'bytecode'} False"


def test_a_command_line_whose_torch_has_bytecode_changes_nothing(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    py_compile.compile(str(bare / "site" / "torch.py"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    program = """
import sys
from fitwithin import files

files.keep_bytecode()
print(sys.pycache_prefix, sys.dont_write_bytecode)
"""
    assert said_by(program) == "None True"
