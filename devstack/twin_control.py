"""Asking the local Stripe twin what Stripe cannot be asked: its faults, its clock, what it has."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from devstack.errors import DevstackError
from devstack.stack import STRIPE_API, environment


def ask(method: str, path: str, body: object = None) -> Any:
    """What `/_twin/…` of the twin that the environment names says. Raises DevstackError."""
    return _call(method, f"_twin/{path}", None if body is None else json.dumps(body).encode(), {})


def as_person(method: str, path: str, key: str, form: Sequence[tuple[str, str]] = ()) -> Any:
    """What somebody does in Stripe's dashboard: a request to `/v1/…` with a key. Raises DevstackError."""
    sent = urllib.parse.urlencode(form).encode() if form else None
    return _call(method, f"v1/{path}", sent, {"Authorization": f"Bearer {key}"})


def _call(method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Any:
    address = environment().get(STRIPE_API)
    if address is None:
        raise DevstackError("no Stripe twin was started yet: make up")
    request = urllib.request.Request(f"{address.rstrip('/')}/{path}", method=method, data=data, headers=headers)
    # No proxy: the twin is on this machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        raise DevstackError(f"the Stripe twin: {error.read().decode(errors='replace')}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DevstackError(
            f"the Stripe twin at {address} cannot be asked ({error}): start it with `make up`"
        ) from None
