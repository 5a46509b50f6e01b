"""What the calls answer, for programs: the types that the OpenAPI document's responses are made from. Pure.

Admissions, refusals and listings are put together where they are fast (`answers.py`) or close to what they show
(`standing_of.py`); that they are as it is said here, schemathesis checks.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from streams.quotas.answers import Basis
from streams.quotas.decisions import Because
from streams.quotas.definitions import OnUnavailable
from streams.quotas.refusals import WallDetail
from streams.quotas.standings import StandingView

Units = int | str
"""Whole numbers; of spend and GPU time decimals in text."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct, frozen=True):
    """A call that was not served."""

    error: ErrorDetail


class Denied(Error, frozen=True):
    """A refusal (429): which quotas, and where all of the tenant's stand."""

    decision: Literal["deny"]
    because: Because
    on_unavailable: OnUnavailable
    limited_by: list[str]
    quotas: list[StandingView]


class Granted(msgspec.Struct, frozen=True):
    """How much a slice got; zeros where a limit is near."""

    requests: int
    input_tokens: int
    output_tokens: int
    concurrency: int


class LeaseGranted(msgspec.Struct, frozen=True):
    """A slice of a tenant's quotas."""

    lease_id: str
    granted: Granted
    ttl_ms: int
    epoch: int
    max_tokens: int
    """What a request that says none may have."""
    priority: int
    on_unavailable: OnUnavailable
    longest_request_s: int


class QuotaNow(StandingView, frozen=True, gc=False):
    """A quota with all its numbers; rates have none but the first, concurrency has `used` and `leased`."""

    hard: bool = True
    version: int = 0
    used: Units | msgspec.UnsetType = msgspec.UNSET
    confirmed: Units | msgspec.UnsetType = msgspec.UNSET
    unconfirmed: Units | msgspec.UnsetType = msgspec.UNSET
    reserved: Units | msgspec.UnsetType = msgspec.UNSET
    leased: Units | msgspec.UnsetType = msgspec.UNSET
    unreserved: Units | msgspec.UnsetType = msgspec.UNSET


class TenantQuotas(msgspec.Struct, frozen=True):
    """Every quota of a tenant."""

    tenant_id: str
    tier: str
    as_of: datetime
    quotas: list[QuotaNow]
    requests_in_flight: int


class DecisionView(msgspec.Struct, frozen=True):
    """A decision about a request: `refused`, with the numbers of then; `unasked`, by its caller; or `admitted`."""

    at: datetime
    attempt: int
    decision: Literal["refused", "unasked", "admitted"]
    walls: list[WallDetail] | msgspec.UnsetType = msgspec.UNSET
    quotas: list[StandingView] | msgspec.UnsetType = msgspec.UNSET
    mode: str | msgspec.UnsetType = msgspec.UNSET
    admitted: bool | msgspec.UnsetType = msgspec.UNSET
    basis: Basis | msgspec.UnsetType = msgspec.UNSET
    state: str | msgspec.UnsetType = msgspec.UNSET
    used: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    max_tokens: int | msgspec.UnsetType | None = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    adapter: str | msgspec.UnsetType = msgspec.UNSET
    input_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n: int | msgspec.UnsetType = msgspec.UNSET
    prompts: int | msgspec.UnsetType = msgspec.UNSET
    tier: str | msgspec.UnsetType = msgspec.UNSET
    limited_by: list[str] | msgspec.UnsetType = msgspec.UNSET
    priority: int | msgspec.UnsetType = msgspec.UNSET
    expires_at: datetime | msgspec.UnsetType = msgspec.UNSET


class Decisions(msgspec.Struct, frozen=True):
    """What was decided about a request."""

    tenant_id: str
    request_id: str
    decisions: list[DecisionView]


class Healthy(msgspec.Struct, frozen=True):
    """The process lives."""

    healthy: bool


class Ready(msgspec.Struct, frozen=True):
    """Whether it can answer, and by what."""

    ready: bool
    journal: bool
    database: bool
    keys: bool
    learning: bool


Document = dict[str, Any]
"""OpenAPI's own."""
