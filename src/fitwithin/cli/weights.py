"""The commands ``fitwithin weights list | pull | show``: pretrained weights on this machine, and from the Hub."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fitwithin.cli import terminal
from fitwithin.cli.interrupt import INTERRUPTED_CODE
from fitwithin.cli.options import AsJson
from fitwithin.cli.progress import PLAIN_EVERY_S
from fitwithin.errors import UsageError
from fitwithin.units import format_size

if TYPE_CHECKING:
    from fitwithin.weights.find import Refused, Weights
    from fitwithin.weights.hub import Offer, Progress

app = typer.Typer(name="weights", help="Pretrained weights: what is on this machine, and more.", no_args_is_help=True)

#: From how many columns on a table has room for where weights are; else that stands on a line of its own.
WIDE = 120

Folder = Annotated[
    Path | None,
    typer.Option("--weights", help="A folder with weights, looked at first.", metavar="DIR", show_default=False),
]
Licences = Annotated[
    str, typer.Option("--licences", help="The licences permitted: permissive, or names with commas between them.")
]


@app.command("list")
def list_weights(folder: Folder = None, licences: Licences = "permissive", as_json: AsJson = False) -> None:
    """List the pretrained weights on this machine, and those that are refused with the reason."""
    found, refused = _find(folder, licences)
    if as_json:
        whole = {"weights": [_row(each) for each in found], "refused": [dataclasses.asdict(each) for each in refused]}
        typer.echo(json.dumps(whole, indent=1))
        return
    from rich.table import Table
    from rich.text import Text

    screen = terminal.console()
    wide = screen.width >= WIDE
    table = Table("name", "licence", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("size", justify="right")
    table.add_column("px", justify="right")
    if wide:
        table.add_column("source")
    for each in found:
        px = f"{each.px}" if each.test_px is None else f"{each.px}/{each.test_px}"
        name = each.name if wide else f"{each.name}\n  {each.source}"
        cells = (name, each.licence, format_size(_row(each)["size_bytes"]), px, each.source)
        table.add_row(*map(Text, cells[: len(table.columns)]))
    if found:
        screen.print(table)
    else:
        terminal.say("no pretrained weights are on this machine; `fitwithin weights pull` fetches some")
    for wrong in refused:
        terminal.say(f"refused: {wrong.name}, {wrong.source}: {wrong.reason}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name that list shows, or a backbone.", metavar="NAME")],
    folder: Folder = None,
    licences: Licences = "permissive",
    as_json: AsJson = False,
) -> None:
    """Show everything that is known of pretrained weights on this machine."""
    found, refused = _find(folder, licences)
    rows = [_row(each) for each in found] + [dataclasses.asdict(each) for each in refused]
    named = [row for row in rows if row["name"] == name or row["name"].partition(".")[0] == name]
    if not named:
        from fitwithin.weights.configs import config_of, near

        way = f"; `fitwithin weights pull {name}` fetches them" if config_of(name) is not None else near(name)
        raise UsageError(f"no weights called {name} are on this machine{way}")
    if as_json:
        typer.echo(json.dumps(named, indent=1))
        return
    for place, row in enumerate(named):
        if place:
            typer.echo()
        for key, value in row.items():
            terminal.say(f"{_TITLES.get(key, key):<14} {_words(key, value)}")


@app.command()
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="timm's names; without any, a choice of twelve.", metavar="[NAME]...", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The folder. Default: one in the cache that runs look at.", show_default=False),
    ] = None,
    licences: Licences = "permissive",
    as_json: AsJson = False,
) -> None:
    """Fetch pretrained weights from the Hugging Face Hub; asked again, a broken download goes on."""
    from fitwithin.weights import hub
    from fitwithin.weights.find import pulled_folder
    from fitwithin.weights.licences import parse_licences

    folder = to or pulled_folder()
    try:
        offers = hub.look_up(names or hub.PORTFOLIO, licences=parse_licences(licences))
        if not as_json:
            total = format_size(sum(offer.size_bytes for offer in offers))
            count = "one file" if len(offers) == 1 else f"{len(offers)} files"
            terminal.say(f"{count}, {total}, to {folder}")
        with _progress(offers, as_json) as on_progress:
            pulled = [hub.download(offer, folder, on_progress) for offer in offers]
    except KeyboardInterrupt:
        terminal.say("fitwithin: interrupted; what came is kept, the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED_CODE) from None
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(each) for each in pulled], indent=1))
        return
    for each in pulled:
        terminal.say(f"{each.path}: {each.licence}, sha256 {each.sha256[:8]}")


def _find(folder: Path | None, licences: str) -> tuple[list[Weights], list[Refused]]:
    from fitwithin.weights.find import find
    from fitwithin.weights.licences import parse_licences

    return find(folder, parse_licences(licences))


def _row(weights: Weights) -> dict[str, Any]:
    """The weights and the size of their file as plain values."""
    return {**dataclasses.asdict(weights), "size_bytes": Path(weights.path).stat().st_size}


_TITLES = {
    "path": "file",
    "px": "trained at",
    "test_px": "better at",
    "trained_on": "trained on",
    "crop_pct": "crop",
    "size_bytes": "size",
    "reason": "refused",
}


def _words(key: str, value: Any) -> str:
    """A value of :func:`_row` in words."""
    match key:
        case "px" | "test_px":
            return "-" if value is None else f"{value} px"
        case "size_bytes":
            return format_size(value)
        case "mean" | "std":
            return ", ".join(f"{each:g}" for each in value)
    return str(value) or "not known"


@contextmanager
def _progress(offers: Sequence[Offer], as_json: bool) -> Iterator[Progress]:
    """A bar for each file on a terminal; elsewhere a line at its start, and every PLAIN_EVERY_S."""
    screen = terminal.console()
    if as_json:
        yield lambda offer, done: None
    elif not screen.is_terminal:
        yield _Lines(offers)
    else:
        from rich import progress

        with progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=8),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[size]}", justify="right"),
            progress.TimeRemainingColumn(),
            console=screen,
        ) as bars:
            tasks = {
                offer: bars.add_task(
                    offer.name,
                    total=offer.size_bytes,
                    size=format_size(offer.size_bytes),
                    visible=False,
                    start=False,
                )
                for offer in offers
            }

            def move(offer: Offer, done: int) -> None:
                bars.start_task(tasks[offer])
                bars.update(tasks[offer], completed=done, visible=True)

            yield move


class _Lines:
    """Plain lines: which file begins and how large it is, then how far it has come."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._place = {offer: f"{number} of {len(offers)}" for number, offer in enumerate(offers, 1)}
        self._begun: set[Offer] = set()
        self._said_at = 0.0

    def __call__(self, offer: Offer, done: int) -> None:
        new, now = offer not in self._begun, time.monotonic()
        if not new and now - self._said_at < PLAIN_EVERY_S:
            return
        self._begun.add(offer)
        self._said_at = now
        there = f", {format_size(done)} of it there" if done else ""
        terminal.say(f"{self._place[offer]}: {offer.name}, {format_size(offer.size_bytes)}{there}")
