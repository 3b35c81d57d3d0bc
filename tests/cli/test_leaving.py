"""A command that has imported torch ends without taking it apart."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from types import ModuleType
from fitwithin.__main__ import main
from fitwithin.cli import main as cli

def carry_out():
    try:
        cli_main()
    finally:
        if {torch}:
            sys.modules["torch"] = ModuleType("torch")

cli_main, cli.main = cli.main, carry_out
atexit.register(lambda: print("taken apart"))
sys.argv = ["fitwithin", *{words!r}]
main()
"""


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["predict", "nowhere", "x.jpg"], 2), (["--no"], 2)])
@pytest.mark.parametrize("torch", [True, False])
def test_what_was_said_and_the_code_are_the_same(words: list[str], code: int, torch: bool) -> None:
    program = PROGRAM.format(torch=torch, words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.removesuffix("taken apart\n") or done.stderr
    assert ("taken apart" in done.stdout) is not torch
