"""What billing reads from the environment, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from serving_adapter.settings import SettingsError

LIVE_KEY: Final = ("sk_live_", "rk_live_")


@dataclass(frozen=True, slots=True)
class StripeSettings:
    """How to reach Stripe. The key is a secret: it is never printed. `api` is set only to point at a twin."""

    key: str = field(repr=False)
    api: str | None = None

    def __post_init__(self) -> None:
        if not self.key:
            raise SettingsError(
                "TOLLBOOK_STRIPE_KEY is not set: start the local twin with `make up`, or set a test key"
            )
        if self.api is not None and self.key.startswith(LIVE_KEY):
            raise SettingsError(
                "TOLLBOOK_STRIPE_KEY is a live key, but TOLLBOOK_STRIPE_API points elsewhere: unset one of the two"
            )

    @property
    def is_live(self) -> bool:
        """Whether real money moves."""
        return self.key.startswith(LIVE_KEY)

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> StripeSettings:
        """Settings from `TOLLBOOK_STRIPE_KEY` and `TOLLBOOK_STRIPE_API`. Raises SettingsError."""
        return StripeSettings(environ.get("TOLLBOOK_STRIPE_KEY", ""), environ.get("TOLLBOOK_STRIPE_API") or None)
