"""One real hour of LLM traffic, laid across the end of a month, as usage events.

28,185 requests of the Azure 2023 traces (`data/LICENSE.md`). 18:45:00 on the trace's clock becomes
2026-11-01T00:00:00Z, so that October ends in the middle of the hour, and 500 tenants get the requests with the skew of
a real platform: ten make 80 % of the traffic. A request is completed 200 + 15 x output_tokens milliseconds after its
start. All choices derive from a hash of the request's number: the same on every machine.

Dirty traffic adds what the world adds: 1 event in 100 twice, 1 in 200 late (after all others), and 40 messages that
must end in quarantine: 10 torn, 10 with a negative count, 10 of an unknown tenant, 10 resent with another count. What
is to be billed stays the same.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any, Final

TRACES: Final = (
    ("azure_llm_2023_conversation.csv.gz", "llama-3.3-70b-instruct"),
    ("azure_llm_2023_code.csv.gz", "qwen3-coder-30b"),
)
CUT_ON_TRACE: Final = datetime(2023, 11, 16, 18, 45, tzinfo=UTC)
CUT: Final = datetime(2026, 11, 1, tzinfo=UTC)
TENANTS: Final = tuple(f"tenant_{number:03d}" for number in range(500))
PLAN: Final = "azure_hour_plan.yaml"

Event = dict[str, Any]


def plan_text() -> str:
    """The price plan that goes with this traffic, as YAML."""
    return (resources.files(__package__) / PLAN).read_text(encoding="utf-8")


def lines(*, dirty: bool = False) -> Iterator[str]:
    """The hour as JSON lines, in order of sending."""
    late = []
    for number, event in enumerate(events()):
        line = json.dumps(event)
        if not dirty:
            yield line
            continue
        if _chance("late", number) < 1 / 200:
            late.append(line)
        else:
            yield line
        if _chance("twice", number) < 1 / 100:
            yield line
        if number % 2800 == 1400:
            yield from _rubbish(number, event)
    yield from late


def events() -> Iterator[Event]:
    """The hour's requests as usage events, in order of their start."""
    for number, (at, model, input_tokens, output_tokens) in enumerate(_requests()):
        duration_ms = 200 + 15 * output_tokens
        completed = CUT + (at - CUT_ON_TRACE) + timedelta(milliseconds=duration_ms)
        cached = input_tokens // 2 // 16 * 16 if _chance("cache", number) < 0.3 else 0
        yield {
            "tenant_id": _tenant_of(number),
            "request_id": f"az-{number:06d}",
            "model": model,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_hit_tokens": cached,
            "region": "us-east" if _chance("region", number) < 0.7 else "eu-west",
            "duration_ms": duration_ms,
            # isoformat cuts the trace's microseconds off; it does not round
            "timestamp": completed.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


def _rubbish(number: int, event: Event) -> Iterator[str]:
    """Four messages for the quarantine: torn, negative, of a stranger, in conflict with the event."""
    yield f'{{"tenant_id": "tenant_000", "request_id": "torn-{number}", "model": "llama-3.3'
    yield json.dumps(event | {"request_id": f"negative-{number}", "output_tokens": -1})
    yield json.dumps(event | {"request_id": f"stranger-{number}", "tenant_id": "tenant_unknown"})
    yield json.dumps(event | {"output_tokens": event["output_tokens"] + 1000})


def _requests() -> list[tuple[datetime, str, int, int]]:
    """Both traces together: start, model, input tokens, output tokens, by start."""
    found = []
    for name, model in TRACES:
        packed = (resources.files(__package__) / "data" / name).read_bytes()
        for row in csv.DictReader(gzip.decompress(packed).decode().splitlines()):
            # the trace has seven digits after the second, Python six
            at = datetime.strptime(row["TIMESTAMP"][:26], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
            found.append((at, model, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return sorted(found)


def _tenant_of(number: int) -> str:
    """Ten tenants make 80 %, two hundred 19 %, the rest 1 %."""
    share = _chance("tenant", number)
    if share < 0.80:
        return TENANTS[int(share / 0.80 * 10)]
    if share < 0.99:
        return TENANTS[10 + int((share - 0.80) / 0.19 * 200)]
    return TENANTS[210 + int((share - 0.99) / 0.01 * 290)]


def _chance(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7], "big") / 2**56
