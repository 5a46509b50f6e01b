"""Ids that look like Stripe's: a prefix and letters and digits at random."""

from __future__ import annotations

import random
import string

_ALPHABET = string.ascii_letters + string.digits
_LENGTHS = {"cus": 14, "req": 14}
_DEFAULT_LENGTH = 24


class Ids:
    """``random_source`` may be seeded where a run must be repeatable; ids are unique, not secret."""

    def __init__(self, random_source: random.Random | None = None) -> None:
        self._random = random_source or random.Random()

    def new(self, prefix: str) -> str:
        length = _LENGTHS.get(prefix, _DEFAULT_LENGTH)
        return f"{prefix}_{''.join(self._random.choices(_ALPHABET, k=length))}"

    def invoice_prefix(self) -> str:
        """Eight characters, as Stripe gives a customer whose prefix is not chosen."""
        return "".join(self._random.choices(string.ascii_uppercase + string.digits, k=8))
