"""What an answer says of its own tokens, read as it passes: for engines that are watched from outside alone.

A stream states its usage in its last piece, if it was asked to; some engines in each. What an answer that was cut off
did not state is a lower bound: each piece of text is a token at least. Pieces are no count where usage is stated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from serving_adapter.metering.counts import OnGap, Sequence, no_gap

MOST_HELD_BYTES: Final = 64 * 1024 * 1024
"""A line or an answer that is longer is passed on, and not read."""
SEQUENCE: Final = "answer"
"""The one sequence of an attempt that is seen from outside."""


class Hidden(NamedTuple):
    """What a tenant did not ask for, and does not get: the last piece with the usage, usage in the others."""

    final: bool = False
    running: bool = False


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    """Under OpenAI's two sets of names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    text: Any = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Response(msgspec.Struct, frozen=True):
    status: str | None = None
    usage: _Usage | None = None


class _Answer(msgspec.Struct, frozen=True):
    """A whole answer, or a piece of a stream, of any of the routes."""

    usage: _Usage | None = None
    choices: list[_Choice] = []
    response: _Response | None = None
    type: Any = None
    status: Any = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Answer).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode


class StatedUsage:
    """One attempt's usage, as far as its answer has told it."""

    def __init__(self, clock: Callable[[], float], on_gap: OnGap = no_gap, n: int = 1) -> None:
        """`clock` times the pieces of a stream; `on_gap` hears how far apart those of a choice came.

        `n`: choices of each prompt; they are numbered prompt by prompt.
        """
        self.final = False
        """The answer has stated it as a whole."""
        self.running = False
        """Pieces have stated it so far."""
        self.reasons: set[str] = set()
        self._input = self._output = self._cached = 0
        self._input_by_prompt: dict[int, int] = {}
        self.texts: dict[int, list[str]] | None = None
        """The answer's text by choice, in pieces, where somebody wants it; None again where text is not all of it."""
        self._by_choice: dict[int, int] = {}
        self._pieces = 0
        self._last: dict[int, tuple[float, int]] = {}
        """When each choice's last piece came, and how many tokens it had then, if that is stated."""
        self._clock = clock
        self._on_gap = on_gap
        self._n = n
        self._first_at = 0.0

    @property
    def stated(self) -> bool:
        """Whether the counts are the engine's own words; else they are what was seen to come."""
        return self.final or self.running

    def look(self) -> Sequence:
        """The counts as they stand."""
        output = self._output if self.final else sum(self._by_choice.values()) if self.running else self._pieces
        read = self._input if self.final else sum(self._input_by_prompt.values())
        return Sequence(SEQUENCE, 0, read, output, min(self._cached, read), self.stated, self._first_at)

    def whole(self, body: bytes) -> None:
        """An answer that is not streamed."""
        answer = _read(body)
        if answer is not None:
            self._take(answer, final=True)

    def piece(self, data: bytes, hidden: Hidden) -> bytes | None:
        """A piece of a stream: what of it the tenant gets. None: nothing of it."""
        answer = _read(data)
        if answer is None:
            return data
        for choice in self._take(answer, final=not answer.choices):
            self._time(choice)
        if answer.usage is None or not any(hidden):
            return data
        if not answer.choices:
            return None if hidden.final else data
        if not hidden.running:
            return data
        return _encode({name: value for name, value in _fields(data).items() if name != "usage"})

    def _take(self, answer: _Answer, *, final: bool) -> list[int]:
        """Count it; the choices that it goes on with."""
        written = []
        for choice in answer.choices:
            if choice.finish_reason is not None:
                self.reasons.add(choice.finish_reason)
            delta = choice.delta
            told = (delta.content, delta.reasoning, delta.reasoning_content, delta.tool_calls) if delta else ()
            if any((choice.text, *told)):
                written.append(choice.index)
            if self.texts is not None:
                self._keep(choice)
        if isinstance(answer.type, str) and answer.type.endswith(".delta"):
            written.append(0)
        self._pieces += len(written)
        if answer.error:
            self.reasons.add("error")
        usage = answer.usage
        if answer.response is not None:
            usage = answer.response.usage
            self._ended(answer.response.status)
        else:
            self._ended(answer.status)
        if usage is not None:
            self._count(answer, usage, final=final)
        return written

    def _time(self, choice: int) -> None:
        """A piece of this choice has come."""
        now, tokens = self._clock(), self._by_choice.get(choice, 0)
        self._first_at = self._first_at or now
        before = self._last.get(choice)
        self._last[choice] = (now, tokens)
        if before is not None:
            number = max(tokens - before[1], 1)
            self._on_gap((now - before[0]) / number, number)

    def _keep(self, choice: _Choice) -> None:
        """The text of a piece, or of a whole answer."""
        assert self.texts is not None
        said = choice.delta or choice.message or _Delta()
        if said.tool_calls or said.refusal:
            self.texts = None  # a model's own tokens around a call are in no text
            return
        found = [choice.text, said.reasoning or said.reasoning_content, said.content]
        self.texts.setdefault(choice.index, []).extend(text for text in found if isinstance(text, str))

    def _ended(self, status: Any) -> None:
        """The word of a `response`."""
        if status in ("completed", "incomplete"):
            self.reasons.add(status)
        elif status == "failed":
            self.reasons.add("error")

    def _count(self, answer: _Answer, usage: _Usage, *, final: bool) -> None:
        """A piece of a stream states what its own prompt and its own choice come to; the last one states the sums."""
        read = max(usage.prompt_tokens or usage.input_tokens or 0, 0)
        output = max(usage.completion_tokens or usage.output_tokens or 0, 0)
        details = usage.prompt_tokens_details or usage.input_tokens_details
        if details is not None:
            self._cached = max(details.cached_tokens or 0, 0)
        if final:
            self.final, self._input, self._output = True, read, output
        else:
            self.running = True
            for choice in answer.choices:
                self._by_choice[choice.index] = output
                self._input_by_prompt[choice.index // self._n] = read


class EventStream:
    """Server-sent events on their way to the tenant: whole lines are read, and passed on."""

    def __init__(self, usage: StatedUsage, hidden: Hidden) -> None:
        self._usage = usage
        self._hidden = hidden
        self._held = b""
        self._dropped = False

    def feed(self, data: bytes) -> bytes:
        """What of it goes on now."""
        *lines, self._held = (self._held + data).split(b"\n")
        passed = b"".join(map(self._line, lines))
        if len(self._held) > MOST_HELD_BYTES:
            passed, self._held = passed + self._held, b""
        return passed

    def rest(self) -> bytes:
        """What is left when the stream has ended."""
        rest, self._held = self._held, b""
        if rest:
            rest = self._line(rest).rstrip(b"\n")
        return rest

    def _line(self, line: bytes) -> bytes:
        dropped, self._dropped = self._dropped, False
        if not line.startswith(b"data:"):
            return b"" if dropped and not line.strip() else line + b"\n"
        data = line[5:].strip()
        if not data.startswith(b"{"):
            return line + b"\n"
        left = self._usage.piece(data, self._hidden)
        if left is None:
            self._dropped = True
            return b""
        return line + b"\n" if left is data else b"data: " + left + b"\n"


def _read(data: bytes) -> _Answer | None:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
