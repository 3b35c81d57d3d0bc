"""What every test shares. tests/ is on the path, so ``from simulation import ...`` works in every folder below."""

import os

from hypothesis import HealthCheck, settings

# Two busy cores make a single example slow now and then: that is no finding.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# ``FITWITHIN_EXAMPLES=thorough pytest`` tries twenty times as many machines.
settings.register_profile(
    "thorough", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=2000, print_blob=True
)
settings.load_profile(os.environ.get("FITWITHIN_EXAMPLES", "default"))
