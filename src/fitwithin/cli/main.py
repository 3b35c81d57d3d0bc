"""The command line: each command parses its options, calls the library, and prints what came back."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fitwithin.cli import inspect as inspecting
from fitwithin.cli import terminal, use, weights
from fitwithin.cli.options import AsJson, Data, EngineName, RayAddress, RunFolder, with_limits
from fitwithin.engine import launch
from fitwithin.errors import DeviceError, FitwithinError
from fitwithin.files import naming_full_disks
from fitwithin.machine import process_started_at
from fitwithin.version import __version__

app = typer.Typer(
    name="fitwithin",
    help="The best image classifier within a memory cap, a time budget and an inference budget, with a receipt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(weights.app)


def main() -> None:
    """Run the command line. An error that is raised on purpose is printed as one sentence; its exit code is used."""
    try:
        with naming_full_disks():
            app(standalone_mode=True)
    except FitwithinError as error:
        terminal.say(f"fitwithin: {error}", err=True)
        sys.exit(error.exit_code)
    except ImportError as error:
        found = getattr(sys.modules.get((error.name or "").partition(".")[0]), "__file__", None)
        where = f"; {found} is in its place, move it away" if found else ""
        terminal.say(f"fitwithin: a library cannot be imported ({error}){where}", err=True)
        sys.exit(DeviceError.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


@app.command()
@with_limits()
def run(
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder. Default: runs/<data>-<time>.", show_default=False)
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan to carry out, step by step.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    **limits: Any,
) -> None:
    """Profile, plan, train and ensemble within the limits; end with a report and its receipt."""
    with launch.launched() as server, terminal.reporter(as_json) as reporter:
        from fitwithin import api

        result = api.run(
            data,
            out=out,
            plan=plan,
            reporter=reporter,
            started_at=process_started_at(),
            server=server,
            **limits,
        )
    terminal.print_report(result, as_json)


@app.command()
def resume(
    folder: RunFolder,
    data: Annotated[
        Path | None, typer.Option("--data", help="Where the images are now, if they have moved.", show_default=False)
    ] = None,
    engine: EngineName = None,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Continue an interrupted run; the time it has spent counts."""
    with terminal.reporter(as_json) as reporter:
        from fitwithin import api

        started_at = process_started_at()
        result = api.resume(
            folder,
            data=data,
            engine=engine,
            ray_address=ray_address,
            reporter=reporter,
            started_at=started_at,
        )
    terminal.print_report(result, as_json)


@app.command()
@with_limits()
def plan(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Where to write the plan.")] = Path("plan.json"),
    as_json: AsJson = False,
    **limits: Any,
) -> None:
    """Profile the candidates and print what a run would do with the same limits; trains nothing."""
    with launch.launched() as server, terminal.reporter(as_json) as reporter:
        from fitwithin import api, files
        from fitwithin.planning.plan import Plan
        from fitwithin.report import render

        files.check_writable(out, Plan.BEGINNING)
        made, report = api.plan(data, reporter=reporter, started_at=process_started_at(), server=server, **limits)
    out.write_text(made.to_json(), encoding="utf-8")
    if as_json:
        typer.echo(made.to_json())
        return
    console = terminal.console()
    console.print(render.plan_table(report))
    way = f"carry it out with: fitwithin run {data} --plan {out}"
    if made.search is not None:
        way = f"a run with the same options does this. {made.search.summary}"
    console.print(f"Plan written to {out}; {way}", soft_wrap=True, markup=False)


@app.command()
@with_limits(profile=True)
def profile(
    data: Data,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again what is in the cache.")] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write the profiles to this file, for other machines.", show_default=False),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option("--import", help="Read a file that --export wrote into the cache first.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    **limits: Any,
) -> None:
    """Find every candidate's largest batch and its speed, for later runs and plans; trains nothing."""
    from fitwithin import api
    from fitwithin.report import render

    with terminal.reporter(as_json) as reporter:
        found = api.profile(data, refresh=refresh, export=export, import_from=import_from, reporter=reporter, **limits)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(each) for each in found]))
        return
    console = terminal.console()
    console.print(*render.profile_table(found), sep="\n")
    if export is not None:
        console.print(
            f"Profiles written to {export}; import them with: fitwithin profile DATA --import {export}", markup=False
        )


for command in (inspecting.inspect, use.predict, use.evaluate, use.export, use.bench, use.serve):
    app.command()(command)


@app.command()
def report(folder: RunFolder, as_json: AsJson = False) -> None:
    """Print the report of a finished run."""
    from fitwithin.pipeline import result

    terminal.print_report(result.load(folder), as_json, whole=True)


@app.command()
def budget(folder: RunFolder, as_json: AsJson = False) -> None:
    """Show what a run has spent, also while it lasts: every entry of its ledger, and what is left of each limit."""
    from fitwithin.pipeline import statement

    terminal.print_ledger(statement.read(folder), as_json)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="A name or pattern, such as 'resnet*'.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the backbones that may be candidates."""
    from fitwithin import candidate
    from fitwithin.weights import model_names

    names = candidate.match([pattern], model_names.known_models())
    typer.echo(json.dumps(names) if as_json else "\n".join(names))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can do, and what is missing."""
    from fitwithin.cli import doctor as checks

    findings = checks.examine()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'MISS'}  {finding.name}: {finding.found}")
            if finding.hint:
                typer.echo(f"        {finding.hint}")
    if not all(finding.ok for finding in findings if finding.needed):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The run's folder.")] = Path("demo-run"),
    as_json: AsJson = False,
) -> None:
    """A complete run on 1,797 scanned digits and five tiny backbones, on the CPU within 75 s."""
    with launch.launched() as server, terminal.reporter(as_json) as reporter:
        from fitwithin.cli import demo as digits

        result = digits.run(out, reporter=reporter, started_at=process_started_at(), server=server)
    terminal.print_report(result, as_json)
