"""What every test shares. tests/ is on the path, so ``from simulation import ...`` works in every folder below."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

HERE = Path(__file__).parent

#: Tests that work by the clock: what they start has the machine to itself. All others may run side by side.
TIMED = (
    "contracts",
    "e2e",
    "gpu",
    "test_bad_models.py",
    "profiling/test_gpu_lock.py",
    "training/test_evaluation.py",
    "data/test_prefetch.py",
    "engine/test_launch.py",
    "training/test_distributed.py",
    "engine/test_ray.py",
    "training/test_loop.py",
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
    """Mark what needs the machine for itself."""
    for item in items:
        path = item.path.relative_to(HERE)
        if path.parts[0] in TIMED or path.as_posix() in TIMED:
            item.add_marker(pytest.mark.timed)
