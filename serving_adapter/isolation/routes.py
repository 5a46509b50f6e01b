"""The routes that exist for tenants. Everything else is 404, whatever the engine would do with it.

vLLM has some forty routes that nobody asked for, among them one that loads adapters and one that aborts anybody's
request; each version adds some. So what is not named here is closed.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Route(Enum):
    """What a request is, by method and path."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MODELS = "models"
    MODEL = "model"
    METRICS = "metrics"
    PROBE_PASSED = "probe_passed"
    """The platform's own word that this replica counts right."""
    OPEN = "open"
    """Health and version: nothing of a tenant in them."""
    CLOSED = "closed"

    @property
    def metered(self) -> bool:
        """Whether the engine works for it."""
        return self in _METERED


_METERED: Final = frozenset({Route.CHAT, Route.COMPLETION, Route.RESPONSES, Route.EMBEDDINGS})
ONE_MODEL: Final = "/v1/models/"
_ROUTES: Final = {
    ("POST", "/v1/chat/completions"): Route.CHAT,
    ("POST", "/v1/completions"): Route.COMPLETION,
    ("POST", "/v1/responses"): Route.RESPONSES,
    ("POST", "/v1/embeddings"): Route.EMBEDDINGS,
    ("GET", "/v1/models"): Route.MODELS,
    ("GET", "/metrics"): Route.METRICS,
    ("POST", "/tollbook/probe-passed"): Route.PROBE_PASSED,
    ("GET", "/health"): Route.OPEN,
    ("GET", "/ping"): Route.OPEN,
    ("GET", "/version"): Route.OPEN,
}  # fmt: skip


def route_of(method: str, path: str) -> Route:
    """By exact path: no trailing slash, no encoded one. What follows `/v1/models/` is a name, and never passed on."""
    if method == "GET" and path.startswith(ONE_MODEL):
        return Route.MODEL
    return _ROUTES.get((method, path), Route.CLOSED)
