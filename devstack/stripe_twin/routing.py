"""Routes: which handler answers which URL, and with which of Stripe's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from devstack.stripe_twin.errors import unknown_url, unsupported
from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.rules import parameters
from devstack.stripe_twin.rules.forms import Form
from devstack.stripe_twin.session import Session


@dataclass(frozen=True)
class Call:
    """All that a handler may use. ``params`` are typed; "" in them means unset.

    In Unix seconds: ``now`` is the time of what the request is about, ``told_at`` the twin's. They differ under a test
    clock.
    """

    session: Session
    ids: Ids
    now: int
    base_url: str
    target: dict[str, str]
    params: dict[str, Any]
    request_id: str | None = None
    idempotency_key: str | None = None
    told_at: int = 0


Handler = Callable[[Call], dict[str, Any]]


@dataclass(frozen=True)
class Route:
    """One endpoint.

    ``params`` is the SDK's TypedDict: other names fail as ``parameter_unknown``. ``supports`` are the names the
    twin acts on: the rest of Stripe's names are refused as ``twin_unsupported`` rather than ignored.
    ``requires`` adds what Stripe requires although the SDK marks it optional. ``event`` is the type of the event that
    tells of it.
    """

    method: str
    path: str
    handler: Handler
    params: type
    supports: frozenset[str] = field(default_factory=frozenset)
    requires: tuple[str, ...] = ()
    event: str | None = None

    def check(self, form: Form) -> dict[str, Any]:
        checked = parameters.check(self.params, form, self.requires)
        for name in checked:
            if name not in self.supports and name != "expand":
                raise unsupported(name)
        return checked


class Router:
    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}
        # A literal segment wins over a placeholder: /v1/invoices/search is not the invoice "search".
        for route in sorted(routes, key=lambda route: route.path.count("{")):
            segments = route.path.strip("/").split("/")
            self._routes.setdefault((route.method, len(segments)), []).append((segments, route))

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and the ids in the URL. Raises StripeError (404)."""
        parts = path.removeprefix("/").split("/")
        for segments, route in self._routes.get((method, len(parts)), []):
            target = {}
            for segment, part in zip(segments, parts, strict=True):
                if segment.startswith("{") and part:
                    target[segment[1:-1]] = part
                elif segment != part:
                    break
            else:
                return route, target
        raise unknown_url(method, path)
