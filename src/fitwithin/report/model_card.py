"""The model card: what a model is for, how it was made, how good it is and where it is weak, in Markdown.

It begins as cards on the Hugging Face Hub do (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fitwithin.files import write_text_atomic
from fitwithin.inference.ensemble import MODEL
from fitwithin.planning.stats import Accuracy
from fitwithin.report.schema import ClassRow, PretrainedRow, Report
from fitwithin.report.summary import delivered_method, format_accuracy, format_amount, headline, trust_note
from fitwithin.units import format_count

MODEL_CARD = "README.md"

#: So many classes are named, and so many of those that are recognised the least often.
MOST_NAMED, WEAKEST = 100, 5


def write(report: Report, run: Path) -> None:
    """Put the card beside the model of a run."""
    write_text_atomic(run / MODEL / MODEL_CARD, model_card(report))


def model_card(report: Report) -> str:
    """The card of what a run handed over."""
    sections = (_about, _use, _accuracy, _made, _weaknesses)
    parts = [_front_matter(report), *(part for section in sections for part in section(report))]
    return "\n\n".join(parts) + "\n"


def _front_matter(report: Report) -> str:
    found = (report.receipt.weights, *report.receipt.member_weights)
    names = [json.dumps("timm/" + weights.name) for weights in dict.fromkeys(found) if weights is not None]
    lines = ["---", "library_name: timm", "pipeline_tag: image-classification", "license: unknown"]
    lines += [f"base_model: {names[0]}"] if len(names) == 1 else []
    lines += ["base_model:", *(f"- {name}" for name in names)] if len(names) > 1 else []
    return "\n".join([*lines, "tags:", "- image-classification", "- timm", "- fitwithin", "---"])


def _about(report: Report) -> Iterator[str]:
    used = delivered_method(report)
    row = report.row(used.candidate if used else str(report.winner))
    classes = report.data.get("classes", [])
    yield f"# {row.model}: {len(classes)} classes of pictures"
    yield headline(report)
    named = ", ".join(classes[:MOST_NAMED])
    more = f" Not all are named here; `config.json` has all {len(classes):,}." if len(classes) > MOST_NAMED else ""
    yield "## What it is for"
    yield f"It says which of these classes a picture shows: {named}.{more}"


def _use(report: Report) -> Iterator[str]:
    chosen = [view for view in report.views if view.chosen]
    yield "## Use"
    yield (
        "```python\n"
        "import timm, torch\nfrom PIL import Image\n\n"
        'net = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()\n'
        "data = timm.data.resolve_model_data_config(net, use_test_size=True)\n"
        "transform = timm.data.create_transform(**data, is_training=False)\n"
        'picture = transform(Image.open("picture.jpg").convert("RGB")).unsqueeze(0)\n'
        "with torch.inference_mode():\n"
        "    probabilities = net(picture).softmax(-1)[0]\n"
        'print(net.pretrained_cfg["label_names"][probabilities.argmax()])\n'
        "```"
    )
    if len(chosen) > 1:
        views = ", ".join(view.name for view in chosen)
        by = " by one of several models" if report.members else ""
        yield (
            f"That is one view of a picture{by}. The figures below are of the average of {len(chosen)} ({views}; "
            f"pixels, flipped or not), which `fitwithin predict PATH/OF/THIS/FOLDER picture.jpg` takes."
        )


def _accuracy(report: Report) -> Iterator[str]:
    used = delivered_method(report)
    splits = (("validation", used.validation if used else None), ("test", used.test if used else None))
    yield "## Accuracy"
    if any(found for _, found in splits):
        lines = ["| split | images | accuracy | 95 % interval |", "|---|---:|---:|---|"]
        lines += [
            f"| {name} | {found.total:,} | {' | '.join(format_accuracy(found))} |" for name, found in splits if found
        ]
        yield "\n".join(lines)
    yield trust_note(report)
    ranked = sorted((row for row in report.classes if _own(row)), key=lambda row: _share(_own(row)))
    if weak := ranked[:WEAKEST]:
        lines = ["| class | images for training | right |", "|---|---:|---|"]
        lines += [f"| {row.name} | {row.train:,} | {_counted(row)} |" for row in weak]
        yield "The classes that are recognised the least often:\n\n" + "\n".join(lines)


def _own(row: ClassRow) -> Accuracy | None:
    return row.test or row.validation


def _share(accuracy: Accuracy | None) -> float:
    return 1.0 if accuracy is None else accuracy.share


def _counted(row: ClassRow) -> str:
    accuracy, split = _own(row), "test" if row.test else "validation"
    return "" if accuracy is None else f"{accuracy.correct:,} of {accuracy.total:,} {split} images"


def _made(report: Report) -> Iterator[str]:
    receipt, data = report.receipt, report.data
    counts = ", ".join(f"{count:,} for {split}" for split, count in data.get("counts", {}).items() if count)
    yield "## How it was made"
    lines = [
        f"Images: {counts} (fingerprint `{receipt.data_fingerprint}`); their licence is unknown",
        f"Split: {data.get('split', 'unknown')}",
        f"Weights at the start: {_weights(receipt.weights)}",
    ]
    lines += [f"Weights of another member of the ensemble: {_weights(each)}" for each in receipt.member_weights]
    lines += [f"Machine: {receipt.device['name']}"] if receipt.device.get("name") else []
    lines += [
        f"Limit on {limit.name}: {format_amount(limit.limit, limit.unit)}, "
        f"used {format_amount(limit.spent, limit.unit)} ({'kept' if limit.kept else 'NOT KEPT'})"
        for limit in receipt.limits
    ]
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in receipt.versions.items()))
    yield "\n".join(f"- {line}" for line in lines)


def _weights(weights: PretrainedRow | None) -> str:
    if weights is None:
        return "drawn at random"
    trained_on = f", trained on {weights.trained_on}" if weights.trained_on else ""
    return f"{weights.name} (licence {weights.licence}{trained_on}) from {weights.source}, sha256 `{weights.sha256}`"


def _weaknesses(report: Report) -> Iterator[str]:
    yield "## Known weaknesses"
    used = delivered_method(report)
    row = report.row(used.candidate if used else str(report.winner))
    told = report.usage is not None and report.usage.novelty is not None
    lines = [
        "It knows its classes alone: a picture of anything else gets one of them, too."
        + (" `fitwithin predict` says of such pictures that they are unlike the training images." if told else ""),
        "Its figures hold for pictures like those it was tested on, from the same source.",
    ]
    lines += [f"It has {format_count(row.parameters)} parameters."] if row.parameters else []
    lines += report.notes
    yield "\n".join(f"- {line}" for line in lines)
