"""The code itself: who may import whom, how long a module may be, what starts light, and which options there are."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fitwithin

ROOT = Path(fitwithin.__file__).parent

#: Layers from the ground up, each a list of packages and of modules at the top: a module may import from its own layer
#: and from those below, never from above. A package is all that lies in its folder, but for what is named apart.
LAYERS: tuple[tuple[str, str], ...] = (
    ("ground", "errors units files machine version"),
    ("weights", "weights"),
    ("words", "candidate recipe budget options request store ledger accountant"),
    ("data", "data"),
    ("engine", "engine"),
    ("training", "training"),
    ("profiling", "profiling"),
    ("planning", "planning"),
    ("inference", "inference"),
    ("events", "events"),
    ("report", "report"),
    ("inspection", "inspection"),
    ("pipeline", "pipeline"),
    ("doors", "api worker"),
    ("command line", "cli __main__ fitwithin"),
)
LAYER_OF = {place: number for number, (_, places) in enumerate(LAYERS) for place in places.split()}

#: Only these may import torch or timm, or one another, when they are imported: they run in workers, or on demand.
TORCH = {
    "data.batches",
    "data.prefetch",
    "engine.cuda",
    "engine.device",
    "inference.bench",
    "inference.export.program",
    "inference.predictor",
    "inference.serve",
    "inference.service",
    "inspection.out_of_fold",
    "profiling.probe",
    "profiling.screen",
    "profiling.timing",
    "training.augment",
    "training.cuda_graph",
    "training.distributed",
    "training.evaluation",
    "training.learner",
    "training.linear_head",
    "training.linear_probe",
    "training.loop",
    "training.model",
    "training.optimizer",
    "training.pretrained",
    "training.trainer",
}

#: How many modules a folder holds at most, and files at the top, of which a module has so many lines at most.
MOST_MODULES, MOST_AT_THE_TOP, MOST_LINES = 14, 18, 350

MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """``engine.local``; a folder's ``__init__`` has the folder's name, the package itself is ``fitwithin``."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".") or "fitwithin"


NAMES = {name_of(path) for path in MODULES}


def layer_of(module: str) -> int:
    """The number of its layer, from the ground up; KeyError if no layer names it or a folder around it."""
    while module not in LAYER_OF and "." in module:
        module = module.rpartition(".")[0]
    return LAYER_OF[module]


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """What a module imports: our own as ``engine.local``, others by their first word; at its top level, or also inside
    functions (``lazy``). What only the type checker sees does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                own = alias.name.removeprefix("fitwithin.")
                yield own if own != alias.name else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] != "fitwithin":
                yield module.split(".")[0]
                continue
            base = module.removeprefix("fitwithin").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in NAMES else base or "fitwithin"
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, lazy=lazy)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_has_its_layer() -> None:
    for name in NAMES:
        layer_of(name)
    unused = {place for place in LAYER_OF if not any(f"{name}.".startswith(f"{place}.") for name in NAMES)}
    assert not unused


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    mine = name_of(path)
    ours = {other for other in imports(parsed(path), lazy=True) if other in NAMES and other != mine}
    upwards = {other for other in ours if layer_of(other) > layer_of(mine)}
    assert not upwards, f"{mine} ({LAYERS[layer_of(mine)][0]}) imports {upwards} from above"


def test_no_module_imports_itself_through_others() -> None:
    """At the top level there is no circle at all."""
    graph = {name_of(path): {each for each in imports(parsed(path), lazy=False) if each in NAMES} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"a circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_folders_are_small_and_their_own_files_empty() -> None:
    for folder in {path.parent for path in MODULES} - {ROOT}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{folder.name} holds {len(modules)} modules"
        assert (folder / "__init__.py").read_text(encoding="utf-8") == ""
    assert len(list(ROOT.glob("*.py"))) <= MOST_AT_THE_TOP


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_is_imported_by_the_verbs_that_need_it_alone(path: Path) -> None:
    heavy = {"torch", "timm", "torchvision", "matplotlib", "sklearn", "ray"} & set(imports(parsed(path), lazy=False))
    assert heavy <= {"torch", "timm"}
    assert not heavy or name_of(path) in TORCH
    if name_of(path) in TORCH:
        assert {"torch", "timm", *TORCH} & set(imports(parsed(path), lazy=False)), "it need not be on the list"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_but_workers_and_predictions_leads_to_torch(path: Path) -> None:
    """Whoever is not one of those verbs imports them inside functions only."""
    if name_of(path) not in TORCH:
        assert not set(imports(parsed(path), lazy=False)) & TORCH


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name_of(path)} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_whatever_is_public_is_explained(path: Path) -> None:
    tree = parsed(path)
    if path.name == "__init__.py" and path.parent != ROOT:
        return
    assert ast.get_docstring(tree), "the module"
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in (node for node in tree.body if isinstance(node, kinds)):
        private = node.name.startswith("_")
        assert private or ast.get_docstring(node), node.name
        if isinstance(node, ast.ClassDef) and not private:
            for inner in (inner for inner in node.body if isinstance(inner, kinds)):
                assert inner.name.startswith("_") or ast.get_docstring(inner), f"{node.name}.{inner.name}"


def test_the_library_and_its_command_line_start_without_torch() -> None:
    program = (
        "import sys, fitwithin, fitwithin.cli.main, fitwithin.api\n"
        "import fitwithin.engine.connect\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_help_costs_half_a_second() -> None:
    """The processor time of the best of three: what else runs on the machine does not count."""

    def best_s(*arguments: str) -> float:
        taken = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return min(taken)

    bare_s, help_s = best_s("-c", "pass"), best_s("-m", "fitwithin", "--help")
    assert help_s < 0.5 + bare_s, f"{help_s:.2f} s, an empty Python takes {bare_s:.2f} s"


LIMITS = [
    "--memory",
    "--time",
    "--gpu-time",
    "--inference",
    "--throughput",
    "--inference-memory",
    "--models",
    "--precision",
    "--sizes",
    "--test-sizes",
    "--scope",
    "--recipe",
    "--balance",
    "--fit",
    "--init",
    "--weights",
    "--licences",
    "--device",
    "--memory-accounting",
    "--seed",
    "--split",
    "--columns",
    "--strict",
    "--exclude",
    "--jobs",
    "--data-parallel",
    "--gpus",
    "--search",
    "--min-gain",
    "--emulate-device-memory",
    "--engine",
    "--ray-address",
]

#: A profile alone has no use for these.
BOUNDS = (
    *("--time", "--gpu-time", "--inference", "--throughput", "--inference-memory"),
    *("--scope", "--search", "--min-gain", "--balance", "--fit"),
    *("--init", "--weights", "--licences"),
)

#: The command line as it stands. An option more is a decision: is there a question of a user that it answers?
COMMANDS: dict[str, list[str]] = {
    "bench": ["folder", "--batch", "--device", "--json"],
    "budget": ["folder", "--json"],
    "demo": ["--out", "--json"],
    "doctor": ["--json"],
    "evaluate": ["folder", "data", "--columns", "--device", "--json"],
    "export": ["folder", "--format", "--data", "--out", "--json"],
    "serve": ["folder", "--host", "--port", "--names", "--device"],
    "inspect": [
        "data",
        "--out",
        "--quick",
        "--weights",
        "--licences",
        "--device",
        "--seed",
        "--split",
        "--columns",
        "--json",
    ],
    "models": ["pattern", "--json"],
    "plan": ["data", *LIMITS, "--out", "--json"],
    "profile": [
        "data",
        *(name for name in LIMITS if name not in BOUNDS),
        "--refresh",
        "--export",
        "--import",
        "--json",
    ],
    "predict": [
        *("folder", "paths", "--output", "--top", "--threshold", "--resume", "--device", "--json"),
    ],
    "report": ["folder", "--json"],
    "resume": ["folder", "--data", "--engine", "--ray-address", "--json"],
    "run": ["data", *LIMITS, "--out", "--plan", "--json"],
    "weights list": ["--weights", "--licences", "--json"],
    "weights pull": ["names", "--to", "--licences", "--json"],
    "weights show": ["name", "--weights", "--licences", "--json"],
}


def test_the_options_are_those() -> None:
    import typer

    from fitwithin.cli.main import app

    group = typer.main.get_command(app)
    commands = {
        f"{name} {inner}".strip(): each
        for name, command in group.commands.items()
        for inner, each in getattr(command, "commands", {"": command}).items()
    }
    found = {
        name: [p.opts[0] if p.param_type_name == "option" else p.name for p in command.params]
        for name, command in commands.items()
    }
    assert found == COMMANDS
    assert [p.opts for p in group.params] == [["--version"]]


def test_what_the_package_offers_is_there() -> None:
    assert sorted(fitwithin.__all__) == fitwithin.__all__
    for name in fitwithin.__all__:
        assert getattr(fitwithin, name) is not None
        assert name in dir(fitwithin)
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        _ = fitwithin.tarin
