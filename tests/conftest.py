"""What every test shares. tests/ is on the path, so ``from simulation import ...`` works in every folder below."""

from hypothesis import HealthCheck, Phase, settings

# Two busy cores make a single example slow now and then: that is no finding. Explaining a failure tries hundreds of
# variants of it, minutes where an example is a whole run.
settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
settings.load_profile("default")
