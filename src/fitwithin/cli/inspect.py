"""The command that looks at a data set before anything is spent on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fitwithin.cli import terminal
from fitwithin.cli.options import AsJson, Data, Device, option


def inspect(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where to write. Default: inspections/<data>-<time>.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Check no labels, which takes pretrained weights.")] = False,
    weights: Annotated[str | None, option("weights")] = None,
    licences: Annotated[str | None, option("licences")] = None,
    device: Device = "auto",
    seed: Annotated[int | None, option("seed")] = None,
    split: Annotated[str | None, option("split")] = None,
    columns: Annotated[str | None, option("columns")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for broken files, twins, leaks and wrong labels; write a page and a list to edit. Nothing is deleted."""
    from fitwithin import files
    from fitwithin.inspection import inspect as inspecting
    from fitwithin.inspection import summary

    folder = out or files.default_folder(data, "inspections")
    with terminal.reporter(as_json) as reporter:
        found = inspecting.inspect(
            data,
            out=folder,
            quick=quick,
            weights=weights,
            licences=licences,
            device=device,
            seed=seed,
            split=split,
            columns=columns,
            reporter=reporter,
        )
    if as_json:
        typer.echo(files.to_json(found, indent=1))
        return
    for line in summary.lines(found, data, folder):
        terminal.say(line)
