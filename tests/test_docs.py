"""The documentation tells the truth where a machine can check it: commands, options, links, code, the file tree."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from fitwithin import errors, recipe
from fitwithin.cli import main
from fitwithin.cli.options import reference
from fitwithin.planning.forecast import Forecast, ForecastPoint, MeasuredPoint
from fitwithin.planning.plan import Plan, TrialPlan
from fitwithin.report.schema import CandidateRow, Limit, PhaseRow, Receipt, Report
from fitwithin.report.search_report import EliminationRow, RungRow, RunnerUp, SearchReport, TrialRow

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
)
COMMANDS = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)


def every(language: str) -> list[tuple[str, str]]:
    return [(page, block) for page in PAGES for block in blocks(page, language)]


def section(page: str, title: str) -> str:
    """The text from a heading to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", text(page), re.MULTILINE)
    assert found, f"{page} has no heading {title!r}"
    rest = text(page)[found.end() :]
    return re.split(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)[0]


def options(command: str) -> set[str]:
    """Its options, and those of the commands in it."""
    parts = getattr(COMMANDS[command], "commands", {command: COMMANDS[command]}).values()
    return {word for part in parts for param in part.params for word in param.opts if word.startswith("-")}


@pytest.mark.parametrize(("page", "block"), every("python"))
def test_python_compiles(page: str, block: str) -> None:
    compile(block, page, "exec")


@pytest.mark.parametrize(("page", "block"), every("bash"))
def test_shell_commands_parse(page: str, block: str) -> None:
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fitwithin"]:
            command, given = COMMANDS[words[1]], words[2:]
            if hasattr(command, "commands"):
                command, given = command.commands[given[0]], given[1:]
            command.make_context(words[1], given)


def test_the_recipe_of_the_how_to_loads(tmp_path: Path) -> None:
    (block,) = blocks("docs/how-to.md", "toml")
    path = tmp_path / "my.toml"
    path.write_text(block, encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(recipe.load(str(path)))} - {"name"}
    assert fields == {line.split()[0] for line in block.splitlines() if " = " in line}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_in_the_reference(command: str) -> None:
    told = section("docs/reference.md", f"fitwithin {command}")
    if command == "plan":
        assert options("plan") == options("run") - {"--plan"}
        return
    for option in options(command):
        assert f"`{option}`" in told, f"{option} of {command} is missing"


def test_the_tables_of_options_in_the_reference_are_up_to_date() -> None:
    """Else: ``python -m fitwithin.cli.options docs/reference.md``."""
    assert reference(text("docs/reference.md")) == text("docs/reference.md")


def test_the_reference_has_no_option_that_is_not_there() -> None:
    known = {option for command in COMMANDS for option in options(command)} | {"--help", "--version"}
    # The options of srun, sbatch, ray and hf are theirs: up to the end of the line, or to our own command in it.
    theirs = re.compile(
        r"(?:^#SBATCH|^srun\b|\bray (?:start|status)\b|\bhf download\b)[^`\n]*?(?=fitwithin run|`|$)", re.MULTILINE
    )
    for page in ("docs/reference.md", "docs/how-to.md", "docs/how-it-works.md", "docs/the-paper.md"):
        assert set(re.findall(r"--[a-z][a-z-]*", theirs.sub("", text(page)))) <= known, page


def test_the_readme_names_every_command() -> None:
    named = re.findall(r"^\| `fitwithin (\w+)", section("README.md", "Commands"), re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)


@pytest.mark.parametrize("page", ["README.md", "docs/reference.md"])
def test_exit_codes(page: str) -> None:
    tree = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.FitwithinError)]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", text(page), re.MULTILINE)}
    assert told == {kind.exit_code for kind in tree} | {0, 130}


def test_the_reference_names_every_error() -> None:
    told = section("docs/reference.md", "Exit codes")
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        row = next(line for line in told.splitlines() if f"`{name}`" in line)
        assert row.startswith(f"| {kind.exit_code} |"), name


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("receipt.json", (Receipt, Limit, PhaseRow)),
        ("report.json", (Report, CandidateRow)),
        ("report.json", (SearchReport, RungRow, TrialRow, EliminationRow, RunnerUp)),
        ("report.json", (Forecast, MeasuredPoint, ForecastPoint)),
        ("plan.json", (Plan, TrialPlan)),
    ],
)
def test_every_field_is_in_the_reference(title: str, kinds: tuple[type, ...]) -> None:
    told = section("docs/reference.md", title)
    for kind in kinds:
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if (kind, field.name) != (PhaseRow, "phase"):
                assert f"`{field.name}`" in told, f"{kind.__name__}.{field.name}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{page} links to {target}"


def test_the_map_reaches_every_page() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in text("docs/index.md"), page.name


def test_the_file_tree_is_the_file_tree() -> None:
    """Every folder of the package and every module at its top stands in the README's tree, and nothing else."""
    (tree,) = [block for block in blocks("README.md", "text") if block.startswith("src/fitwithin/")]
    lines = tree.splitlines()
    assert len(lines) <= 30
    named = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines[1:] if line.startswith("  ")]
    assert all(len(parts) == 2 for parts in named), "each line says what it is for"
    source = ROOT / "src" / "fitwithin"
    modules = [path.stem for path in source.glob("*.py")]
    folders = [f"{path.name}/" for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(word for words, _ in named for word in words.split()) == sorted([*modules, *folders])


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_over(page: str) -> None:
    found = re.search(r"\b(TODO|FIXME|XXX|TBD|lorem ipsum)\b|(?<![\w.])/(home|root|tmp|mnt|Users)/", text(page))
    assert not found, f"{page}: {found and found[0]}"
