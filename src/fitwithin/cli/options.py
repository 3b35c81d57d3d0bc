"""The options of the commands, for typer: those of a run are made from :data:`fitwithin.options.OPTIONS`.

python -m fitwithin.cli.options docs/reference.md   # writes their tables in the reference page anew
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from fitwithin.options import OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])


def option(name: str, default: str | None = None) -> Any:
    """What typer needs to know of that option; ``default`` says what holds without it where a command differs."""
    known = OPTIONS[name]
    default = default or known.default_text
    shown = "" if default in ("none", "off", "required") else f" Default: {default}."
    return typer.Option(known.flag, help=(known.help + shown).replace("`", ""), show_default=False)


Data = Annotated[
    Path,
    typer.Argument(
        help="Labelled images: a folder (DATA/<class>/*), table, archive, or hf:owner/name.", metavar="DATA"
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN")]
Device = Annotated[str, option("device")]
Columns = Annotated[str | None, option("columns")]
EngineName = Annotated[str | None, option("engine", "the run's")]
RayAddress = Annotated[str | None, option("ray_address", "the run's")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for another program, and no progress.")]


def with_limits(*, profile: bool = False) -> Callable[[Command], Command]:
    """Let a command take the options of a run, or those of a ``profile``, between its argument and its own options.

    It gets those that were given, as keywords.
    """
    names = [name for name, known in OPTIONS.items() if known.in_profile or not profile]

    def dress(command: Command) -> Command:
        first, *own = inspect.signature(command, eval_str=True).parameters.values()
        limits = [
            inspect.Parameter(
                name,
                first.kind,
                default=False if OPTIONS[name].kind is bool else None,
                annotation=Annotated[OPTIONS[name].kind | None, option(name)],
            )
            for name in names
        ]
        taken = [first, *limits, *(each for each in own if each.kind is not inspect.Parameter.VAR_KEYWORD)]

        @functools.wraps(command)
        def dressed(**asked: Any) -> Any:
            # 0 is an answer, if a wrong one; False is not.
            absent = [name for name in names if asked[name] is None or asked[name] is False]
            return command(**{name: value for name, value in asked.items() if name not in absent})

        dressed.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
        dressed.__annotations__ = {each.name: each.annotation for each in taken}
        return cast("Command", dressed)

    return dress


def reference(page: str) -> str:
    """The reference page with what is between its markers, such as ``<!-- options -->``, made anew."""
    rows = [
        f"| `{known.flag}` | {known.default_text} | {' '.join((known.help, known.more)).strip()} |"
        for known in OPTIONS.values()
    ]
    parts = {
        "options": "\n".join(["", "| option | default | |", "|---|---|---|", *rows, ""]),
        "options of profile": ", ".join(f"`{known.flag}`" for known in OPTIONS.values() if known.in_profile),
        "options with a plan": ", ".join(f"`{known.flag}`" for known in OPTIONS.values() if known.with_plan),
    }
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = page.split(start)
        page = before + start + part + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(reference(target.read_text(encoding="utf-8")), encoding="utf-8")
