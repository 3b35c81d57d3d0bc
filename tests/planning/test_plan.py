"""Plans: JSON there and back, reasons for everybody, and refusals that name what would do. Laws: test_laws.py."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fitwithin import recipe as recipes
from fitwithin.budget import Remaining
from fitwithin.candidate import Candidate
from fitwithin.data.dataset import DataFacts
from fitwithin.engine.margins import VIEW_S
from fitwithin.engine.results import Probe
from fitwithin.errors import BudgetError, UsageError
from fitwithin.planning.cost import Workload, checkpoint_every_s, checkpoints, costs
from fitwithin.planning.plan import LEAST_STEPS, Plan, from_json, least_s, make_plan
from fitwithin.profiling.profile import Profile, Rejection
from fitwithin.units import duration
from simulated.run import FACTS, profile, request

PAPER = recipes.load("paper")


def workload(scope: str = "total", **changes: Any) -> Workload:
    return replace(Workload(data=FACTS, recipe=PAPER, view_sizes=(160, 224), scope=scope), **changes)


def made(
    known: list[Profile],
    available_s: float,
    scope: str = "total",
    *,
    limit_s: float | None = None,
    rejections: Sequence[Rejection] = (),
    **changes: Any,
) -> Plan:
    return make_plan(
        known,
        rejections,
        workload(scope, **changes),
        left=Remaining(time_s=available_s, gpu_time_s=math.inf),
        request=request(time_s=available_s if limit_s is None else limit_s),
        fingerprint="f",
    )


def test_a_plan_survives_json() -> None:
    turned = Rejection(candidate=Candidate(model="vgg19", train_px=224, precision="fp32"), reason="2 images do not fit")
    plan = made([profile("a"), profile("b", batch=40)], 500.0, rejections=[turned])
    assert from_json(plan.to_json()) == plan
    assert plan.to_json().startswith(Plan.BEGINNING)
    assert from_json(replace(plan, frozen=True).to_json()).frozen
    assert turned in plan.rejections


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a plan that `fitwithin plan` wrote"),
        ("[]", "not a plan that `fitwithin plan` wrote"),
        ("{}", "not a plan that `fitwithin plan` wrote .KeyError: 'schema'"),
        ('{"schema": 99}', "the plan has schema 99, this version reads 2; make it again with `fitwithin plan`"),
        ('{"schema": 2, "trials": [{}], "rejections": []}', "not a plan that `fitwithin plan` wrote"),
        ('{"schema": 2, "trials": [], "rejections": [], "more": 1}', "not a plan that `fitwithin plan` wrote"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_json(text)


def test_a_trial_keeps_free_what_its_profile_held_outside_the_allocator() -> None:
    probes = tuple(Probe(batch=b, passed=True, non_allocator_bytes=b) for b in (8, 32, 24))
    (trial,) = made([replace(profile(), probes=probes)], 500.0).trials
    assert trial.non_allocator_bytes == 32


def test_every_number_of_a_trial_has_its_reason() -> None:
    (trial,) = made([profile(batch=40)], 600.0).trials
    assert list(trial.why) == ["batch", "pace", "epochs", "lr"]
    assert trial.why["batch"] == "batch 40: 40 ran, 41 did not"
    assert "667 images/s with the real loader, 800 with a dummy one: the loader costs 20%" in trial.why["pace"]
    assert trial.why["epochs"].startswith(f"{trial.epochs:g} epochs: ")
    assert trial.why["lr"] == "learning rate 0.000395: 0.001 x sqrt(40/256)"
    assert trial.steps == trial.epochs * FACTS.train / 40


def test_shares_are_equal_and_the_slowest_is_left_out_with_a_reason() -> None:
    fast, middle, slow = (profile(n, step_s=s, step_high_s=s) for n, s in (("a", 0.05), ("b", 0.06), ("c", 0.5)))
    plan = made([slow, fast, middle], 160.0)
    assert [trial.candidate.model for trial in plan.trials] == ["a", "b"]
    assert len({trial.allotted_s for trial in plan.trials}) == 1
    (left_out,) = plan.rejections
    assert left_out.candidate.model == "c"
    assert "left out: in" in left_out.reason or "do not pay for one epoch" in left_out.reason


def test_under_scope_candidate_each_gets_everything() -> None:
    plan = made([profile("a"), profile("b"), profile("c", step_s=90.0, step_high_s=90.0)], 100.0, "candidate")
    assert [trial.allotted_s for trial in plan.trials] == [100.0, 100.0]
    (left_out,) = plan.rejections
    assert "do not pay for one epoch" in left_out.reason
    needed_s = duration(left_out.reason.split("; ")[1].removesuffix(" would"))
    (trial,) = made([profile("c", step_s=90.0, step_high_s=90.0)], needed_s, "candidate").trials
    assert trial.epochs >= 1


def test_a_twin_in_the_other_precision_doubles_what_is_kept_for_evaluation() -> None:
    alone = made([profile("a")], 300.0).trials[0].allotted_s
    both = made([profile("a"), profile("a", precision="fp32", step_s=60.0, step_high_s=60.0)], 300.0).trials[0]
    kept_s = 300.0 - alone
    assert 300.0 - both.allotted_s == pytest.approx(2 * kept_s)


@given(
    st.floats(-50, 60),
    st.integers(2, 800),
    st.floats(0.01, 20),
    st.floats(0, 3),
    st.sampled_from(["total", "candidate"]),
    st.floats(0, 9000),
)
def test_a_refusal_names_the_least_and_that_would_really_do(
    available_s: float, batch: int, step_s: float, save_s: float, scope: str, spent_s: float
) -> None:
    one = profile(batch=batch, step_s=step_s, step_high_s=step_s, step_low_s=step_s, save_s=save_s)
    limit_s = available_s + spent_s
    assume(limit_s > 0)  # no request has another
    try:
        made([one], available_s, scope, limit_s=limit_s)
        refused = None
    except BudgetError as error:
        refused = str(error)
    assume(refused is not None)
    needed_s = duration(refused.rpartition("the least that would do, also after a slower start, is ")[2])
    assert needed_s > limit_s
    # What came before training, and evaluating where it was kept for, takes half as long again next time.
    slower_s = min(5.0, (limit_s - available_s) / 2)
    plan = made([one], needed_s - (limit_s - available_s) - slower_s, scope, limit_s=needed_s)
    assert plan.trials[0].epochs >= 1 or plan.trials[0].steps >= LEAST_STEPS
    assert plan.trials[0].steps >= 2


def test_where_nobody_is_left_the_first_reasons_are_given() -> None:
    rejections = [
        Rejection(candidate=Candidate(model=f"m{i}", train_px=160, precision="amp"), reason=f"why {i}")
        for i in range(5)
    ]
    with pytest.raises(BudgetError, match=r"no candidate can be trained .*m0-amp-160: why 0; .*why 2; and 2 more"):
        made([], 100.0, rejections=rejections)


def test_a_batch_of_all_images_still_gets_two_steps_that_fit() -> None:
    one = profile(batch=800, step_s=10.0, step_low_s=10.0, step_high_s=10.0)
    cost = costs(one, workload("candidate", view_sizes=(160,)))
    assert cost.affordable_steps(cost.needed_s(1) + 1) == 0
    (trial,) = made([one], cost.needed_s(2) + 0.1, "candidate", view_sizes=(160,)).trials
    assert trial.steps == 2
    assert trial.predicted_high_s <= trial.allotted_s


def test_the_least_is_the_cheapest_candidates() -> None:
    paired = [(p, costs(p, workload(view_sizes=(160,)))) for p in (profile("a"), profile("b", step_high_s=5.0))]
    assert least_s(paired, FACTS) == least_s(paired[:1], FACTS) < least_s(paired[1:], FACTS)


def test_flips_cost_evaluation_twice() -> None:
    facts = DataFacts(train=800, val=100, test=0, classes=2)
    timing = profile().timing
    one = workload(data=facts, view_sizes=(160,))
    fixed_s = timing.startup_s + timing.save_s + timing.eval_first_s[160]
    with_flips = costs(profile(), one).evaluation_s - fixed_s
    upright = costs(profile(), replace(one, recipe=recipes.load("upright"))).evaluation_s - fixed_s
    assert with_flips == pytest.approx(2 * upright)


def test_an_image_that_is_loaded_is_mirrored_by_the_device_alone() -> None:
    facts = DataFacts(train=800, val=50, test=950, classes=2)  # too few for the distance of novel pictures
    bound = profile(eval_device_s={160: 0.0001})
    fixed_s = bound.timing.startup_s + bound.timing.save_s + bound.timing.eval_first_s[160] + 2 * VIEW_S
    found_s = costs(bound, workload(data=facts, view_sizes=(160,))).evaluation_s - fixed_s
    assert found_s == pytest.approx(1000 * (0.0005 + 0.0001))


@given(st.floats(1, 1e5), st.floats(0, 1e4), st.floats(0, 60))
def test_longer_trials_write_no_fewer_checkpoints_ten_at_most_at_a_hundredth_of_their_time(
    trial_s: float, more_s: float, save_s: float
) -> None:
    assert 0 <= checkpoints(trial_s, save_s) <= checkpoints(trial_s + more_s, save_s) <= 10
    assert checkpoints(trial_s, save_s) * save_s <= trial_s / 100
    assert trial_s / checkpoint_every_s(trial_s, save_s) == pytest.approx(checkpoints(trial_s, save_s), abs=1.0)
