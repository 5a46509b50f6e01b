"""How the quota service is called, and what happens when it does not answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from serving_adapter.quota.tiers import OTHERS, TIERS, Mode
from serving_adapter.settings import SettingsError

TIER_MODES: Final[Mapping[str, Mode]] = {name: policy.on_unavailable for name, policy in TIERS.items()}
OTHER_TIERS: Final[Mode] = OTHERS.on_unavailable
DEFAULT_URL: Final = "http://127.0.0.1:8720"


@dataclass(frozen=True, slots=True)
class GateSettings:
    """The service's address and key, deadlines, slices and fail modes. Seconds where not said otherwise."""

    host: str = "127.0.0.1"
    port: int = 8720
    secret: str = field(default="", repr=False)
    holder: str = "gate"
    """Who holds slices: a name of its own for each process, among which what is left is divided."""
    deadline: float = 0.005
    """Nobody's request waits longer for a limiter."""
    failures_to_open: int = 3
    """So many calls without an answer, over a while in which none had one: the service is not asked then."""
    longest_pause: float = 1.0
    """Between two calls that try whether it answers again; the first come sooner."""
    slice_ttl: float = 2.0
    slice_requests: int = 200
    """How much a slice is asked for at first; later as much as is used up in its time."""
    slice_tokens: int = 400_000
    safe_requests: int = 4
    """Of a tenant in flight at once, where only a safe capacity is admitted without the service."""
    safe_tokens: int = 512
    """`max_tokens` of such a request at most."""
    keep_in: Path | None = None
    """A folder for fail mode decisions until the service is told of them; without one they end with the process."""
    tier_modes: Mapping[str, Mode] = field(default_factory=lambda: dict(TIER_MODES))

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> GateSettings:
        """Address and key from `TOLLBOOK_QUOTA_URL` and `TOLLBOOK_QUOTA_KEY`. Raises SettingsError."""
        url = urlsplit(environ.get("TOLLBOOK_QUOTA_URL") or DEFAULT_URL)
        if url.scheme != "http" or not url.hostname or url.path.strip("/"):
            raise SettingsError("TOLLBOOK_QUOTA_URL must be http://HOST:PORT; TLS ends in a proxy before the service")
        holder = f"{socket.gethostname()}/{os.getpid()}"
        return GateSettings(url.hostname, url.port or 80, environ.get("TOLLBOOK_QUOTA_KEY", ""), holder)
