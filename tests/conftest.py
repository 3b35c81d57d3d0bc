"""What every test shares. tests/ is on the path, so ``from simulated.run import ...`` works in every folder below."""

import os
import shutil
from pathlib import Path

#: One thread per process, here and in all that the tests start. OpenMP's threads wait for one another at every layer,
#: and spin while they wait: two processes with two threads each make 40 images/s on two busy cores where two with one
#: each make 1,130, and one alone makes as many with one thread as with two. A setting of the caller's own stays.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, Phase, settings

HERE = Path(__file__).parent

#: The folder of tests that measure a GPU's pace and memory: where there is one, what they start has the machine to
#: itself.
TIMED = "gpu"

#: Of whole files, what they share is costly: a worker server, a cluster. One process of the test runner takes them.
#: What takes longest comes first, so that no process is left with it in the end.
TOGETHER = ("engine/test_ray.py", "contracts/test_engine.py", "e2e/test_ray.py", "test_bad_models.py")

#: Other files that take long, the longest first.
LONG = (
    "e2e/test_search.py",
    "e2e/test_kill.py",
    "e2e",
    "training/test_loop.py",
    "training/test_distributed.py",
    "test_faults.py",
)

# Two busy cores make a single example slow now and then: that is no finding. Explaining a failure tries hundreds of
# variants of it, minutes where an example is a whole run.
settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the machine for itself, keep together what shares an engine, and begin with what takes long."""
    for item in items:
        name = item.path.relative_to(HERE).as_posix()
        if name.startswith(TIMED) and shutil.which("nvidia-smi"):
            item.add_marker(pytest.mark.timed)
        if name in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(_shared(item, name)))
    items.sort(key=_place)


def _shared(item: pytest.Item, name: str) -> str:
    """The group of a test: of a suite for several engines, those of one engine."""
    parameters = getattr(item, "callspec", None)
    kind = parameters.params.get("bench", "") if parameters is not None else ""
    return f"{name} {kind if kind == 'ray' else ''}".strip()


def _place(item: pytest.Item) -> int:
    """The longest first, all others in their order."""
    name = item.path.relative_to(HERE).as_posix()
    return next((n for n, long in enumerate((*TOGETHER, *LONG)) if name.startswith(long)), len(TOGETHER) + len(LONG))
