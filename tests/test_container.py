"""The container recipe, as far as it goes without a container engine: its commands parse, its files are there."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import typer

from fitwithin.cli import main

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "serve" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its words; lines that go on are joined."""
    text = re.sub(r"^#.*\n", "", RECIPE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def last(name: str) -> str:
    return [words for each, words in instructions() if each == name][-1]


def served() -> dict[str, object]:
    """The options that the container's command is parsed to."""
    program, name, *words = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))
    assert program in PROJECT["scripts"]
    command = typer.main.get_command(main.app).commands[name]  # type: ignore[attr-defined]
    return dict(command.make_context(name, words).params)


def test_the_command_serves_the_mounted_model_on_every_address() -> None:
    found = served()
    assert str(found["folder"]) == last("VOLUME") == "/model"
    assert (found["host"], str(found["port"])) == ("0.0.0.0", last("EXPOSE"))
    assert found["names"] == "localhost"  # other names are the user's words, in place of CMD


def test_what_pip_installs_is_what_the_project_names() -> None:
    installed = [shlex.split(words) for name, words in instructions() if name == "RUN" and "pip install" in words]
    asked = [word for words in installed for word in words[2:] if not word.startswith(("-", "https:"))]
    extras = [found[1] for word in asked if (found := re.fullmatch(r"\.\[(\w+)\]", word))]
    assert extras == ["serve"]
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    others = {word for word in asked if not word.startswith(".")}
    assert others == {each for each in PROJECT["dependencies"] if each.startswith("torch")}


def test_the_user_has_no_rights_by_the_time_the_service_starts() -> None:
    names = [name for name, _ in instructions()]
    assert last("USER") not in ("root", "0")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert any(last("USER") in words.split() for name, words in instructions() if name == "RUN" and "useradd" in words)


def test_the_health_check_asks_the_service_at_its_own_port_and_path() -> None:
    serve = pytest.importorskip("fitwithin.inference.serve")
    words = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    compile(words[2], "the health check", "exec")
    host, port, path = re.search(r"http://([\d.]+):(\d+)(/\w+)", words[2]).groups()  # type: ignore[union-attr]
    assert (host, int(port)) == ("127.0.0.1", served()["port"])
    assert path in {route.path for route in serve.router.routes}


def kept(path: str) -> bool:
    """Whether .dockerignore lets a file through: of the lines that match it or a folder of it, the last one decides."""
    found = True
    places = [path, *map(str, PurePosixPath(path).parents)][:-1]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and any(fnmatch.fnmatch(each, line.removeprefix("!")) for each in places):
            found = line.startswith("!")
    return found


def test_what_is_copied_is_there_and_is_all_that_a_package_is_built_from() -> None:
    copied = [word for name, words in instructions() if name == "COPY" for word in words.split()[:-1]]
    for path in copied:
        assert (ROOT / path).exists(), path
        assert kept(path), f".dockerignore keeps {path} out"
    needed = ["pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "src/fitwithin"]
    assert all(any(path == each or path.startswith(f"{each}/") for each in copied) for path in needed)
    assert not kept("tests")
    assert not kept(".git")
