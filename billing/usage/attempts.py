"""Which attempt of a request bills (docs/spec/money.md 2, 13.11): the delivered one. Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import astuple, fields
from typing import Any, Final

from billing.rating import NEVER_BILLED_STATUS
from streams.rules.windows import AttemptUsage, UsageQuantity

_SUMS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
_FIRST_SUM: Final = [field.name for field in fields(UsageQuantity)].index(_SUMS[0])


def left_out(attempts: Iterable[AttemptUsage], bill_statuses: Collection[str]) -> list[AttemptUsage]:
    """Usage of attempts that would bill by their status, but are not the one that was delivered.

    That is the last attempt that ended ok, else the last aborted one, else the last with another billable status.
    Faults are applied afterwards: where it was the platform's the request is free, and no earlier attempt bills.
    """
    per_request: dict[tuple[str, str], list[AttemptUsage]] = defaultdict(list)
    for usage in attempts:
        status = usage.quantity.status
        if status in bill_statuses and status != NEVER_BILLED_STATUS:
            per_request[usage.quantity.tenant_id, usage.request_id].append(usage)
    found: list[AttemptUsage] = []
    for usages in per_request.values():
        delivered = max(usages, key=_rank).attempt
        found += [usage for usage in usages if usage.attempt != delivered]
    return found


def less(quantities: Iterable[UsageQuantity], without: Iterable[AttemptUsage]) -> list[UsageQuantity]:
    """Sums of usage without what was left out of it."""
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(_SUMS))
    for sign, quantity in (*((1, q) for q in quantities), *((-1, usage.quantity) for usage in without)):
        values: tuple[Any, ...] = astuple(quantity)
        counts = sums[values[:_FIRST_SUM]]
        counts[:] = [old + sign * count for old, count in zip(counts, values[_FIRST_SUM:], strict=True)]
    found: list[Any] = [(*key, *counts) for key, counts in sums.items() if any(counts)]
    return [UsageQuantity(*values) for values in found]


def _rank(usage: AttemptUsage) -> tuple[bool, bool, int]:
    status = usage.quantity.status
    return status == "ok", status == "aborted", usage.attempt
