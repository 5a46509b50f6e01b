"""What runs inside or beside a serving replica. `serving_adapter.Middleware` is for `vllm serve --middleware`."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`Middleware` when it is asked for: who only reads events loads nothing of it."""
    if name == "Middleware":
        from serving_adapter.serving.middleware import Middleware

        return Middleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
