"""The quota service's calls for programs: OpenAPI 3.1, its schemas made from the types of requests and answers."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec

from streams.quotas import answers, replies
from streams.quotas.decisions import Ask, RequestId, TenantId

_BODIES: Final = (Ask, answers.Settlement, answers.Settlements, answers.LeaseAsk, answers.ReturnedLease,
                  answers.UnaskedDecisions)  # fmt: skip
_REPLIES: Final = (answers.Allowed, replies.Error, replies.Denied, replies.LeaseGranted, replies.TenantQuotas,
                   replies.Decisions, replies.Healthy, replies.Ready)  # fmt: skip
_REF: Final = "#/components/schemas/{name}"
Results = dict[str, str | tuple[str, Any]]
"""By status: what it means, and what is answered."""
_COMMON: Final[Results] = {
    "400": "A body or a name that does not fit; the text names the field.",
    "401": "No key of a quota caller.",
    "403": "A tenant that is not the caller's, is not registered, or is suspended or closed.",
    "413": "A body beyond the bound.",
    "421": "A tenant of another shard: `x-tollbook-shard` says of which.",
    "503": "Nothing can be decided now: go by the tier's fail mode.",
}
_NAME: Final = {"tenant": TenantId, "request_id": RequestId}


@cache
def document() -> dict[str, Any]:
    """The document that `/openapi.json` answers."""
    _, schemas = msgspec.json.schema_components([*_BODIES, *_REPLIES], ref_template=_REF)
    renewed: Results = {"404": "No such slice.", "409": "It is of another model."}
    granted = ("What was granted; zeros where a limit is near: ask for each request then.", replies.LeaseGranted)
    lease: Results = {"200": granted}
    paths: dict[str, Any] = {
        "/v1/reservations": {
            "post": _call(Ask, {
                "200": ("Admitted.", answers.Allowed), "409": "The same (request_id, attempt) with other content.",
                "429": ("Refused; the headers say when to come again.", replies.Denied),
            }, "Ask for a request's admission."),
        },
        "/v1/reservations/{tenant}/{request_id}/settle": {
            "parameters": [_path("tenant"), _path("request_id")],
            "post": _call(answers.Settlement, {"204": "Noted."}, "Tell what an attempt has used."),
        },
        "/v1/settlements": {"post": _call(answers.Settlements, {"204": "Noted."}, "Tell it of many.")},
        "/v1/decisions": {
            "post": _call(answers.UnaskedDecisions, {"204": "Noted."}, "Tell what was decided without the service."),
        },
        "/v1/leases": {"post": _call(answers.LeaseAsk, lease, "Ask for a slice of a tenant's quotas.")},
        "/v1/leases/{lease_id}/renew": {
            "parameters": [_path("lease_id")],
            "post": _call(answers.LeaseAsk, lease | renewed, "Ask for more, and longer."),
        },
        "/v1/leases/{lease_id}": {
            "parameters": [_path("lease_id")],
            "delete": _call(answers.ReturnedLease, {"204": "Noted."}, "Give a slice back."),
        },
        "/v1/tenants/{tenant}/quota": {
            "parameters": [_path("tenant")],
            "get": _call(None, {
                "200": ("Every quota and where it stands.", replies.TenantQuotas),
            }, "Where a tenant's quotas stand."),
        },
        "/v1/decisions/{tenant}/{request_id}": {
            "parameters": [_path("tenant"), _path("request_id")],
            "get": _call(None, {
                "200": ("What was decided.", replies.Decisions), "404": "Nothing is known of it.",
            }, "Why was it so?"),
        },
    }  # fmt: skip
    paths["/v1/leases/{lease_id}"]["delete"]["requestBody"]["required"] = False
    open_to_all: dict[str, Results] = {
        "/healthz": {"200": ("It lives.", replies.Healthy)},
        "/readyz": {"200": ("It can answer.", replies.Ready), "503": ("It cannot.", replies.Ready)},
        "/openapi.json": {"200": ("This document.", replies.Document)},
    }
    for path, results in open_to_all.items():
        paths[path] = {"get": {"responses": _responses(results), "security": []}}
    metrics = {"description": "For Prometheus.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": {"responses": {"200": metrics}, "security": []}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tollbook quota service", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _call(body: type | None, results: Results, summary: str) -> dict[str, Any]:
    made: dict[str, Any] = {"summary": summary, "responses": _responses(_COMMON | results)}
    if body is not None:
        made["requestBody"] = {"required": True, **_content(body)}
    return made


def _responses(results: Results) -> dict[str, Any]:
    """A text alone: an error from 400 on, nothing below."""
    found: dict[str, Any] = {}
    for status, result in sorted(results.items()):
        text, kind = result if isinstance(result, tuple) else (result, replies.Error if status >= "400" else None)
        found[status] = {"description": text} | (_content(kind) if kind is not None else {})
    return found


def _content(kind: Any) -> dict[str, Any]:
    named = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    schema = {"$ref": _REF.format(name=kind.__name__)} if named else {"type": "object"}
    return {"content": {"application/json": {"schema": schema}}}


def _path(name: str) -> dict[str, Any]:
    schema = msgspec.json.schema(_NAME[name]) if name in _NAME else {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema}
