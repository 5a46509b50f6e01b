"""The gates of a close: equalities, each with the list of what differs (docs/spec/money.md 11.3). Values only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from reconciliation.agreement import Check
from reconciliation.comparison import Difference, Value


class Gate(StrEnum):
    """R1 to R11; R5 before (a) and after (b) invoices are final."""

    R1 = "R1"
    R2 = "R2"
    R3 = "R3"
    R4 = "R4"
    R5A = "R5a"
    R5B = "R5b"
    R6 = "R6"
    R7 = "R7"
    R8 = "R8"
    R9 = "R9"
    R10 = "R10"
    R11 = "R11"


TITLES: Final[Mapping[Gate, str]] = {
    Gate.R1: "all that was sent is applied, a duplicate, or in quarantine",
    Gate.R2: "raw events below the cut = frozen usage",
    Gate.R3: "second rating of raw events = rated lines",
    Gate.R4: "ledger = rated lines, and it balances",
    Gate.R5A: "ledger = drafts",
    Gate.R5B: "ledger = finalized = Stripe",
    Gate.R6: "each balance transaction is booked once",
    Gate.R7: "credits that are left = what is owed for them",
    Gate.R8: "rounding, recomputed = account 5900",
    Gate.R9: "nothing waits; numbers have no gaps",
    Gate.R10: "the journal is what was sealed",
    Gate.R11: "what moved is explained",
}
BEFORE_APPROVAL: Final = (Gate.R2, Gate.R3, Gate.R4, Gate.R5A, Gate.R7, Gate.R8)
"""Asked of each account before it is RECONCILED. None of them can be waived."""
AFTER_SENDING: Final = (Gate.R5B,)
OF_BOOK: Final = (Gate.R1, Gate.R6, Gate.R9, Gate.R10, Gate.R11)
GAPS: Final = frozenset({"numbered events are here", "tenants are complete"})
"""What of R1 is a gap; the rest of it cannot be waived."""

GATE_OF: Final[Mapping[str, Gate]] = {
    "everything in Kafka is applied": Gate.R1,
    "every message has one outcome": Gate.R1,
    "what was counted is stored": Gate.R1,
    "numbered events are here": Gate.R1,
    "tenants are complete": Gate.R1,
    "events are in their minute": Gate.R2,
    "events are in their hour": Gate.R2,
    "usage is rated": Gate.R2,
    "raw events are frozen": Gate.R2,
    "frozen usage is as it was cut": Gate.R2,
    "rated again": Gate.R3,
    "rated lines are accrued": Gate.R4,
    "the books are explained": Gate.R4,
    "the books balance": Gate.R4,
    "fees in advance are earned": Gate.R4,
    "rated lines are invoiced": Gate.R5A,
    "issued invoices are booked": Gate.R5A,
    "invoices are as drawn up": Gate.R5A,
    "invoices add up": Gate.R5A,
    "drafts are in Stripe": Gate.R5A,
    "invoices are issued": Gate.R5B,
    "finalized invoices are in Stripe": Gate.R5B,
    "money in Stripe is booked once": Gate.R6,
    "credits are owed": Gate.R7,
    "credits are drawn as invoiced": Gate.R7,
    "rounding is booked": Gate.R8,
    "rounding is small": Gate.R8,
    "nothing waits": Gate.R9,
    "numbers have no gaps": Gate.R9,
    "the journal is as sealed": Gate.R10,
    "movement is explained": Gate.R11,
}
"""Which gate a comparison belongs to. Engine counters are witnesses of `reconcile`, and no gate."""


@dataclass(frozen=True, slots=True)
class Found:
    """A difference that a gate found: of which comparison and account, and who has waived it."""

    check: str
    key: str
    left: Value | None
    right: Value | None
    account: str | None = None
    waived_by: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON holds it; numbers as text."""
        return {
            "check": self.check, "key": self.key, "left": _written(self.left), "right": _written(self.right),
            "account": self.account, "waived_by": self.waived_by,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """A gate: how many values were compared, and all that differs."""

    gate: Gate
    compared: int
    found: tuple[Found, ...] = ()

    @property
    def open(self) -> tuple[Found, ...]:
        """What nobody has waived."""
        return tuple(each for each in self.found if each.waived_by is None)

    @property
    def is_green(self) -> bool:
        """Whether nothing differs but what was waived."""
        return not self.open

    def held(self, account: str) -> list[Found]:
        """What holds an account up: what is its own; or what is nobody's, unless it goes with what is others' own.

        A damaged line of one account also shows in sums over all of them: that holds up the book, not the others.
        """
        of_others = {each.check for each in self.open if each.account is not None}
        return [e for e in self.open if e.account == account or (e.account is None and e.check not in of_others)]


def results(
    checks: Iterable[Check], accounts: Mapping[str, str], waived: Mapping[tuple[str, str], str]
) -> dict[Gate, Result]:
    """The gates that comparisons make up.

    `accounts`: the billing account by each name that a key may have a part of (tenant, invoice, …); `waived`: by gate
    and key the person who has.
    """
    compared: dict[Gate, int] = {}
    found: dict[Gate, list[Found]] = {}
    for check in checks:
        gate = GATE_OF.get(check.name)
        if gate is None:
            continue
        compared[gate] = compared.get(gate, 0) + check.compared
        listed = found.setdefault(gate, [])
        for each in check.differences:
            waivable = is_waivable(gate, check.name)
            listed.append(
                Found(
                    check.name, each.key, each.left, each.right, _account_of(each, accounts),
                    waived.get((gate, each.key)) if waivable else None,
                )
            )  # fmt: skip
    return {gate: Result(gate, count, tuple(found[gate])) for gate, count in sorted(compared.items(), key=_order)}


def is_waivable(gate: Gate, check: str) -> bool:
    """Whether a person may let a difference stay: gaps of R1, what waits in R9, and R11, which is explained."""
    return gate in (Gate.R9, Gate.R11) or (gate is Gate.R1 and check in GAPS)


def _order(item: tuple[Gate, int]) -> int:
    return list(Gate).index(item[0])


def _account_of(found: Difference, accounts: Mapping[str, str]) -> str | None:
    parts = [part for piece in found.key.split("/") for part in (piece, piece.split(" ")[0])]
    return next((accounts[part] for part in parts if part in accounts), None)


def _written(value: Value | None) -> str | None:
    return None if value is None else str(value)


def of_documents(rows: Collection[Mapping[str, Any]]) -> tuple[Found, ...]:
    """Differences as they were stored."""
    return tuple(Found(**row) for row in rows)
