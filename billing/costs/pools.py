"""What a pool of GPUs costs an hour, dated; read from a file. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Final

from billing.errors import PlanProblem, PoolInvalid, UnknownCurrency
from billing.money import ZERO, currency
from billing.plans.plan_reader import Reader, compose

GPUS_MAX: Final = 1_000_000
NAME_MAX: Final = 256
"""Characters, as events have them."""
_CURRENCY: Final = re.compile("[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class PoolVersion:
    """From `since`, a whole hour, a pool has so many GPUs, each of which costs `gpu_hour` an hour, used or not.

    `overhead_hour`: what the pool costs an hour beside them. Both in major units of the pool's currency.
    """

    since: datetime
    gpus: int
    gpu_hour: Decimal
    overhead_hour: Decimal = ZERO

    def problems(self) -> list[tuple[str, str]]:
        """Field and reason of everything that is wrong with it."""
        found = []
        if self.since.minute or self.since.second:
            found.append(("from", "must be a whole hour"))
        if self.gpus > GPUS_MAX:
            found.append(("gpus", f"may be {GPUS_MAX:,} at most"))
        return found


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool by the name that its events carry (`pool`), and its versions in order of time."""

    name: str
    currency: str
    versions: tuple[PoolVersion, ...]


def read_pool(text: str, *, file: str) -> Pool:
    """The pool of a YAML file. Raises PoolInvalid with every problem, by line and field."""
    problems: list[PlanProblem] = []
    root = compose(text, problems)
    fields = None if root is None else root.fields(("pool", "currency", "versions"))
    pool = None
    if root is not None and fields is not None:
        name = root.field(fields, "pool", _name)
        code = root.field(fields, "currency", _currency)
        versions = root.field(fields, "versions", lambda reader: reader.value(tuple[PoolVersion, ...]))
        if versions and any(a.since >= b.since for a, b in pairwise(versions)):
            fields["versions"].problem("must be in order of `from`, each once")
        if not problems:
            pool = Pool(name, code, versions)
    if pool is None:
        raise PoolInvalid("\n".join(problem.told(file) for problem in problems))
    return pool


def _name(reader: Reader) -> str | None:
    text = reader.text()
    if text is not None and (not text.strip() or len(text) > NAME_MAX):
        reader.problem(f"a pool's name has 1 to {NAME_MAX} characters")
    return text


def _currency(reader: Reader) -> str | None:
    code = reader.matching(_CURRENCY, "three capital letters, such as USD")
    if code is not None:
        try:
            currency(code, date.max)
        except UnknownCurrency as error:
            reader.problem(str(error))
    return code
