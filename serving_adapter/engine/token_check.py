"""What an answer states beside a count of our own: the text of the answer, by the model's own tokenizer file.

A check and nothing else: what is billed is what the engine states. Text does not always give back the tokens it was
made of, and an end's own token has no text, so that a single answer may be off by some; the sums tell.

Needs `tollbook-adapter[tokenizer]`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from serving_adapter.settings import SettingsError

MOST_CHARS: Final = 1 << 20
"""A longer answer is not counted again."""
MOST_WAITING: Final = 100
"""Answers that wait to be counted again; further ones are not."""
OFF_BY: Final = 0.1
"""An answer differs when its two counts are further apart than this part of the stated one, and `ENDS` a choice."""
ENDS: Final = 2


class TokenCheck:
    """One tokenizer. `count` may run in a thread."""

    def __init__(self, path: str) -> None:
        """Raises SettingsError."""
        try:
            from tokenizers import Tokenizer  # its own extra
        except ImportError:
            raise SettingsError("[proxy] tokenizer: pip install 'tollbook-adapter[tokenizer]'") from None
        if not Path(path).is_file():
            raise SettingsError(f"[proxy] tokenizer: {path} is no file")
        try:
            self._tokenizer: Any = Tokenizer.from_file(path)
        except Exception as error:  # whatever the library makes of a file of another kind
            raise SettingsError(f"[proxy] tokenizer: {path}: {error}") from None

    def count(self, texts: list[str]) -> int:
        """Tokens of an answer's choices."""
        return sum(len(found.ids) for found in self._tokenizer.encode_batch(texts, add_special_tokens=False))


class TokenChecks:
    """What the checks of a process come to."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        """`agrees`, `differs`, `not_checked`."""
        self.tokens: Counter[str] = Counter()
        """`stated`, `own`."""

    def add(self, stated: int, own: int, choices: int) -> bool:
        """One answer more; whether the two counts agree."""
        agrees = abs(stated - own) <= stated * OFF_BY + choices * ENDS
        self.answers["agrees" if agrees else "differs"] += 1
        self.tokens["stated"] += stated
        self.tokens["own"] += own
        return agrees

    def page(self) -> str:
        """Prometheus' text; empty before the first answer."""
        if not self.answers:
            return ""
        lines = ["# TYPE tollbook_token_check_answers_total counter"]
        lines += [f'tollbook_token_check_answers_total{{result="{name}"}} {n}' for name, n in self.answers.items()]
        lines += ["# TYPE tollbook_token_check_tokens_total counter"]
        lines += [f'tollbook_token_check_tokens_total{{counted="{name}"}} {n}' for name, n in self.tokens.items()]
        return "\n".join(lines) + "\n"
