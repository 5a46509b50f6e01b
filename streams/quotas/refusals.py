"""What is kept of a refusal, so that it can be explained later with the numbers it was based on. Pure."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Final

import msgspec

from streams.quotas.calendar import moment
from streams.quotas.decisions import Refused, Standing
from streams.quotas.definitions import UNITS, shown


class WallDetail(msgspec.Struct, frozen=True):
    """A quota that a request did not fit under. Amounts as people write them."""

    quota_id: str
    version: int
    because: str
    limit: str
    needed: str
    room: str


class RefusalDetail(msgspec.Struct, frozen=True):
    """A refusal: what was asked, under which quotas it did not fit, and where every quota stood."""

    model: str
    adapter: str
    input_tokens: int
    max_tokens: int | None
    n: int
    prompts: int
    tier: str
    walls: list[WallDetail]
    quotas: list[StandingView]


class StandingView(msgspec.Struct, frozen=True, gc=False):
    """Where a quota stands, as it is answered. Spend and GPU time as decimals in text."""

    quota_id: str
    metric: str
    period: str
    limit: int | str
    remaining: int | str
    resets_at: datetime


def standing_view(standing: Standing) -> StandingView:
    """A standing for people and programs."""
    quota, remaining, resets_at = standing
    metric = quota.metric
    at = _period_end(resets_at) if quota.is_budget else moment(resets_at)
    if metric in UNITS:
        limit, left = shown(quota.limit, metric), shown(remaining, metric)
        return StandingView(quota.quota_id, metric, quota.period, limit, left, at)
    return StandingView(quota.quota_id, metric, quota.period, quota.limit, remaining, at)


_period_end: Final = lru_cache(maxsize=1024)(moment)


def refusal_detail(refused: Refused) -> bytes:
    """What is stored of a refusal."""
    ask = refused.ask
    walls = [
        WallDetail(
            wall.quota.quota_id, wall.quota.version, wall.because, shown(wall.quota.limit, wall.quota.metric),
            shown(wall.needed, wall.quota.metric), shown(wall.room, wall.quota.metric),
        )
        for wall in refused.walls
    ]  # fmt: skip
    detail = RefusalDetail(
        ask.model, ask.adapter, ask.input_tokens, ask.max_tokens, ask.n, ask.prompts, ask.tier, walls,
        [standing_view(each) for each in refused.standings],
    )  # fmt: skip
    return msgspec.json.encode(detail)
