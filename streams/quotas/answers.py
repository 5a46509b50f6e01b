"""What is asked and answered over HTTP, in the words of docs/spec/interfaces.md 5. Pure.

A refusal is a 429 as OpenAI's clients know it: the error body, `x-ratelimit-*`, `Retry-After`, and
`x-should-retry: false` where coming again is of no use; and the fields of the IETF's draft
(draft-ietf-httpapi-ratelimit-headers-10): `RateLimit` and `RateLimit-Policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from serving_adapter.quota.groups import LEASE_MARK
from streams.quotas.decisions import Ask, Attempt, Count, Nonce, Refused, RequestId, Scope, Standing, TenantId
from streams.quotas.definitions import RATE_US, UNITS, shown
from streams.quotas.entries import Reserved, Settled
from streams.quotas.standings import StandingView, second_text, standing_view

JITTER: Final = 0.2
"""Refused requests come back spread over so much more than they have to wait."""
LATE_US: Final = 60_000_000
"""But no later than this after it."""
NO_MORE: Final = ("spent", "never")
"""Refusals after which nobody should try again by itself."""
_QUOTED_UNITS: Final = {"requests": "requests", "concurrency": "concurrent-requests", "gpu_seconds": "gpu-seconds"}


Amount = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Settlement(msgspec.Struct, frozen=True):
    """The end of an attempt, as it is told."""

    attempt: Attempt = 1
    final: bool = True
    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_hit_tokens: Count = 0
    gpu_us: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    model: Scope = ""
    adapter: Scope = ""
    dispatched: bool = True
    lease_id: Scope = ""
    lease_no: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    """Which settlement out of its slice it is, from 1 on: one that is told again takes nothing more out of it."""
    nonce: Nonce = ""
    """Of what was not dispatched: the question that is withdrawn; the same attempt asked for since stays."""


class TenantSettlement(Settlement, frozen=True, kw_only=True):
    """One of many settlements."""

    tenant_id: TenantId
    request_id: RequestId


class Settlements(msgspec.Struct, frozen=True):
    """Many settlements in one request."""

    settlements: Annotated[list[TenantSettlement], msgspec.Meta(max_length=1000)]


class Want(msgspec.Struct, frozen=True):
    """How much a slice should hold."""

    requests: Amount = 0
    input_tokens: Amount = 0
    output_tokens: Amount = 0
    concurrency: Amount = 0


class LeaseAsk(msgspec.Struct, frozen=True):
    """A slice of a tenant's quotas, for a model. `name`, the holder's own: asked for again with it, as after an answer
    that was lost, it is the same slice, and no more."""

    tenant_id: TenantId
    want: Want
    ttl_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 2000
    model: Scope = ""
    adapter: Scope = ""
    holder: Scope = ""
    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9-]{0,64}\Z")] = ""


class ReturnedLease(msgspec.Struct, frozen=True):
    """What of a slice will not be used, and how many requests out of it still run; 0: it is over."""

    unused: Want = Want()
    in_flight: Annotated[int, msgspec.Meta(ge=0)] = 0


class Named(msgspec.Struct, frozen=True):
    """A request's name in a path."""

    tenant_id: TenantId
    request_id: RequestId


class Basis(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a decision without the service was based on, as its caller tells."""

    cause: Literal["no_answer", "breaker_open", "not_served", ""] = ""
    """No answer within the deadline; not asked, as there were none lately; or an answer that decides nothing."""
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] | None = None
    """Of such an answer."""
    deadline_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    decided_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """By the caller's clock: the service may be told long after."""
    model: Scope = ""
    adapter: Scope = ""
    tier: Scope = ""
    input_tokens: Count | None = None
    max_tokens: Count | None = None
    granted: Count | None = None
    """`max_tokens` as admitted."""
    safe_requests: Amount | None = None
    """Of `safe_capacity`: how many requests of a tenant there may be at once without the service,"""
    in_flight: Amount | None = None
    """how many there were,"""
    safe_tokens: Amount | None = None
    """and how many output tokens each may have."""


class UnaskedDecision(msgspec.Struct, frozen=True):
    """A decision that a caller made without the service."""

    tenant_id: TenantId
    request_id: RequestId
    mode: Scope
    admitted: bool
    attempt: Attempt = 1
    basis: Basis | None = None


class UnaskedDecisions(msgspec.Struct, frozen=True):
    """Many of them."""

    decisions: Annotated[list[UnaskedDecision], msgspec.Meta(max_length=1000)]


class Allowed(msgspec.Struct, frozen=True, gc=False):
    """An admission."""

    decision: str
    max_tokens: int
    shrunk: bool
    limited_by: tuple[str, ...]
    priority: int
    reserved: dict[str, int]
    expires_at: datetime
    epoch: int
    on_unavailable: str
    """What the caller does when the service does not answer: the strictest of the tier's and the quotas'."""
    longest_request_s: int
    """The request must end by then: what is reserved for it ends a while later, whether it runs or not."""
    quotas: list[StandingView]


_encode: Final = msgspec.json.Encoder().encode
read_ask: Final = msgspec.json.Decoder(Ask).decode
read_settlement: Final = msgspec.json.Decoder(Settlement).decode
read_settlements: Final = msgspec.json.Decoder(Settlements).decode
read_lease: Final = msgspec.json.Decoder(LeaseAsk).decode
read_returned: Final = msgspec.json.Decoder(ReturnedLease).decode
read_unasked: Final = msgspec.json.Decoder(UnaskedDecisions).decode


def settled_of(tenant_id: str, request_id: str, told: Settlement, at: int) -> Settled:
    """The journal's entry of a settlement. A slice of another tenant is none: nobody had reserved what it tells."""
    is_own = told.lease_id.partition(LEASE_MARK)[0] == tenant_id
    return Settled(
        tenant_id, request_id, told.attempt, at, told.final, told.dispatched, told.model, told.adapter,
        told.input_tokens, min(told.cache_hit_tokens, told.input_tokens), told.output_tokens, told.gpu_us,
        told.lease_id if is_own else "", told.lease_no if is_own else 0, told.nonce,
    )  # fmt: skip


def unasked_detail(told: UnaskedDecision) -> bytes:
    """What is stored of a decision without the service."""
    return _encode({"mode": told.mode, "admitted": told.admitted} | ({"basis": told.basis} if told.basis else {}))


_ALLOWED: Final = (
    b'{"decision":"allow","max_tokens":%d,"shrunk":%s,"limited_by":%s,"priority":%d,'
    b'"reserved":{"requests":1,"input_tokens":%d,"output_tokens":%d},"expires_at":"%s","epoch":%d,'
    b'"on_unavailable":"%s","longest_request_s":%d,"quotas":%s}'
)
"""`Allowed`, as its encoder would write it, in a third of the time."""


def allowed(
    entry: Reserved, quotas: bytes, epoch: int, on_unavailable: str, longest_request_s: int
) -> tuple[Sequence[tuple[str, str]], bytes]:  # fmt: skip
    """Headers and body (`Allowed`) of an admission. `quotas` = where they stand after it, as JSON."""
    shrunk = entry.max_tokens < entry.asked
    body = _ALLOWED % (
        entry.max_tokens, b"true" if shrunk else b"false", _encode(entry.limited_by) if entry.limited_by else b"[]",
        entry.priority, entry.input_tokens, entry.output_cap, second_text(entry.deadline // 1_000_000), epoch,
        on_unavailable.encode(), longest_request_s, quotas,
    )  # fmt: skip
    if shrunk or entry.asked < 0:
        return (("x-tollbook-max-tokens", str(entry.max_tokens)),), body
    return (), body


def refusal(refused: Refused, jitter: float, on_unavailable: str) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of a 429. `jitter` = a random number from 0 to 1."""
    walls = sorted(refused.walls, key=lambda wall: -1 if wall.wait_us is None else -wall.wait_us)
    hopeless = [wall for wall in refused.walls if wall.because in NO_MORE]
    worst = (hopeless or walls)[0]
    waits = [wall.wait_us for wall in refused.walls if wall.wait_us is not None]
    wait_us = max(waits, default=None)
    text = f"{worst.quota.quota_id}: {_because(worst.because)}; {shown(worst.needed, worst.quota.metric)} needed, "
    text += f"{shown(worst.room, worst.quota.metric)} of {shown(worst.quota.limit, worst.quota.metric)} available"
    kind = "insufficient_quota" if hopeless else ("requests" if worst.quota.metric == "requests" else "tokens")
    code = "insufficient_quota" if hopeless else "rate_limit_exceeded"
    headers = [*rate_limit_fields(refused.standings, refused.at), *openai_fields(refused.standings, refused.at)]
    headers.append(("x-should-retry", "false" if hopeless else "true"))
    if wait_us is not None:
        spread = wait_us + min(wait_us * JITTER, LATE_US) * jitter
        headers.append(("retry-after", str(max(-int(-spread // 1_000_000), 1))))
        if not hopeless:
            headers.append(("retry-after-ms", str(int(spread // 1000) + 1)))
    body = {
        "error": {"message": text, "type": kind, "param": None, "code": code},
        "decision": "deny",
        "because": worst.because,
        "on_unavailable": on_unavailable,
        "limited_by": [wall.quota.quota_id for wall in refused.walls],
        "quotas": [standing_view(each) for each in refused.standings],
    }
    return headers, _encode(body)


def rate_limit_fields(standings: Sequence[Standing], now: int) -> list[tuple[str, str]]:
    """`RateLimit-Policy` and `RateLimit`, one member for each quota."""
    policies, left = [], []
    for quota, remaining, resets_at, budget_us in standings:
        units = UNITS.get(quota.metric, 1)
        limit, rest = quota.limit // units, remaining // units  # the fields hold whole numbers
        window_us = RATE_US.get(quota.period, budget_us)
        window = "" if window_us is None else f"w={window_us // 1_000_000};"
        unit = _QUOTED_UNITS.get(quota.metric, "tokens" if quota.metric.endswith("tokens") else quota.metric)
        name = quota.quota_id.replace("\\", "\\\\").replace('"', '\\"')
        policies.append(f'"{name}";q={limit};{window}qu="{unit}"')
        left.append(f'"{name}";r={rest};t={max(resets_at - now, 0) // 1_000_000}')
    return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(left))] if policies else []


def openai_fields(standings: Sequence[Standing], now: int) -> list[tuple[str, str]]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the tightest quota of each kind."""
    fields: list[tuple[str, str]] = []
    for kind in ("requests", "tokens"):
        mine = [each for each in standings if each.quota.metric.endswith(kind)]
        if mine:
            quota, remaining, resets_at, _ = min(mine, key=lambda each: each.remaining)
            fields += [
                (f"x-ratelimit-limit-{kind}", str(quota.limit)),
                (f"x-ratelimit-remaining-{kind}", str(remaining)),
                (f"x-ratelimit-reset-{kind}", _duration(max(resets_at - now, 0))),
            ]
    return fields


def error(code: str, text: str) -> bytes:
    """An error's body, OpenAI-shaped."""
    return _encode({"error": {"message": text, "type": "invalid_request_error", "param": None, "code": code}})


def plain(value: object) -> bytes:
    """Any other answer's body."""
    return _encode(value)


def _because(because: str) -> str:
    return {
        "rate": "too much in a short time",
        "concurrency": "too many requests at once",
        "in_flight": "requests in flight may use what is left",
        "spent": "the period's quota is used up",
        "never": "larger than the limit itself",
        "flood": "many times as many requests as usual",
        "learning": "the service is finding out what was promised before",
    }[because]


def _duration(us: int) -> str:
    """As OpenAI writes them: `120ms`, `6.5s`, `1h2m3s`."""
    if us < 1_000_000:
        return f"{us // 1000}ms"
    seconds, rest = divmod(us // 1000, 1000)
    if seconds < 60:
        return f"{seconds}.{rest:03d}".rstrip("0").rstrip(".") + "s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{seconds}s"
