"""`POST /v1/events` as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from serving_adapter.events import json_schema
from streams.http.http_events import BATCHED, FOREIGN_REPLICA, MAX_EVENTS, NOT_ALLOWED, PLAIN, STRUCTURED


def document() -> dict[str, Any]:
    """The document that `/openapi.json` shows."""
    event = {"$ref": "#/components/schemas/UsageEvent"}
    cloud_event = {"$ref": "#/components/schemas/CloudEvent"}
    reasons = ["torn", "invalid", "unsupported", "bad_time", "too_large", NOT_ALLOWED, FOREIGN_REPLICA]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollbook: usage events",
            "version": "1",
            "description": "The way in for emitters without Kafka. Sending an event again is always safe.",
        },
        "paths": {
            "/v1/events": {
                "post": {
                    "operationId": "sendEvents",
                    "summary": "Send usage events; answered once Kafka has acknowledged them on all in-sync replicas.",
                    "description": "An event, or an array of them, plain or as CloudEvents 1.0 (structured, batched,"
                    " or binary with ce- headers and application/json). A CloudEvent's id is kept as source_event_id"
                    " where the event has none. An emitter numbers its events under its own name only: replica_id is"
                    " the key's name, or begins with it and a dot or a slash; any other is refused as"
                    f" {FOREIGN_REPLICA}.",
                    "security": [{"emitterKey": []}],
                    "requestBody": {
                        "required": True,
                        "content": {
                            STRUCTURED: {"schema": cloud_event},
                            BATCHED: {"schema": _array(cloud_event)},
                            PLAIN: {"schema": {"anyOf": [event, _array(event)]}},
                        },
                    },
                    "responses": {
                        "202": _json("At least one event is accepted, and all accepted ones are in Kafka.", "Answer"),
                        "403": _json("The key may not speak for the tenants, or number as the replicas.", "Answer"),
                        "422": _json("No event is accepted; each result says why.", "Answer"),
                        "400": _json("Not JSON, or a batch that is no array.", "Error"),
                        "401": _json("No key, or one that is unknown or revoked.", "Error"),
                        "408": _json("The body did not come in time.", "Error"),
                        "413": _json("The body is too large, or holds too many events.", "Error"),
                        "415": _json("Another content type, character set or encoding.", "Error"),
                        "429": _later("Too much is in flight: repeat after Retry-After."),
                        "503": _later("Kafka or the database is away: repeat all after Retry-After; nothing is lost."),
                    },
                }
            }
        },
        "components": {
            "securitySchemes": {"emitterKey": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "UsageEvent": {name: value for name, value in json_schema().items() if name not in ("$schema", "$id")},
                "CloudEvent": {
                    "type": "object",
                    "required": ["specversion", "id", "source", "type"],
                    "properties": {
                        "specversion": {"const": "1.0"},
                        "id": {"type": "string", "minLength": 1, "maxLength": 256},
                        "source": {"type": "string", "minLength": 1, "maxLength": 1024},
                        "type": {"type": "string", "minLength": 1, "maxLength": 256},
                        "datacontenttype": {"type": "string"},
                        "data": event,
                        "data_base64": {"type": "string", "contentEncoding": "base64"},
                    },
                },
                "Answer": _object(
                    accepted={"type": "integer"},
                    refused={"type": "integer"},
                    results={"type": "array", "items": {"anyOf": [
                        _object(status={"const": "accepted"}, index={"type": "integer"},
                                event_id={"type": "string", "format": "uuid"}),
                        _object(status={"const": "refused"}, index={"type": "integer"}, reason={"enum": reasons},
                                field={"type": "string"}, detail={"type": "string"}),
                    ]}},
                ),
                "Error": _object(error=_object(code={"type": "string"}, message={"type": "string"})),
            },
        },
    }  # fmt: skip


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": MAX_EVENTS}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _json(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _later(description: str) -> dict[str, Any]:
    seconds = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return _json(description, "Error") | {"headers": seconds}
