"""Envoy's rate limit protocol in the words of the quota service. Pure: values in, values out.

A descriptor's entries say what is asked: `tenant_id`, `request_id`, `model`, and, where known, `attempt`, `adapter`,
`input_tokens`, `max_tokens`, `tier`. All descriptors of a request are read as one. An entry `used` makes it the end of
a request instead: its value names a class of tokens (`input_tokens`, `output_tokens`, `cache_hit_tokens`), its
descriptor's `hits_addend` (else the request's) how many, as Envoy AI Gateway tells them when a stream is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

NUMBERS: Final = ("attempt", "input_tokens", "max_tokens", "n", "prompts")
WORDS: Final = ("tenant_id", "request_id", "model", "adapter", "tier")
USED: Final = ("input_tokens", "output_tokens", "cache_hit_tokens")


class Descriptor(NamedTuple):
    """One descriptor: its entries, and how many hits it stands for."""

    entries: Mapping[str, str]
    hits: int


class HttpCall(NamedTuple):
    """The call over HTTP that asks the same."""

    target: str
    body: bytes


class NotUnderstood(ValueError):
    """Descriptors that say too little, or no numbers where numbers belong."""


def http_call(descriptors: Iterable[Descriptor]) -> HttpCall:
    """What is asked. Raises NotUnderstood."""
    told: dict[str, Any] = {}
    used: dict[str, int] = {}
    for entries, hits in descriptors:
        for key, value in entries.items():
            if key in WORDS:
                told[key] = value
            elif key in NUMBERS:
                told[key] = _number(key, value)
            elif key == "used":
                if value not in USED:
                    raise NotUnderstood(f"used: {value!r} is none of {', '.join(USED)}")
                used[value] = hits
    for key in ("tenant_id", "request_id"):
        if not told.get(key):
            raise NotUnderstood(f"no descriptor has an entry {key}")
    if used:
        path = f"/v1/reservations/{quote(told['tenant_id'], safe='')}/{quote(told['request_id'], safe='')}/settle"
        settled = {"attempt": told.get("attempt", 1), "model": told.get("model", ""), **used}
        return HttpCall(path, msgspec.json.encode(settled))
    return HttpCall("/v1/reservations", msgspec.json.encode({"input_tokens": 0, **told}))


def _number(key: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 10:
        raise NotUnderstood(f"{key}: {value!r} is no whole number")
    return int(value)
