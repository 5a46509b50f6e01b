"""How far the service's time is before the database's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lead:
    """One for all books of a shard: periods begin by the database's clock, also while that has stepped back."""

    us: int = 0
