"""Fixtures come from the files named here; each says what it starts and what it leaves behind."""

from hypothesis import HealthCheck, settings

# No test is judged by how fast the machine happens to be, nor by what happens to be drawn: the same examples each time.
# `pytest --hypothesis-profile=random` looks for others.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("tollbook", settings.get_profile("random"), derandomize=True)
settings.load_profile("tollbook")

pytest_plugins = [
    "tests.fixtures_services",
    "tests.fixtures_kafka",
    "tests.fixtures_adapter",
    "tests.fixtures_event_server",
    "tests.fixtures_quota_server",
    "tests.fixtures_stripe_twin",
]
