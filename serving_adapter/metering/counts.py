"""Tokens of an attempt from the sequences that the engine ran for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

OnGap = Callable[[float, int], None]
"""Hears seconds between a token and the next one of its sequence, and of how many tokens that is true."""


def no_gap(seconds: float, tokens: int) -> None:
    """Nobody wants to know."""


class Sequence(NamedTuple):
    """One sequence as the engine counts it. `n = 3` makes three of one prompt.

    `counted`: its first token has come, which is when vLLM adds its prompt to its counters; before that a prompt's
    length proves no work.
    """

    prompt: str
    child: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    counted: bool
    first_at: float = 0.0
    """When its first token came (monotonic, seconds); 0 where nobody saw it."""


class TokenCounts(NamedTuple):
    """What is billed, and what the engine's own counters grew by."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_hit_tokens: int = 0
    engine_input_tokens: int = 0
    engine_cached_tokens: int = 0

    @property
    def of_engine(self) -> dict[str, int]:
        """The `engine_*` fields where they differ from what is billed."""
        differs = {}
        if self.engine_input_tokens != self.input_tokens:
            differs["engine_input_tokens"] = self.engine_input_tokens
        if self.engine_cached_tokens != self.cache_hit_tokens:
            differs["engine_cached_tokens"] = self.engine_cached_tokens
        return differs


def first_token_after(sequences: Iterable[Sequence], began: float) -> float | None:
    """Seconds from a request's coming to the first token of any sequence; None where nobody saw one come."""
    first = min((each.first_at for each in sequences if each.output_tokens and each.first_at), default=0.0)
    return first - began if first >= began else None


def count(sequences: Iterable[Sequence]) -> TokenCounts:
    """A prompt is billed once, with what of it was cached for its first sequence; every output token is billed.

    Its further sequences find the first one's blocks in the cache, which is nobody's discount.
    """
    billed: dict[str, Sequence] = {}
    output = engine_input = engine_cached = 0
    for sequence in sequences:
        output += sequence.output_tokens
        if not sequence.counted:
            continue
        engine_input += sequence.prompt_tokens
        engine_cached += sequence.cached_tokens
        first = billed.get(sequence.prompt)
        if first is None or sequence.child < first.child:
            billed[sequence.prompt] = sequence
    return TokenCounts(
        sum(sequence.prompt_tokens for sequence in billed.values()),
        output,
        sum(sequence.cached_tokens for sequence in billed.values()),
        engine_input,
        engine_cached,
    )
