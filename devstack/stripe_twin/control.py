"""``/_twin/``: the twin's own addresses, to look inside and to steer it. Local use; no key is asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from devstack.stripe_twin import request_log
from devstack.stripe_twin.checkpoints import Checkpoint, Checkpoints, Hold
from devstack.stripe_twin.store import Store

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 1000


def routes(store: Store, checkpoints: Checkpoints) -> list[Route]:
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

    return [
        Route("/_twin/health", health),
        Route("/_twin/requests", requests),
        Route("/_twin/objects/{type}", objects),
        Route("/_twin/objects/{type}/{id}", objects),
        Route("/_twin/holds", hold, methods=["POST"]),
        Route("/_twin/holds/{id:int}", holds, methods=["GET", "DELETE"]),
    ]


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
