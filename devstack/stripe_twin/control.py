"""``/_twin/``: the twin's own addresses, to look inside and to steer it. Local use; no key is asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from devstack.stripe_twin import request_log
from devstack.stripe_twin.api import Api
from devstack.stripe_twin.authentication import account_of_key
from devstack.stripe_twin.checkpoints import Checkpoint, Checkpoints, Hold
from devstack.stripe_twin.clock import Clock
from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.faults import Faults, RateLimits
from devstack.stripe_twin.store import Store
from devstack.stripe_twin.webhooks import Mishaps, Webhooks

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 1000


@dataclass(frozen=True)
class Inside:
    """What can be looked at and steered."""

    api: Api
    store: Store
    clock: Clock
    checkpoints: Checkpoints
    faults: Faults
    limits: RateLimits
    webhooks: Webhooks


def routes(inside: Inside) -> list[Route]:
    store, checkpoints = inside.store, inside.checkpoints

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def requests(request: Request) -> Response:
        with store.transaction() as connection:
            entries = request_log.latest(connection, _limit(request), request.query_params.get("id"))
        return JSONResponse({"data": entries})

    async def objects(request: Request) -> Response:
        """All accounts' objects of one type as stored, newest first, deleted ones included."""
        kind, object_id = request.path_params["type"], request.path_params.get("id")
        with store.transaction() as connection:
            rows = connection.execute(
                "SELECT account, deleted, body FROM objects WHERE type = ? AND (? IS NULL OR id = ?) "
                "ORDER BY seq DESC LIMIT ?",
                (kind, object_id, object_id, _limit(request)),
            ).fetchall()
        data = [
            {**json.loads(row["body"]), "_account": row["account"], "_deleted": bool(row["deleted"])} for row in rows
        ]
        if object_id is None:
            return JSONResponse({"data": data})
        return JSONResponse(data[0]) if data else _problem(404, f"no {kind} {object_id}")

    async def hold(request: Request) -> Response:
        """Body: ``{"checkpoint": "before_execute", "method": "POST", "path": "/v1/customers"}``."""
        try:
            wanted = json.loads(await request.body())
            checkpoint = Checkpoint(wanted["checkpoint"])
            created = checkpoints.hold(checkpoint, wanted["method"], wanted["path"])
        except (ValueError, KeyError, TypeError):
            return _problem(400, "a hold needs checkpoint (before_execute or after_commit), method and path")
        return JSONResponse(_shown(created))

    async def holds(request: Request) -> Response:
        """GET waits until a request is held (at most ``wait`` seconds); DELETE lets all go on."""
        found = checkpoints.find(request.path_params["id"])
        if found is None:
            return _problem(404, "no such hold")
        if request.method == "DELETE":
            checkpoints.release(found)
        elif request.query_params.get("wait"):
            try:
                await asyncio.wait_for(found.reached.wait(), float(request.query_params["wait"]))
            except TimeoutError:
                return _problem(408, "no request came to this hold")
            except ValueError:
                return _problem(400, "wait is a number of seconds")
        return JSONResponse(_shown(found))

    async def faults(request: Request) -> Response:
        """POST one (see ``faults.Fault``; ``key`` in place of ``account``); DELETE forgets all. ``under_way``: how many
        requests commit late, and have not yet."""
        if request.method == "DELETE":
            forgotten = inside.faults.listed()
            inside.faults.clear()
            return JSONResponse({"forgotten": forgotten, "data": []})
        if request.method == "POST":
            try:
                given = dict(_object(await request.body()))
                if key := given.pop("key", None):
                    given["account"] = account_of_key(key)
                return JSONResponse(inside.faults.add(given).shown())
            except (ValueError, TypeError) as error:
                return _problem(400, str(error))
        return JSONResponse({"data": inside.faults.listed(), "under_way": inside.api.under_way})

    async def limits(request: Request) -> Response:
        """POST ``{"all_per_s": 25, "endpoint_per_s": 25}``, or nulls for none."""
        if request.method == "POST":
            try:
                inside.limits.set(**_object(await request.body()))
            except (ValueError, TypeError) as error:
                return _problem(400, str(error))
        return JSONResponse(inside.limits.shown())

    async def clock(request: Request) -> Response:
        """POST ``{"advance": seconds}``. The time outlives a restart."""
        if request.method == "POST":
            try:
                inside.clock.advance(int(_object(await request.body())["advance"]))
            except (ValueError, TypeError, KeyError) as error:
                return _problem(400, str(error))
            store.set_setting("clock_ahead_s", str(inside.clock.ahead))
        return JSONResponse({"now": inside.clock.now(), "ahead": inside.clock.ahead})

    async def mishaps(request: Request) -> Response:
        """POST what goes wrong with webhooks from now on (see ``webhooks.Mishaps``). How many are on their way."""
        if request.method == "POST":
            try:
                inside.webhooks.mishaps = Mishaps(**_object(await request.body()))
            except (ValueError, TypeError) as error:
                return _problem(400, str(error))
        return JSONResponse({"under_way": inside.webhooks.under_way})

    async def act(request: Request) -> Response:
        """POST ``{"key": "sk_test_…", …}``; see ``acts.py``."""
        try:
            given = dict(_object(await request.body()))
            return JSONResponse(inside.api.act(request.path_params["name"], given.pop("key"), given))
        except StripeError as error:
            return _problem(error.status, error.message)
        except (ValueError, TypeError, KeyError) as error:
            return _problem(400, f"no such act, or something is missing: {error}")

    return [
        Route("/_twin/webhooks", mishaps, methods=["GET", "POST"]),
        Route("/_twin/acts/{name}", act, methods=["POST"]),
        Route("/_twin/health", health),
        Route("/_twin/faults", faults, methods=["GET", "POST", "DELETE"]),
        Route("/_twin/limits", limits, methods=["GET", "POST"]),
        Route("/_twin/clock", clock, methods=["GET", "POST"]),
        Route("/_twin/requests", requests),
        Route("/_twin/objects/{type}", objects),
        Route("/_twin/objects/{type}/{id}", objects),
        Route("/_twin/holds", hold, methods=["POST"]),
        Route("/_twin/holds/{id:int}", holds, methods=["GET", "DELETE"]),
    ]


def _object(body: bytes) -> Mapping[str, Any]:
    """A JSON object. Raises ValueError."""
    given = json.loads(body)
    if not isinstance(given, dict):
        raise ValueError("a JSON object is expected")
    return given


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "")
    return min(int(text), _MAX_LIMIT) if text.isdecimal() else _DEFAULT_LIMIT


def _shown(hold: Hold) -> dict[str, Any]:
    return {
        "id": hold.id,
        "checkpoint": hold.checkpoint.value,
        "method": hold.method,
        "path": hold.path,
        "held": hold.held,
    }


def _problem(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)
