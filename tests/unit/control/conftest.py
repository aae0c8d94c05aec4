"""Property tests are the same on every machine: no clock and no chance decides whether they pass."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "control",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("control")
