"""Envoy's rate limit protocol in the words of the quota service. Pure: values in, values out.

A descriptor's entries say what is asked: `tenant_id`, `request_id`, `model`, and, where known, `attempt`, `adapter`,
`input_tokens`, `max_tokens`, `tier`. All descriptors of a request are read as one. An entry `used` makes it the end of
a request instead: its value names a class of tokens (`input_tokens`, `output_tokens`, `cache_hit_tokens`), its
descriptor's `hits_addend` (else the request's) how many.

Envoy Gateway, and Envoy AI Gateway on it, names entries by the place of a rule in a policy (`rule-0-match-1`), asks
with hits of 0, and tells what was used with the same entries: `Names` says what they stand for
(docs/envoy-ai-gateway.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
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


class Names(NamedTuple):
    """What entries stand for that somebody else has named: (pattern of the key, field)."""

    fields: Sequence[tuple[str, str]] = ()
    used: Sequence[tuple[str, str]] = ()
    """Of a descriptor with such an entry the hits, if there are any, are used tokens of this class."""

    @staticmethod
    def read(told: Iterable[str]) -> Names:
        """`PATTERN=FIELD`, e.g. `rule-*-match-0=tenant_id`, or `PATTERN=used:CLASS`. Raises NotUnderstood."""
        fields, used = [], []
        for each in told:
            pattern, _, field = each.partition("=")
            kind, _, token_class = field.rpartition(":")
            if pattern and field in (*WORDS, *NUMBERS):
                fields.append((pattern, field))
            elif pattern and kind == "used" and token_class in USED:
                used.append((pattern, token_class))
            else:
                known = ", ".join((*WORDS, *NUMBERS, *(f"used:{each}" for each in USED)))
                raise NotUnderstood(f"{each!r}: KEY=FIELD, with a field of {known}")
        return Names(fields, used)

    def translated(self, descriptor: Descriptor) -> Iterator[tuple[str, str]]:
        """The descriptor's entries, by our names where they have one."""
        for key, value in descriptor.entries.items():
            yield key, value
            yield from ((field, value) for pattern, field in self.fields if fnmatchcase(key, pattern))
            if descriptor.hits:
                yield from (("used", each) for pattern, each in self.used if fnmatchcase(key, pattern))


def http_call(descriptors: Iterable[Descriptor], names: Names = Names()) -> HttpCall:  # noqa: B008
    """What is asked. Raises NotUnderstood."""
    told: dict[str, Any] = {}
    used: dict[str, int] = {}
    for descriptor in descriptors:
        hits = descriptor.hits
        for key, value in names.translated(descriptor):
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
