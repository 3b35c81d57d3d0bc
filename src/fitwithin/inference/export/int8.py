"""An exported ONNX file in 8 bits, and what that costs: ONNX Runtime's static quantization.

Weights have a scale for each channel, activations one range each, which is found on real pictures (onnxruntime.ai,
"Quantize ONNX models"). The last layer and all after it stay as they are: 8 bits are too few for probabilities.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fitwithin.data.framing import Frame
from fitwithin.errors import DataError, UsageError
from fitwithin.files import write_atomic, write_text_atomic
from fitwithin.inference.crops import read_all
from fitwithin.inference.model import REFERENCES, Model
from fitwithin.inference.sources import Source, image_files, labelled_files, sources
from fitwithin.machine import cores
from fitwithin.planning.stats import Accuracy, paired_interval
from fitwithin.units import format_size

Uint8s = npt.NDArray[np.uint8]

FILE = "model.int8.onnx"

#: Ranges are found on so many pictures of the data at the most, and on a quarter of them. With 32 or 128 pictures the
#: classes of 98.1 % of 372 test pictures stayed, with 8 those of 97.6 % (tf_efficientnet_lite0, clothing10).
CALIBRATION = 64

#: Pictures in a pass of calibration and comparison.
AT_ONCE = 8

#: Passes of one picture that are timed with each file, in turn, after some that are not.
TIMED, WARM = 30, 3

#: What is quantized. Sums, products and norms are not: with them the logits of a vit_tiny are off by 39 % of their
#: deviation, without by 3 %, and five families are as fast (drawn weights, 2 cores).
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
ACTIVATIONS = frozenset({"Relu", "Clip"})  # of these nothing but the range of what they give remains

#: Pictures with their class, if that is known.
Pictures = list[tuple[Source, str | None]]


@dataclass(frozen=True, kw_only=True)
class Int8:
    """The quantized file beside the float one, on the same pictures."""

    file: Path
    #: Sizes of both files.
    int8_bytes: int
    float_bytes: int
    #: Pictures on which ranges were found, and pictures on which both files were compared.
    calibrated_on: int
    pictures: int
    #: Of the latter those whose class is the same, and the largest difference of a probability.
    same_class: int
    max_abs_diff: float
    #: On pictures in class folders: both accuracies, and the 95 % interval of the change, as a share.
    int8_accuracy: Accuracy | None
    float_accuracy: Accuracy | None
    change_interval: tuple[float, float] | None
    #: The median time of one picture on this CPU.
    int8_ms: float
    float_ms: float
    #: How it was made, with reasons.
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether it costs accuracy, in a sentence."""
        if self.int8_accuracy is None or self.float_accuracy is None or self.change_interval is None:
            changed = self.pictures - self.same_class
            said = f"INT8 changes the class of {changed} of {self.pictures} pictures"
            return f"{said}; what that does to accuracy is not known: give --data with class folders"
        before, after = self.float_accuracy, self.int8_accuracy
        low, high = (100 * end for end in self.change_interval)
        figures = (
            f"{before.percent} before, {after.percent} after, on {after.total:,} pictures "
            f"(change {100 * (after.share - before.share):+.1f} points, 95 % interval {low:+.1f} to {high:+.1f})"
        )
        if high < 0:
            return f"INT8 costs accuracy: {figures}"
        if after.share < before.share:
            return f"INT8 seems to cost accuracy, which so few pictures cannot prove: {figures}"
        possible = f", but one of {-low:.1f} points is possible" if low < 0 else ""
        return f"INT8 shows no loss of accuracy{possible}: {figures}"

    @property
    def lines(self) -> list[str]:
        """What is to be said of it."""
        slower = "INT8 is not faster here: " if self.int8_ms >= self.float_ms else ""
        return [
            f"{self.file} ({format_size(self.int8_bytes)}, before {format_size(self.float_bytes)})",
            *self.notes,
            f"on {self.pictures:,} pictures, {self.same_class:,} classes are those of the float model, and "
            f"probabilities differ by {self.max_abs_diff:.2f} at the most",
            self.verdict,
            f"{slower}a picture takes {self.int8_ms:.1f} ms on this CPU, before {self.float_ms:.1f} ms (one at a time, "
            f"{cores()} cores, medians of {TIMED})",
        ]


def quantize(model: Model, folder: Path, description: Path, data: Path | None) -> Int8:
    """Write ``model.int8.onnx`` beside the float file in ``folder``, compare both, and say so in ``description``.

    Args:
        data: pictures to find ranges on and to compare with; in class folders they give the accuracy too. Without it
            both is done on the reference pictures.

    Raises:
        UsageError: a library is missing, or ``data`` is no path of pictures.
    """
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UsageError(f"INT8 needs {error.name}: pip install fitwithin[export]") from error
    about = json.loads(description.read_text(encoding="utf-8"))
    calibrating, compared, notes = pictures(model, data)
    original, file = folder / about["file"], folder / FILE
    reduced, why = reduced_range()
    with (
        tempfile.TemporaryDirectory() as made,
        warnings.catch_warnings(),
        closing(_batches(about, [each for each, _ in calibrating])) as batches,
    ):
        warnings.simplefilter("ignore")  # of the libraries' own deprecations
        prepared, quantized, feed = Path(made) / "prepared.onnx", Path(made) / "quantized.onnx", _Feed(batches)
        quant_pre_process(str(original), str(prepared))
        quantize_static(
            str(prepared),
            str(quantized),
            feed,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(LAYERS | ACTIVATIONS),
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_end(prepared),
        )
        write_atomic(file, lambda new: _tidy(quantized, new))
    sessions = [onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]) for each in (original, file)]
    rows, labels = _probabilities(about, sessions, compared)
    missing = len(calibrating) + len(compared) - feed.pictures - len(labels)
    unread = [f"not readable: {missing:,} of the pictures"] if missing else []
    float_ms, int8_ms = _times_ms(about, sessions)
    before, after, interval = _accuracies(
        rows, [about["classes"].index(label) for label in labels if label is not None]
    )
    found = Int8(
        file=file,
        int8_bytes=file.stat().st_size,
        float_bytes=original.stat().st_size,
        calibrated_on=feed.pictures,
        pictures=len(labels),
        same_class=int((rows[0].argmax(1) == rows[1].argmax(1)).sum()),
        max_abs_diff=float(np.abs(rows[0] - rows[1]).max()),
        int8_accuracy=after,
        float_accuracy=before,
        change_interval=interval,
        int8_ms=int8_ms,
        float_ms=float_ms,
        notes=(f"calibrated on {feed.pictures:,} pictures", *notes, *unread, why),
    )
    about["int8"] = {**dataclasses.asdict(found), "file": file.name}
    write_text_atomic(description, json.dumps(about, indent=1, ensure_ascii=False))
    return found


def pictures(model: Model, data: Path | None) -> tuple[Pictures, Pictures, list[str]]:
    """The pictures to find ranges on, those to compare with, and what is to be said of the choice."""
    references: Pictures = [
        (Source(name=path.name, content=path), None) for path in sorted(image_files(model.folder / REFERENCES))
    ]
    if data is None:
        return references, references, ["they are the reference pictures: give more with --data"]
    notes = []
    try:
        found: Pictures = [
            (Source(name=str(path), content=path), label) for path, label in labelled_files(data, model.classes)
        ]
    except DataError as error:
        found = [(source, None) for source in sources(data)]
        notes = [f"accuracy is not measured: {error}"]
    every = max(4, math.ceil(len(found) / CALIBRATION))
    compared = [each for place, each in enumerate(found) if place % every]
    return references + found[::every], compared or found, notes


def reduced_range(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = "") -> tuple[bool, str]:
    """Whether weights get 7 bits, and why: on x86 without VNNI sums of 8-bit products overflow (quantize_static)."""
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    if "vnni" in flags or (machine or platform.machine()) not in ("x86_64", "AMD64", "i686"):
        return False, "weights have 8 bits; on an x86 processor without VNNI accuracy may be lower: check it there"
    return True, "weights have 7 bits, for this processor has no VNNI: sums of 8-bit products would overflow"


class _Feed:
    """ONNX Runtime's CalibrationDataReader: batches, one after the other, and how many pictures there were."""

    def __init__(self, batches: Iterator[tuple[dict[str, Uint8s], list[int]]]) -> None:
        self._batches, self.pictures = batches, 0

    def get_next(self) -> dict[str, Uint8s] | None:
        """The next batch by the names of the inputs; None at the end."""
        feed, places = next(self._batches, (None, []))
        self.pictures += len(places)
        return feed


def _batches(about: Mapping[str, Any], given: list[Source]) -> Generator[tuple[dict[str, Uint8s], list[int]]]:
    """The pixels of the pictures that can be read, by the names of the inputs, with their places in ``given``."""
    names = {each["shape"][1]: each["name"] for each in about["inputs"]}
    frame = Frame(about["prepare"]["crop_share"], about["prepare"]["fit"])
    with closing(read_all(given, list(names), frame, total=len(given))) as read:
        done = ((place, each.answer) for place, each in enumerate(read) if isinstance(each.answer, dict))
        while some := list(islice(done, AT_ONCE)):
            feed = {name: np.stack([crops[px] for _, crops in some]) for px, name in names.items()}
            yield feed, [place for place, _ in some]


def _probabilities(
    about: Mapping[str, Any], sessions: list[Any], compared: Pictures
) -> tuple[list[npt.NDArray[np.float32]], list[str | None]]:
    """The probabilities [N, K] of each session, and the label of each picture that can be read.

    Raises:
        DataError: none can.
    """
    rows: list[list[npt.NDArray[np.float32]]] = [[] for _ in sessions]
    labels = []
    with closing(_batches(about, [source for source, _ in compared])) as batches:
        for feed, places in batches:
            labels += [compared[place][1] for place in places]
            for found, session in zip(rows, sessions, strict=True):
                found.append(session.run(None, feed)[0])
    if not labels:
        raise DataError(f"none of the {len(compared)} pictures to compare with can be read")
    return [np.concatenate(found) for found in rows], labels


def _accuracies(
    rows: list[npt.NDArray[np.float32]], labels: list[int]
) -> tuple[Accuracy | None, Accuracy | None, tuple[float, float] | None]:
    """Both accuracies and the interval of their difference; None where pictures have no labels."""
    if not labels:
        return None, None, None
    before, after = (each.argmax(1) == np.array(labels) for each in rows)
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    one, other = (Accuracy(correct=int(each.sum()), total=len(labels)) for each in (before, after))
    return one, other, paired_interval(lost=lost, won=won, total=len(labels))


def _times_ms(about: Mapping[str, Any], sessions: list[Any]) -> list[float]:
    """The median time of each session for one picture. They take turns, so that a busy machine is busy for all."""
    feed = {each["name"]: np.zeros((1, *each["shape"][1:]), dtype=np.uint8) for each in about["inputs"]}
    taken: list[list[float]] = [[] for _ in sessions]
    for turn in range(WARM + TIMED):
        for times, session in zip(taken, sessions, strict=True):
            began_at = time.perf_counter()
            session.run(None, feed)
            if turn >= WARM:
                times.append(1e3 * (time.perf_counter() - began_at))
    return [statistics.median(times) for times in taken]


def _end(file: Path) -> list[str]:
    """The nodes from the last layer of each view to the answer, by name."""
    import onnx

    graph = onnx.load(file).graph
    makers = {name: node for node in graph.node for name in node.output}
    found, waiting = set(), [each.name for each in graph.output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += [] if node.op_type in LAYERS else node.input
    return sorted(found)


def _tidy(file: Path, new: Path) -> None:
    """The same model: weights that several views use are stored once, and other runtimes are not told of operator sets
    that none of its nodes is from."""
    import onnx_ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass, RemoveUnusedOpsetsPass

    model = DeduplicateHashedInitializersPass()(onnx_ir.load(file)).model
    onnx_ir.save(RemoveUnusedOpsetsPass()(model).model, new)
