"""The commands that use a model: predict, evaluate, export and serve."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fitwithin.cli import terminal
from fitwithin.cli.options import AsJson, Columns, Data, Device, RunFolder
from fitwithin.errors import UsageError
from fitwithin.options import OPTIONS
from fitwithin.units import format_size

if TYPE_CHECKING:
    from fitwithin.inference.model import Model

#: Images that cannot be read are named one by one, up to so many.
MOST_NAMED = 20


def _said(model: Model) -> Model:
    """The model, after what is to be said of it."""
    if model.note:
        terminal.say(model.note, err=True)
    return model


def predict(
    folder: RunFolder,
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Images, folders, patterns, lists (.txt, .csv with a column path); - reads a list.", metavar="PATHS..."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .csv, .jsonl or .parquet.")] = Path(
        "predictions.csv"
    ),
    top: Annotated[int, typer.Option("--top", help="Classes that are named for each image.", min=1)] = 5,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Name no class where it is less sure.", min=0.0, max=1.0)
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the rows that the file has.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Classify images with the model of a run, or with one that was copied from it."""
    from fitwithin import files
    from fitwithin.inference import tables
    from fitwithin.inference.model import Model

    files.check_writable(output, tables.beginning(output))
    with terminal.reporter(as_json) as reporter:
        reporter.begin("looking at images")
        model = _said(Model(folder))
        width = min(top, len(model.classes))
        known = tables.known_rows(output, width) if resume else tables.Known()
        coming = model.iter_predictions(paths, device=device, top=width, skip=max(0, known.rows - 1))
        first = next(coming, None)  # what is asked for is there: now the file may be written
        if known.rows and (first is None or first.path != known.last):
            raise UsageError(
                f"row {known.rows:,} of {output} is {known.last!r}, and the image at that place is another one: these "
                f"are not the images of before; start anew without --resume"
            )
        done, bad, novel = known.rows, 0, 0
        with contextlib.closing(tables.open_table(output, width, threshold=threshold, known=known)) as table:
            for prediction in coming if known.rows or first is None else itertools.chain([first], coming):
                table.add(prediction)
                done, bad = done + 1, bad + bool(prediction.error)
                novel += (prediction.novelty or 0.0) > 1
                reporter.advance(done, None)
                if as_json:
                    names = ("path", "top", "novelty", "error")
                    typer.echo(json.dumps({name: getattr(prediction, name) for name in names}))
                if prediction.error and bad <= MOST_NAMED:
                    terminal.say(f"  not readable: {prediction.path}: {prediction.error}", err=True)
    if bad > MOST_NAMED:
        terminal.say(f"  and {bad - MOST_NAMED:,} more; {output} has the reasons", err=True)
    if not as_json:
        terminal.say(f"{done - bad:,} of {done:,} images classified, written to {output}")
    if novel:
        said = f"{novel:,} of them {'is' if novel == 1 else 'are'} unlike all training images (novelty above 1)"
        terminal.say(f"{said}: do not trust the answer", err=True)
    if done and bad == done:
        raise UsageError(f"none of the {bad:,} images can be read; {output} says why")


def export(
    folder: RunFolder,
    how: Annotated[
        str, typer.Option("--format", help="onnx, onnx-int8 (also in 8 bits), or torch (a program of torch.export).")
    ] = "onnx",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="For onnx-int8: pictures to calibrate on and to measure its cost with."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write. [default: RUN/export]", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as one file for other runtimes, and check it on its reference pictures."""
    from fitwithin.inference.model import Model

    model = _said(Model(folder))
    with terminal.reporter(as_json) as reporter:
        reporter.begin("exporting")
        from fitwithin.inference.export import program as exporting

        check = exporting.export(model, how, out or folder / "export", data)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(check), default=str))
        return
    terminal.say(f"{check.file} ({format_size(check.file.stat().st_size)}), and how to use it in model.json beside it")
    terminal.say(
        f"on {check.pictures} reference pictures, probabilities differ by {check.max_abs_diff:.1e} at the most, and "
        f"{check.same_class} of {check.pictures} classes are those of fitwithin predict"
    )
    for line in check.int8.lines if check.int8 else ():
        terminal.say(line)


def serve(
    folder: RunFolder,
    host: Annotated[str, typer.Option("--host", help="The address to listen on; other machines see 0.0.0.0.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="The port to listen on.", min=1, max=65535)] = 8000,
    names: Annotated[
        str, typer.Option("--names", help="Names by which the server is asked for, with commas. [default: localhost]")
    ] = "",
    device: Device = "auto",
) -> None:
    """Serve a run's model over HTTP, with a page; a token in FITWITHIN_TOKEN is then asked for."""
    from fitwithin.inference.model import Model
    from fitwithin.machine import resolve_device

    model, chosen = _said(Model(folder)), resolve_device(device)
    hosts = [*filter(None, map(str.strip, names.split(","))), "localhost", "127.0.0.1", "[::1]", host]
    try:
        from fitwithin.inference import serve as serving
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}: pip install fitwithin[serve]") from error
    token = os.environ.get("FITWITHIN_TOKEN", "")
    terminal.say(f"serving {folder} on http://{host}:{port} ({'with' if token else 'without'} a token); Ctrl-C ends it")
    serving.run(model, chosen, host=host, port=port, token=token, hosts=hosts)


def bench(
    folder: RunFolder,
    batches: Annotated[
        str, typer.Option("--batch", help="Images a pass, with commas. [default: 1,8,32 and what the run measured]")
    ] = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure how fast a run's model is on this machine: the median of its passes, the slowest ones, and its memory."""
    from fitwithin.inference.model import Model
    from fitwithin.machine import resolve_device

    model, chosen = _said(Model(folder)), resolve_device(device)
    wanted = _batches(batches) if batches else [1, 8, 32, model.ensemble.batch]
    with terminal.reporter(as_json) as reporter:
        reporter.begin("measuring")
        from fitwithin.inference import bench as benches

        found = list(benches.measure(model, chosen, wanted))
    terminal.print_speeds(found, model, str(chosen), as_json)


def _batches(text: str) -> list[int]:
    """The numbers in ``1,8,32``; UsageError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 4096 for word in words):
        raise UsageError(f"--batch {text!r} is no list of batches; write whole numbers from 1 to 4096, as in 1,8,32")
    return [int(word) for word in words]


def evaluate(
    folder: RunFolder,
    data: Data,
    columns: Columns = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a run's ensemble on labelled images: top-1 and top-5 with intervals, and by class."""
    from fitwithin.inference.model import Model

    with terminal.reporter(as_json) as reporter:
        reporter.begin("looking at images")
        by_role = dict(OPTIONS["columns"].read(columns) or ())
        model = _said(Model(folder))
        found = model.evaluate(data, columns=by_role, device=device, on_progress=reporter.advance)
    terminal.print_accuracy(found, as_json)
