"""What is kept of a refusal, so that it can be explained later with the numbers it was based on. Pure."""

from __future__ import annotations

import msgspec

from streams.quotas.decisions import Refused
from streams.quotas.definitions import shown
from streams.quotas.standings import StandingView, standing_view


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
