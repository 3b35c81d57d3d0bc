"""Laws of the report's facts: JSON there and back, Wilson's interval. Its factory of reports serves other tests too."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwithin.errors import RunFolderError
from fitwithin.inference.assessment import assess
from fitwithin.inference.ensemble import softmax
from fitwithin.inference.quality import Assessment
from fitwithin.planning.forecast import make_forecast
from fitwithin.planning.stats import Accuracy
from fitwithin.report.candidate_row import with_pareto
from fitwithin.report.schema import (
    CandidateRow,
    ClassRow,
    CurvePoint,
    Limit,
    MethodRow,
    PhaseRow,
    Receipt,
    Report,
    Validation,
    ViewRow,
    from_json,
)
from fitwithin.report.search_report import (
    EliminationRow,
    RungRow,
    RunnerUp,
    SearchReport,
    TrialRow,
    TrialState,
    measured_points,
)

GIB = 2**30
HOSTILE = ("</script><script>alert(1)</script>", "cats & dogs", "Ærøskøbing", "猫", "x" * 180, "[red]a|b*c_`d`", "a\nb")


def curve(epochs: float, floor: float, points: int = 40) -> tuple[CurvePoint, ...]:
    """A plausible loss curve that ends near ``floor``."""
    return tuple(
        CurvePoint(
            step=8 * (i + 1),
            epoch=epochs * (i + 1) / points,
            elapsed_s=4.0 * (i + 1),
            loss=floor + 2.1 * math.exp(-5 * i / points) + 0.02 * math.sin(7 * i),
            lr=1e-3 * (1 + math.cos(math.pi * (i + 1) / points)) / 2,
        )
        for i in range(points)
    )


def trained(model: str, precision: str, px: int, correct: int, **changes: object) -> CandidateRow:
    """A candidate that reached validation, with ``correct`` of 1,000 images right."""
    estimate = Accuracy(correct=correct, total=1000)
    facts: dict[str, object] = {
        "name": f"{model}-{precision}-{px}",
        "model": model,
        "precision": precision,
        "train_px": px,
        "status": "trained",
        "reason": "ran its planned epochs to the end; learning rate 0 at the last step",
        "parameters": 23_700_000,
        "batch": 96,
        "batch_why": "96 ran the real step at 5.87 GiB; 97 went past the cap of 6.00 GiB",
        "epochs": 44.1,
        "steps": 4342,
        "images_per_s": 2557.0,
        "dummy_images_per_s": 3120.0,
        "actual_s": 2412.5,
        "profile_s": 21.4,
        "peak_bytes": int(5.87 * GIB),
        "validation": estimate,
        "validations": (Validation(step=4342, epoch=44.1, accuracy=estimate),),
        **changes,
    }
    planned_s = facts["actual_s"] * (1 + (correct * 7 % 11 - 5) / 150)  # errors of up to 3 %, of both signs
    facts["curve"] = curve(facts["epochs"], 1.0 - correct / 1000 + 0.02)
    facts |= {"predicted_s": planned_s, "predicted_low_s": 0.97 * planned_s, "predicted_high_s": 1.04 * planned_s}
    return CandidateRow(**{**facts, **changes})


def untrained(model: str, precision: str, px: int, status: str, reason: str, **changes: object) -> CandidateRow:
    """A candidate that was planned, rejected or failed."""
    name = f"{model}-{precision}-{px}"
    facts = {"name": name, "model": model, "precision": precision, "train_px": px, "status": status, "reason": reason}
    return CandidateRow(**{**facts, **changes})


def receipt(**changes: object) -> Receipt:
    """A receipt of three hours on one GPU whose books balance."""
    facts: dict[str, object] = {
        "limits": (
            Limit(
                name="memory", limit=6 * GIB, spent=5.91 * GIB, unit="bytes", kept=True, note="as the driver sees it"
            ),
            Limit(name="time", limit=10800.0, spent=10620.0, unit="s", kept=True, note="from process start"),
            Limit(name="inference", limit=5.0, spent=1.55, unit="ms/image", kept=True, note="batch 32"),
        ),
        "phases": (
            PhaseRow(phase="start", spent_s=6.2, gpu_s=0.0, peak_bytes=None, entries=1),
            PhaseRow(phase="pack", spent_s=41.0, gpu_s=0.0, peak_bytes=None, entries=1),
            PhaseRow(phase="profile", spent_s=171.3, gpu_s=168.0, peak_bytes=int(5.89 * GIB), entries=8),
            PhaseRow(phase="train", spent_s=10210.0, gpu_s=10210.0, peak_bytes=int(5.91 * GIB), entries=5),
            PhaseRow(phase="ensemble", spent_s=191.5, gpu_s=190.0, peak_bytes=int(2.1 * GIB), entries=1),
        ),
        "balanced": True,
        "starts": 1,
        "device": {"name": "NVIDIA GeForce RTX 3090", "total_bytes": 24 * GIB, "driver": "570.86", "mig": None},
        "versions": {"fitwithin": "0.1.0", "torch": "2.11.0+cu128", "timm": "1.0.24", "python": "3.11.9"},
        "data_fingerprint": "sha256:9f3c0d7e55aa41b2",
        "finished": True,
    }
    return Receipt(**{**facts, **changes})


NAMES = ("tench", "English springer", "cassette player", "chain saw", "church", *HOSTILE)


@functools.cache
def assessments() -> tuple[Assessment, ...]:
    """How good the answers are on 1,000 validation images and 3,925 test images, of which some have odd names."""
    rng, found = np.random.default_rng(0), []
    for split, count in (("val", 1000), ("test", 3925)):
        labels = rng.integers(0, len(NAMES), count)
        rows = softmax((2.5 * np.eye(len(NAMES))[labels] + rng.normal(size=(count, len(NAMES)))).astype(np.float32))
        paths = [f"{split}/{HOSTILE[place % len(HOSTILE)]}{place}.jpg" for place in range(count)]
        found.append(assess(split, rows, labels, classes=NAMES, paths=paths, temperature=0.7))
    return tuple(found)


def class_rows() -> tuple[ClassRow, ...]:
    """The classes, of very different size."""
    val, test = assessments()
    return tuple(
        ClassRow(name=name, train=100 * (place + 1), validation=mine.recall, test=theirs.recall)
        for place, (name, mine, theirs) in enumerate(zip(NAMES, val.classes, test.classes, strict=True))
    )


def complete(**changes: object) -> Report:
    """A run that ended well: six trained candidates, two rejected, one failed, one left planned."""
    winner = "resnest50d_1s4x24d-amp-160"
    slow = {"batch": 56, "epochs": 27.3, "images_per_s": 1410.0, "dummy_images_per_s": 1460.0, "actual_s": 2338.0}
    small = {"parameters": 4_100_000, "batch": 188, "epochs": 71.9, "peak_bytes": int(5.64 * GIB), "actual_s": 1490.0}
    shortened = "planned 46 epochs; shortened to 44.1, the machine was 4 % slower than profiled"
    rows = (
        untrained("resnet101", "fp32", 224, "rejected", "one epoch takes 11m 02s: 14 epochs fit, 20 are needed"),
        trained("resnet50", "amp", 160, 899, actual_s=2105.0, peak_bytes=int(4.9 * GIB), epochs=58.0),
        trained("resnest50d_1s4x24d", "amp", 160, 912, reason=shortened),
        trained("resnest50d_1s4x24d", "fp32", 160, 871, **slow),
        trained("efficientnet_b0", "amp", 160, 884, **small),
        trained("mobilenetv3_large_100", "amp", 160, 853, actual_s=980.0, epochs=96.2, peak_bytes=int(3.2 * GIB)),
        trained("resnet18", "fp32", 160, 832, actual_s=860.0, peak_bytes=int(2.7 * GIB), parameters=11_200_000),
        untrained("resnest50d_4s2x40d", "amp", 160, "failed", "the loss was not finite at step 812 of 3900", batch=61),
        untrained("vit_base_patch16_224", "amp", 160, "rejected", "this model only takes 224 px images"),
        untrained("resnet50", "amp", 224, "planned", "no turn was left for it", batch=52, epochs=24.0),
    )
    test = Accuracy(correct=3580, total=3925)
    methods = (
        MethodRow(
            method="symmetric sizes (SS)",
            candidate=winner,
            train_px=160,
            test_px="160",
            validation=Accuracy(correct=871, total=1000),
            test=Accuracy(correct=3405, total=3925),
        ),
        MethodRow(
            method="asymmetric sizes (AS)",
            candidate=winner,
            train_px=160,
            test_px="224",
            validation=Accuracy(correct=887, total=1000),
            test=Accuracy(correct=3468, total=3925),
        ),
        MethodRow(
            method="SS + ensemble",
            candidate=winner,
            train_px=160,
            test_px="160",
            validation=Accuracy(correct=905, total=1000),
            test=None,
            note="not tested: no view of it was chosen",
        ),
        MethodRow(
            method="AS + ensemble",
            candidate=winner,
            train_px=160,
            test_px="160 + 224 with flips",
            validation=Accuracy(correct=916, total=1000),
            test=test,
            note="what the saved model does",
            delivered=True,
        ),
    )
    views = tuple(
        ViewRow(
            name=f"{px} px{' flipped' if flip else ''}",
            px=px,
            flip=flip,
            validation=Accuracy(correct=correct, total=1000),
            ms_per_image=ms,
            chosen=chosen,
            reason=reason,
        )
        for px, flip, correct, ms, chosen, reason in (
            (160, False, 871, 0.31, True, "+12 of 1000 validation images for 0.31 ms"),
            (160, True, 869, 0.31, False, "no gain on validation data"),
            (224, False, 887, 0.62, True, "+887 of 1000 validation images for 0.62 ms"),
            (224, True, 888, 0.62, True, "+4 of 1000 validation images for 0.62 ms"),
        )
    )
    facts: dict[str, object] = {
        "title": "fitwithin run of photos",
        "created_at": "2026-11-23T14:05:00+00:00",
        "request": {
            "data": "./photos",
            "memory_bytes": 6 * GIB,
            "time_s": 10800.0,
            "gpu_time_s": None,
            "inference_ms": 5.0,
            "recipe": "paper",
            "sizes": [160, 224],
            "precisions": ["amp", "fp32"],
            "seed": 0,
            "flips": True,
        },
        "data": {
            "path": "/home/ada/photos",
            "fingerprint": "sha256:9f3c0d7e55aa41b2",
            "classes": list(NAMES),
            "counts": {"train": 8469, "val": 1000, "test": 3925},
            "split": "train/ and val/ were given; 1,000 images of train/ were set aside for validation, seed 0.",
            "broken": [{"path": "church/<b>n&m.jpg", "reason": "truncated: 4096 of 31337 bytes"}],
        },
        "candidates": rows,
        "winner": winner,
        "winner_why": "It has the best validation accuracy of 6 candidates, each with 40 minutes of training.",
        "methods": methods,
        "views": views,
        "ensemble_why": "3 of 4 views fit and help: 1.55 of 5 ms per image",
        "receipt": receipt(),
        "classes": class_rows(),
        "assessments": assessments(),
        "temperature_why": "Probabilities are made surer by a temperature of 0.70.",
        "notes": ("The GPU was shared with a display: 310 MiB of it were taken before the start.",),
    }
    return Report(**{**facts, **changes})


def small(*candidates: CandidateRow, winner: str | None = None, **changes: object) -> Report:
    """A report of these candidates alone, without methods and views."""
    return complete(candidates=candidates, winner=winner, methods=(), views=(), classes=(), assessments=(), **changes)


def without_test() -> Report:
    """A complete run whose data has no labelled test split."""
    report = complete()
    methods = tuple(dataclasses.replace(method, test=None) for method in report.methods)
    data = {**report.data, "counts": {"train": 8469, "val": 1000, "test": 0}}
    classes = tuple(dataclasses.replace(row, test=None) for row in report.classes)
    return dataclasses.replace(report, methods=methods, data=data, classes=classes, assessments=report.assessments[:1])


def plan() -> Report:
    """A plan: five candidates profiled, none trained."""
    report = complete()
    gone = {"status": "planned", "validation": None, "validations": (), "curve": (), "actual_s": None}
    rows = [
        dataclasses.replace(row, **gone, reason="fits 46 epochs; the loader is the limit (2557 of 3120 images/s)")
        if row.status == "trained"
        else row
        for row in report.candidates
        if row.status in ("trained", "rejected")
    ]
    limits = (
        Limit(name="memory", limit=6 * GIB, spent=5.97 * GIB, unit="bytes", kept=True),
        Limit(name="time", limit=10800.0, spent=177.5, unit="s", kept=True, note="profiling"),
    )
    return complete(
        title="fitwithin plan for photos",
        candidates=tuple(rows),
        winner=None,
        winner_why="",
        methods=(),
        views=(),
        ensemble_why="",
        classes=(),
        assessments=(),
        temperature_why="",
        receipt=receipt(limits=limits, phases=report.receipt.phases[:3]),
        notes=(),
    )


def searched(**changes: object) -> Report:
    """A complete run whose candidates shared the time by a search; one failed, two had as many images right."""
    report = complete()
    names = [row.name for row in report.candidates if row.status == "trained"]
    failed = next(row.name for row in report.candidates if row.status == "failed")
    names.remove(report.winner)
    names.insert(0, report.winner)
    correct = {name: 800 - 20 * place for place, name in enumerate(names)}
    correct[names[2]] = correct[names[1]]
    trials: list[TrialRow] = []

    def ask(name: str, rung: int, seconds: float, right: int | None, state: TrialState) -> None:
        trials.append(
            TrialRow(
                number=len(trials) + 1,
                candidate=name,
                name=f"{name}-rung{rung}",
                rung=rung,
                promised_s=seconds,
                charged_s=seconds / 2,
                gpu_s=seconds,
                accuracy=None if right is None else Accuracy(correct=right, total=1000),
                state=state,
                why="all get 2m 00s",
            )
        )

    for place, name in enumerate(names):
        ask(name, 0, 120.0, correct[name], TrialState.PROMOTED if place < 2 else TrialState.STOPPED)
    ask(failed, 0, 120.0, None, TrialState.FAILED)
    ask(names[0], 1, 480.0, 860, TrialState.PROMOTED)
    ask(names[1], 1, 480.0, 845, TrialState.STOPPED)
    ask(names[0], -1, 2000.0, 912, TrialState.DELIVERED)
    cutoff = Accuracy(correct=correct[names[1]], total=1000)
    eliminations = [
        EliminationRow(candidate=name, rung=0, reason=f"{name} lost", confidence=0.9 - 0.01 * place, cutoff=cutoff)
        for place, name in enumerate(names[3:])
    ]
    tie = "1000 validation images cannot tell them apart"
    eliminations += [
        EliminationRow(candidate=names[2], rung=0, reason=tie, confidence=None, cutoff=cutoff),
        EliminationRow(candidate=failed, rung=0, reason="it died", confidence=None, cutoff=None),
        EliminationRow(
            candidate="resnet50-amp-224", rung=None, reason="left out: no time", confidence=None, cutoff=None
        ),
        EliminationRow(
            candidate=names[1], rung=1, reason="second", confidence=0.83, cutoff=Accuracy(correct=860, total=1000)
        ),
    ]
    search = SearchReport(
        summary="Successive halving: 7 trials of 2m 00s, then the best 2 of 8m 00s, then 30m 00s for the winner.",
        rungs=(RungRow(count=7, seconds=120.0), RungRow(count=2, seconds=480.0)),
        final_s=1800.0,
        trials=tuple(trials),
        eliminations=tuple(eliminations),
        delivered=trials[-1].name,
        delivered_why="the model of the final training: 91.2 % after 33m 20s",
        runner_up=RunnerUp(
            candidate=names[1],
            rung=1,
            accuracy=Accuracy(correct=845, total=1000),
            winner_accuracy=Accuracy(correct=860, total=1000),
            confidence=0.83,
        ),
    )
    forecast = make_forecast(measured_points(search.trials, report.winner, warm_start=False))
    rows = with_pareto(
        [
            dataclasses.replace(row, inference_ms=0.2 + len(row.model) / 50, allotted_s=row.actual_s)
            for row in report.candidates
        ]
    )
    return dataclasses.replace(report, **{"candidates": rows, "search": search, "forecast": forecast, **changes})


REPORTS = {"complete": complete, "without_test": without_test, "plan": plan, "searched": searched}

estimates = st.integers(1, 10**6).flatmap(
    lambda total: st.builds(Accuracy, correct=st.integers(0, total), total=st.just(total))
)
finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    CandidateRow,
    name=st.from_regex(r"[a-z][a-z0-9_.]{0,40}-(amp|fp32)-[1-9][0-9]{1,2}", fullmatch=True),
    model=st.text(max_size=20),
    precision=st.sampled_from(["amp", "fp32"]),
    train_px=st.integers(8, 1024),
    status=st.sampled_from(["trained", "planned", "rejected", "failed"]),
    reason=st.text(max_size=60),
    epochs=st.none() | st.floats(0.1, 1e4),
    actual_s=st.none() | st.floats(0.1, 1e6),
    predicted_s=st.none() | st.floats(0.1, 1e6),
    peak_bytes=st.none() | st.integers(1, 2**40),
    validation=st.none() | estimates,
)
validations = st.builds(Validation, step=st.integers(0, 10**6), epoch=finite, accuracy=estimates)
curves = st.builds(CurvePoint, step=st.integers(0, 10**6), epoch=finite, elapsed_s=finite, loss=finite, lr=finite)


@given(
    st.lists(rows, max_size=3),
    st.lists(curves, max_size=3),
    st.lists(validations, max_size=3),
    st.dictionaries(st.text(max_size=9), st.none() | finite | st.text(max_size=9) | st.lists(st.integers())),
)
@settings(max_examples=50, deadline=None)
def test_a_report_comes_back_from_its_json(candidates, points, checks, request):
    candidates = [dataclasses.replace(row, curve=tuple(points), validations=tuple(checks)) for row in candidates]
    report = complete(candidates=tuple(candidates), request=request)
    assert from_json(report.to_json()) == report


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_realistic_reports_come_back_from_their_json(make):
    assert from_json(make().to_json()) == make()


def test_json_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="Out of range"):
        complete(request={"time_s": math.nan}).to_json()


def test_json_names_its_schema():
    assert json.loads(plan().to_json())["schema"] == 2


@given(estimates)
def test_wilsons_interval_holds_the_share_and_stays_a_share(estimate):
    low, high = estimate.interval
    assert 0.0 <= low <= estimate.share <= high <= 1.0
    assert high > low


@given(st.integers(1, 500), st.integers(2, 50))
def test_more_images_narrow_the_interval(total, factor):
    few, many = Accuracy(correct=total // 2, total=total), Accuracy(correct=total // 2 * factor, total=total * factor)
    assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: Wilson without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_against_published_values(correct, total, low, high):
    assert Accuracy(correct=correct, total=total).interval == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (1, 0), (4, 3), (-1, 3), (-2, -1)])
def test_an_estimate_refuses_nonsense(correct, total):
    with pytest.raises(ValueError, match=f"{correct} of {total} is no share"):
        Accuracy(correct=correct, total=total)


def test_json_cannot_smuggle_in_an_impossible_estimate():
    text = complete().to_json()
    impossible = text.replace('"correct": 3580', '"correct": 3926')
    assert impossible != text
    with pytest.raises(ValueError, match="3926 of 3925 is no share"):
        from_json(impossible)


def test_a_report_of_another_schema_is_refused():
    old = {**json.loads(complete().to_json()), "schema": 1}
    with pytest.raises(RunFolderError, match="the report has schema 1, this version of fitwithin reads 2"):
        from_json(json.dumps(old))


def test_a_row_is_found_by_its_name():
    report = complete()
    assert report.row("resnet50-amp-224").status == "planned"
    with pytest.raises(KeyError, match="nosuch"):
        report.row("nosuch")
