"""What the streams read from the environment, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from serving_adapter.settings import SettingsError

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
