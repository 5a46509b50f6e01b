"""Asking the local Stripe twin what Stripe cannot be asked: its faults, its clock, what it has."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from devstack.errors import DevstackError
from devstack.stack import STRIPE_API, environment


def ask(method: str, path: str, body: object = None) -> Any:
    """What `/_twin/…` of the twin that the environment names says. Raises DevstackError."""
    address = environment().get(STRIPE_API)
    if address is None:
        raise DevstackError("no Stripe twin was started yet: make up")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address.rstrip('/')}/_twin/{path}", method=method, data=data)
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
