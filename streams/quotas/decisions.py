"""What is asked before a request, and what is answered. Pure values; times in microseconds since 1970."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import msgspec

from streams.quotas.amounts import Counts
from streams.quotas.definitions import Quota

Because = Literal["rate", "concurrency", "in_flight", "spent", "never", "learning", "flood"]
"""Why a request is refused. `rate`: too many lately; `concurrency`: too many at once; `in_flight`: the budget would do,
but other requests may still use it; `spent`: the period's budget is used; `never`: the limit is smaller than any such
request; `learning`: what was promised before is not known yet; `flood`: many times as many as usual."""


TenantId = Annotated[str, msgspec.Meta(pattern=r"\A_?[A-Za-z0-9][A-Za-z0-9._:-]{0,126}\Z", examples=["tenant_123"])]
RequestId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z", examples=["req-1"])]
Model = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"\A[ -~]*\Z")]
Scope = Annotated[str, msgspec.Meta(max_length=255, pattern=r"\A[ -~]*\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Nonce = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._:-]{0,64}\Z")]
Copies = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request that wants to be admitted. `tier` as the caller knows it, where none is registered."""

    tenant_id: TenantId
    request_id: RequestId
    model: Model
    input_tokens: Count
    attempt: Attempt = 1
    adapter: Scope = ""
    max_tokens: Count | None = None
    n: Copies = 1
    prompts: Copies = 1
    tier: Scope = ""
    nonce: Nonce = ""
    """A name of its own for each time that it is asked, so that a withdrawal takes back no later question."""

    @property
    def copies(self) -> int:
        """Answers, each of which may have `max_tokens`."""
        return self.n * self.prompts

    @property
    def asked(self) -> int:
        """`max_tokens`, or -1."""
        return -1 if self.max_tokens is None else self.max_tokens


class Standing(NamedTuple):
    """A quota and where it stands. `resets_at` = a budget's period's end, or when a rate's burst is whole again."""

    quota: Quota
    remaining: int
    resets_at: int
    window_us: int | None = None
    """The length of a budget's period; of others the definition says it, or there is none."""


class Wall(NamedTuple):
    """A quota that a request does not fit under: what it would need at least, and what there is."""

    quota: Quota
    because: Because
    needed: int
    room: int
    wait_us: int | None
    """In how long it may fit; None if nobody can say."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal, with the numbers it was based on."""

    ask: Ask
    at: int
    walls: tuple[Wall, ...]
    standings: tuple[Standing, ...]


class Limits(NamedTuple):
    """What the service sets for every tenant."""

    default_max_tokens: int = 1024
    """Filled in where a request does not say how long its answer may be; never the model's maximum."""
    longest_request_us: int = 900_000_000
    """No request runs longer: the adapter's own bound, which it lowers to this one where this is lower."""
    lag_us: int = 60_000_000
    """How late usage is metered, at most: what is not confirmed by then is looked into."""
    keep_ended_us: int = 30_000_000
    """How long ended requests are remembered, so that what comes twice counts once; later the database is asked."""

    keep_expired_us: int = 86_400_000_000
    """How long requests are remembered of which an attempt ended without a word: its usage, if it comes, was reserved.
    Once it came, no longer than others."""

    escrow_part: int = 64
    """Of what is left of a quota one part of so many, at most, may be answered before it is written: if the process is
    killed, so much is held for as long as a request may run."""

    @property
    def held_us(self) -> int:
        """How long a reservation is held for a request of which nothing is heard: its usage would be here by then."""
        return self.longest_request_us + self.lag_us


class Tended(NamedTuple):
    """What became of a request that was looked at."""

    again_at: int | None
    """When to look again; None if there is nothing left of it."""
    expired: int = 0
    """Attempts of which nobody ever told what they used."""
    never_confirmed: int = 0
    """Attempts that are forgotten without their usage event, as the periods that they counted in are over."""


class Progress(NamedTuple):
    """What became of a settle or an event, for those who count."""

    known: bool
    """Whether there was a reservation for it."""
    over: int = 0
    """Output and input tokens beyond what was reserved."""
    unreserved: Sequence[tuple[str, int, int]] = ()
    """Confirmed, and reserved by nobody: quota, its period's start, units."""
    doubtful: bool = False
    """Whether its event may have been counted long ago: nobody knows the attempt."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the feed of confirmed usage. `first`: it counts a usage event; corrections and what a better source
    takes back do not."""

    tenant_id: str
    request_id: str
    attempt: int
    completed_at: int
    model: str
    adapter: str
    bills: bool
    first: bool
    counts: Counts
