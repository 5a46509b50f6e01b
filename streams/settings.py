"""What the streams read from the environment, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from serving_adapter.settings import SettingsError
from streams.horizon import SHORTEST

CHUNK_MESSAGES: Final = 2000
"""Messages a transaction: measured best between 1,000 (overhead) and 5,000 (latency)."""


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where PostgreSQL with TimescaleDB is. The URL holds a password: it is never printed."""

    url: str = field(repr=False)

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> DatabaseSettings:
        """Settings from `TOLLBOOK_DATABASE_URL`."""
        url = environ.get("TOLLBOOK_DATABASE_URL", "")
        if not url:
            raise SettingsError(
                "TOLLBOOK_DATABASE_URL is not set: start the local database with `make up`, or name yours (postgresql://…)"
            )
        if not url.startswith(("postgresql://", "postgres://")):
            raise SettingsError("TOLLBOOK_DATABASE_URL must begin with postgresql://")
        return DatabaseSettings(url)


@dataclass(frozen=True, slots=True)
class CompletenessSettings:
    """When a missing number becomes a gap, a gap an alert, and a replica that says nothing one that broke off."""

    settle: timedelta = timedelta(seconds=5)
    """How long a number may be known and missing before it is named: heartbeats overtake events."""
    alert_after: timedelta = timedelta(seconds=60)
    silent_after: timedelta = timedelta(seconds=30)

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> CompletenessSettings:
        """Settings from `TOLLBOOK_GAP_ALERT_AFTER_S` and `TOLLBOOK_REPLICA_SILENT_AFTER_S`."""
        default = CompletenessSettings()
        return CompletenessSettings(
            default.settle,
            _seconds(environ, "TOLLBOOK_GAP_ALERT_AFTER_S", default.alert_after),
            _seconds(environ, "TOLLBOOK_REPLICA_SILENT_AFTER_S", default.silent_after),
        )


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long things are kept (docs/retention.md)."""

    horizon: timedelta = SHORTEST
    """How late an event may come, at least: never shorter than the oldest period that is not closed."""
    feed_kept: timedelta = timedelta(days=3)
    """How long the quota service may be away before it has to begin with the windows again."""

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> RetentionSettings:
        """Settings from `TOLLBOOK_HORIZON_DAYS` (at least 45) and `TOLLBOOK_QUOTA_FEED_DAYS` (at least 1)."""
        default = RetentionSettings()
        return RetentionSettings(
            _days(environ, "TOLLBOOK_HORIZON_DAYS", default.horizon, at_least=SHORTEST.days),
            _days(environ, "TOLLBOOK_QUOTA_FEED_DAYS", default.feed_kept, at_least=1),
        )


def archive_address(environ: Mapping[str, str] = os.environ) -> str:
    """Where raw events are archived: `TOLLBOOK_ARCHIVE`, a folder or `s3://bucket/prefix`."""
    where = environ.get("TOLLBOOK_ARCHIVE", "")
    if not where:
        raise SettingsError("TOLLBOOK_ARCHIVE is not set: name a folder, or s3://bucket/prefix")
    return where


def _days(environ: Mapping[str, str], name: str, default: timedelta, *, at_least: int) -> timedelta:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not at_least <= int(text[:6]) <= 3650:
        raise SettingsError(f"{name} is {text!r}: give whole days, {at_least} to 3650")
    return timedelta(days=int(text))


def _seconds(environ: Mapping[str, str], name: str, default: timedelta) -> timedelta:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        seconds = float(text)
        if not 0 <= seconds <= 86_400:
            raise ValueError
    except ValueError:
        raise SettingsError(f"{name} is {text!r}: give seconds, 0 to 86400") from None
    return timedelta(seconds=seconds)
