"""What a quota is, and which definitions are refused (docs/quotas.md). Pure: documents in, values out.

Amounts are whole numbers of a metric's smallest unit: requests and tokens as they are, GPU time in microseconds,
spend in 10⁻¹⁸ of the major unit (a price has up to 18 decimals), so that sums and comparisons are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, cast, get_args

from streams.quotas.errors import InvalidQuota

Period = Literal["second", "minute", "hour", "day", "month", "billing_period", "none"]
Metric = Literal[
    "requests", "input_tokens", "cached_input_tokens", "output_tokens", "total_tokens", "gpu_seconds", "spend",
    "concurrency",
]  # fmt: skip
OnUnavailable = Literal["allow", "safe_capacity", "deny"]
OnShrink = Literal["allow", "deny"]

RATE_US: Final[Mapping[str, int]] = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}
"""How long the periods of rates are, in microseconds."""
RATED: Final = ("requests", "input_tokens", "cached_input_tokens", "output_tokens", "total_tokens")
"""What can be limited by rate."""
UNITS: Final[Mapping[str, int]] = {"gpu_seconds": 10**6, "spend": 10**18}
"""Smallest units in one unit of a definition's limit; 1 where not named."""
MOST: Final = Decimal(10) ** 15
"""The largest limit: far above any use, and a slip of the keyboard below it is told."""
DEFAULT_MIN_TOKENS: Final = 16
"""A shorter answer than this is of no use to anybody: refused rather than shrunk to it."""
SOFT_THRESHOLDS: Final = (80, 90, 100)
"""Of a soft budget that names none: without, it would do nothing."""
THRESHOLDS_AT_MOST: Final = 10
LARGEST_THRESHOLD: Final = 1000
_MODEL: Final = re.compile(r"[!-~][ -~]{0,254}")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,126}")
STRICTNESS: Final[Mapping[str, int]] = {"allow": 0, "safe_capacity": 1, "deny": 2}


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of one tenant, or the default of a tier, from a time on.

    `limit` and `overshoot_allowance` in smallest units. `model` and `adapter` are '' for any. `ends` marks the version
    that takes the quota away.
    """

    tenant_id: str
    tier: str
    model: str
    adapter: str
    period: Period
    metric: Metric
    limit: int
    hard: bool
    thresholds: tuple[int, ...]
    on_shrink: OnShrink
    min_tokens: int
    overshoot_allowance: int
    on_unavailable: OnUnavailable | None
    starts_at: datetime
    ends: bool = False
    version: int = 0
    """Grows by one with each definition that is stored."""
    quota_id: str = field(init=False, compare=False)
    """What it is called, whatever its version: e.g. `month-output_tokens`, `minute-requests:model=m-1`."""

    def __post_init__(self) -> None:
        scope = [f"{name}={value}" for name, value in (("model", self.model), ("adapter", self.adapter)) if value]
        object.__setattr__(self, "quota_id", ":".join((f"{self.period}-{self.metric}", *scope)))

    @property
    def is_rate(self) -> bool:
        """Whether it limits a rate; a budget or concurrency otherwise."""
        return self.period in RATE_US

    @property
    def is_budget(self) -> bool:
        """Whether it counts usage by completion over a day or longer."""
        return not self.is_rate and self.metric != "concurrency"

    def covers(self, model: str, adapter: str) -> bool:
        """Whether usage of this model and adapter counts."""
        return self.model in ("", model) and self.adapter in ("", adapter)


def quota_from(document: Mapping[str, Any], *, now: datetime) -> Quota:
    """A definition as it is written (INTERFACES 5), judged. Raises InvalidQuota, which names the field.

    `from` defaults to `now`, and is not earlier: what was decided under the old definition stays as it was.
    """
    unknown = sorted(set(document) - _FIELDS)
    if unknown:
        raise InvalidQuota(unknown[0], f"not a field of a quota; there are {', '.join(sorted(_FIELDS))}")
    tenant_id, tier = _name(document, "tenant_id"), _name(document, "tier")
    if bool(tenant_id) == bool(tier):
        raise InvalidQuota("tenant_id", "give either tenant_id or tier")
    period = cast(Period, _choice(document, "period", get_args(Period)))
    metric = cast(Metric, _choice(document, "metric", get_args(Metric)))
    _judge_kind(period, metric)
    hard = _flag(document, "hard")
    if not hard and (period in RATE_US or metric == "concurrency"):
        raise InvalidQuota("hard", "a soft one acts at its thresholds, and only budgets (day and longer) have some")
    thresholds = _thresholds(document, hard, is_budget=period not in RATE_US and metric != "concurrency")
    limit = _amount(document, "limit", metric)
    return Quota(
        tenant_id=tenant_id,
        tier=tier,
        model=_scope(document, "model"),
        adapter=_scope(document, "adapter"),
        period=period,
        metric=metric,
        limit=limit,
        hard=hard,
        thresholds=thresholds,
        on_shrink=cast(OnShrink, _choice(document, "on_shrink", get_args(OnShrink), "allow")),
        min_tokens=_whole(document, "min_tokens", DEFAULT_MIN_TOKENS),
        overshoot_allowance=_allowance(document, metric, period, hard),
        on_unavailable=cast(
            OnUnavailable | None,
            None if document.get("on_unavailable") is None
            else _choice(document, "on_unavailable", get_args(OnUnavailable)),
        ),
        starts_at=_starts_at(document, now),
    )  # fmt: skip


_FIELDS: Final = frozenset(
    ("tenant_id", "tier", "model", "adapter", "period", "metric", "limit", "hard", "thresholds", "on_shrink",
     "min_tokens", "overshoot_allowance", "on_unavailable", "from")
)  # fmt: skip


def in_force(quotas: Iterable[Quota], tenant_id: str, tier: str, at: datetime) -> list[Quota]:
    """The quotas that hold for a tenant of a tier at a time, by id.

    Of a quota's versions the latest that has begun holds, of two from the same time the one stored later. A tenant's
    own takes the place of its tier's default of the same id, and while it is there also when it was taken away.
    """
    held: dict[str, Quota] = {}
    for quota in sorted(quotas, key=lambda q: (bool(q.tenant_id), q.starts_at, q.version)):
        mine = quota.tenant_id == tenant_id if quota.tenant_id else bool(tier) and quota.tier == tier
        if mine and quota.starts_at <= at:
            held[quota.quota_id] = quota
    return [held[quota_id] for quota_id in sorted(held) if not held[quota_id].ends]


def strictest(modes: Iterable[OnUnavailable]) -> OnUnavailable | None:
    """Of several ways to go on without the service the most careful one."""
    return max(modes, key=lambda mode: STRICTNESS[mode], default=None)


def shown(amount: int, metric: str) -> str:
    """An amount of smallest units as people write it: `1500`, `2.5`."""
    units = UNITS.get(metric, 1)
    whole, rest = divmod(abs(amount), units)
    fraction = f".{rest:0{len(str(units)) - 1}d}".rstrip("0") if rest else ""
    return f"{'-' if amount < 0 else ''}{whole}{fraction}"


def _judge_kind(period: str, metric: str) -> None:
    if metric == "concurrency":
        if period != "none":
            raise InvalidQuota("period", "concurrency has no period: give none")
    elif period == "none":
        raise InvalidQuota("period", f"{metric} needs a period; none is for concurrency")
    elif period in RATE_US and metric not in RATED:
        raise InvalidQuota("metric", f"{metric} cannot be limited by {period}: day, month or billing_period can")


def _thresholds(document: Mapping[str, Any], hard: bool, *, is_budget: bool) -> tuple[int, ...]:
    given = document.get("thresholds")
    if given is None:
        return () if hard or not is_budget else SOFT_THRESHOLDS
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise InvalidQuota("thresholds", "give a list of whole percents, e.g. [80, 90, 100]")
    if any(isinstance(each, bool) or not isinstance(each, int) or each < 1 for each in given):
        raise InvalidQuota("thresholds", "give whole percents of at least 1")
    if given and not is_budget:
        raise InvalidQuota("thresholds", "only budgets (day, month, billing_period) have thresholds")
    if len(given) > THRESHOLDS_AT_MOST or len(set(given)) != len(given):
        raise InvalidQuota("thresholds", f"at most {THRESHOLDS_AT_MOST}, each once")
    highest = max(given, default=0)
    if hard and highest > 100:
        raise InvalidQuota("thresholds", f"{highest} % of a hard limit is never reached: 100 at most")
    if highest > LARGEST_THRESHOLD:
        raise InvalidQuota("thresholds", f"{LARGEST_THRESHOLD} at most")
    return tuple(sorted(given))


def _allowance(document: Mapping[str, Any], metric: str, period: str, hard: bool) -> int:
    if document.get("overshoot_allowance") is None:
        return 0
    if not hard or period in RATE_US or metric in ("concurrency", "gpu_seconds"):
        raise InvalidQuota("overshoot_allowance", "only hard budgets that can be reserved have one")
    return _amount(document, "overshoot_allowance", metric)


def _amount(document: Mapping[str, Any], field: str, metric: str) -> int:
    given = document.get(field)
    if given is None:
        raise InvalidQuota(field, "is missing")
    if isinstance(given, bool | float) or not isinstance(given, int | str | Decimal):
        raise InvalidQuota(field, f"{given!r} is no exact number: give a whole number, or decimals as a string")
    try:
        amount = Decimal(given)
    except InvalidOperation:
        raise InvalidQuota(field, f"{given!r} is no number") from None
    if not amount.is_finite() or amount < 0:
        raise InvalidQuota(field, f"{given} is below 0 or not finite")
    if amount > MOST:
        raise InvalidQuota(field, f"{given} is more than {MOST:f}")
    units = amount * UNITS.get(metric, 1)
    if units != int(units):
        raise InvalidQuota(field, f"{given} is finer than {metric} is counted")
    if field == "limit" and metric == "concurrency" and units < 1:
        raise InvalidQuota(field, "concurrency of 0 lets nothing through: suspend the tenant instead")
    return int(units)


def _whole(document: Mapping[str, Any], field: str, default: int) -> int:
    given = document.get(field, default)
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given < 2**31:
        raise InvalidQuota(field, f"{given!r} is no whole number from 1 to 2147483647")
    return given


def _flag(document: Mapping[str, Any], field: str) -> bool:
    given = document.get(field, True)
    if not isinstance(given, bool):
        raise InvalidQuota(field, f"{given!r} is neither true nor false")
    return given


def _choice(document: Mapping[str, Any], field: str, among: Sequence[str], default: str | None = None) -> str:
    given = document.get(field, default)
    if given is None:
        raise InvalidQuota(field, f"is missing: one of {', '.join(among)}")
    if given not in among:
        raise InvalidQuota(field, f"{given!r} is none of {', '.join(among)}")
    return str(given)


def _name(document: Mapping[str, Any], field: str) -> str:
    given = document.get(field) or ""
    if given and (not isinstance(given, str) or not _ID.fullmatch(given)):
        raise InvalidQuota(field, f"{given!r}: letters, digits and . _ : -, at most 127")
    return str(given)


def _scope(document: Mapping[str, Any], field: str) -> str:
    given = document.get(field) or ""
    if given and (not isinstance(given, str) or not _MODEL.fullmatch(given)):
        raise InvalidQuota(field, f"{given!r}: at most 255 printable ASCII characters")
    return str(given)


def _starts_at(document: Mapping[str, Any], now: datetime) -> datetime:
    given = document.get("from")
    if given is None:
        return now
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            raise InvalidQuota("from", f"{given!r} is no time: RFC 3339 with an offset") from None
    if not isinstance(given, datetime) or given.tzinfo is None:
        raise InvalidQuota("from", f"{given!r} has no offset: RFC 3339, e.g. 2026-12-01T00:00:00Z")
    if given < now - timedelta(seconds=1):
        raise InvalidQuota("from", "lies in the past: definitions begin now or later")
    return max(given, now)
