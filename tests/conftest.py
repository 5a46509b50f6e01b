"""Fixtures come from the files named here; each says what it starts and what it leaves behind."""

pytest_plugins = [
    "tests.fixtures_services",
    "tests.fixtures_kafka",
    "tests.fixtures_event_server",
    "tests.fixtures_quota_server",
    "tests.fixtures_stripe_twin",
]
