"""Answers that are the same from every server of this folder: a JSON document, and metrics for Prometheus."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import Response

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
to_json: Final = msgspec.json.Encoder().encode


def json_answer(status: int, value: dict[str, Any]) -> Response:
    """A document."""
    return Response(to_json(value), status, media_type="application/json")


def metrics_answer(text: bytes) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(text, headers={"content-type": METRICS_TYPE})
