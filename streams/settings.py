"""What the streams read from the environment, once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from serving_adapter.settings import SettingsError
from streams.rules.horizon import SHORTEST

CHUNK_MESSAGES: Final = 2000
"""Messages a transaction: measured best between 1,000 (overhead) and 5,000 (latency)."""
APPLICATION_ROLE: Final = "tollbook_app"
ROLE_NAME: Final = re.compile("[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where PostgreSQL with TimescaleDB is. The URLs hold passwords: they are never printed.

    `owner_url` is for `db upgrade` and the dropping of `streams retain`: the login that owns the tables.
    """

    url: str = field(repr=False)
    owner_url: str = field(repr=False, default="")

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> DatabaseSettings:
        """Settings from `TOLLBOOK_DATABASE_URL` and `TOLLBOOK_DATABASE_OWNER_URL` (default: the same)."""
        url = environ.get("TOLLBOOK_DATABASE_URL", "")
        owner_url = environ.get("TOLLBOOK_DATABASE_OWNER_URL") or url
        if not url:
            raise SettingsError(
                "TOLLBOOK_DATABASE_URL is not set: start the local database with `make up`, or name yours (postgresql://…)"
            )
        for name, given in (("TOLLBOOK_DATABASE_URL", url), ("TOLLBOOK_DATABASE_OWNER_URL", owner_url)):
            if not given.startswith(("postgresql://", "postgres://")):
                raise SettingsError(f"{name} must begin with postgresql://")
        return DatabaseSettings(url, owner_url)


def application_role(environ: Mapping[str, str] = os.environ) -> str | None:
    """The role as which every session works: `TOLLBOOK_DATABASE_ROLE`, `tollbook_app` if it is not set.

    None where it says `none`: sessions then have all rights of their login. Raises SettingsError.
    """
    role = environ.get("TOLLBOOK_DATABASE_ROLE") or APPLICATION_ROLE
    if not ROLE_NAME.fullmatch(role):
        raise SettingsError(f"TOLLBOOK_DATABASE_ROLE is {role!r}: give lower-case letters, digits and _, or none")
    return None if role == "none" else role


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

    horizon: timedelta | None = None
    """How late an event may come, at least: never shorter than the oldest period that is not closed. None: as the
    database has it, 45 days at first; a worker that is not told otherwise changes nothing.
    """
    feed_kept: timedelta = timedelta(days=3)
    """How long the quota service may be away before it has to begin with the windows again."""

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> RetentionSettings:
        """Settings from `TOLLBOOK_HORIZON_DAYS` (at least 45) and `TOLLBOOK_QUOTA_FEED_DAYS` (at least 1)."""
        default = RetentionSettings()
        return RetentionSettings(
            _days(environ, "TOLLBOOK_HORIZON_DAYS", at_least=SHORTEST.days),
            _days(environ, "TOLLBOOK_QUOTA_FEED_DAYS", at_least=1) or default.feed_kept,
        )


def archive_address(environ: Mapping[str, str] = os.environ) -> str:
    """Where raw events are archived: `TOLLBOOK_ARCHIVE`, a folder or `s3://bucket/prefix`."""
    where = environ.get("TOLLBOOK_ARCHIVE", "")
    if not where:
        raise SettingsError("TOLLBOOK_ARCHIVE is not set: name a folder, or s3://bucket/prefix")
    return where


def _days(environ: Mapping[str, str], name: str, *, at_least: int) -> timedelta | None:
    text = environ.get(name, "")
    if not text:
        return None
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
