"""The gates of a close: equalities, each with the list of what differs (docs/spec/money.md 11.3). Values only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from reconciliation.agreement import Check
from reconciliation.close.signatures import AS_SIGNED
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
OF_LEDGER: Final = (Gate.R4, Gate.R5B, Gate.R7, Gate.R8)
"""Asked of the book once more before it is closed: what is issued is booked by then."""
BOOKED: Final = "issued invoices are booked"
WAITING: Final = "nothing waits"
GATE_OF: Final[Mapping[str, Gate]] = {
    "everything in Kafka is applied": Gate.R1,
    "every message has one outcome": Gate.R1,
    "what was counted is stored": Gate.R1,
    "numbered events are here": Gate.R1,
    "tenants are complete": Gate.R1,
    "events are in their minute": Gate.R2,
    "events are in their hour": Gate.R2,
    "raw events are frozen": Gate.R2,
    "frozen usage is as it was cut": Gate.R2,
    "rated again": Gate.R3,
    "rated lines are accrued": Gate.R4,
    "the books are explained": Gate.R4,
    "the books balance": Gate.R4,
    "fees in advance are earned": Gate.R4,
    "rated lines are invoiced": Gate.R5A,
    "invoices are as drawn up": Gate.R5A,
    "invoices add up": Gate.R5A,
    "drafts are in Stripe": Gate.R5A,
    "usage digests are those of the counts": Gate.R5A,
    AS_SIGNED: Gate.R5A,
    "invoices are issued": Gate.R5B,
    BOOKED: Gate.R5B,
    "finalized invoices are in Stripe": Gate.R5B,
    "credit notes are in Stripe": Gate.R5B,
    "customers are kept": Gate.R5B,
    "money in Stripe is booked once": Gate.R6,
    "money is somebody's": Gate.R6,
    "Stripe's balance is booked": Gate.R6,
    "credits are owed": Gate.R7,
    "breakage is as estimated": Gate.R7,
    "credits are drawn as invoiced": Gate.R7,
    "credits are as registered": Gate.R7,
    "rounding is booked": Gate.R8,
    "rounding is small": Gate.R8,
    WAITING: Gate.R9,
    "numbers have no gaps": Gate.R9,
    "requests to Stripe are kept": Gate.R9,
    "the journal is as sealed": Gate.R10,
    "movement is explained": Gate.R11,
}
"""Which gate a comparison belongs to. Five of `reconcile` are no gates: engine counters; "usage is rated", which asks
of all usage that is there by now, also of what came after the cut; "customers in Stripe are explained", "payments in
Stripe are booked" and "disputes in Stripe are in 1180", which are about today: a balance of a customer's own stops its
next invoice."""
WAIVABLE: Final = ("numbered events are here", "tenants are complete", WAITING, "movement is explained")
"""What a person may let stay: gaps (R1), what waits (R9), what moved, which is explained (R11). Nothing else."""
IN_STRIPE: Final = "finalized invoices are in Stripe"
BY_ACCOUNT: Final[Mapping[str, int]] = {
    "rated lines are invoiced": 0, AS_SIGNED: 0, "customers are kept": 0, "credits are as registered": 0, IN_STRIPE: 1,
}  # fmt: skip
"""Comparisons whose keys have a billing account, and at which place; those of ledger accounts behind RECEIVABLE."""
BY_ENTITY: Final = frozenset(
    {
        "numbers have no gaps", "the journal is as sealed", "Stripe's balance is booked",
        "money in Stripe is booked once", "money is somebody's",
    }
)  # fmt: skip
"""Comparisons whose keys begin with a legal entity, where they are of one."""
RECEIVABLE: Final = "1100"


@dataclass(frozen=True, slots=True)
class Owners:
    """Whose the parts of a difference's key are.

    `payers`: by tenant the billing accounts that pay for it; `accounts`: names of billing accounts; `documents`: by the
    id of an invoice, here or in Stripe, its billing account; `messages`: by the key of a message in quarantine its
    tenant. A tenant and an account may have one name, and a tenant be called by a number.
    """

    payers: Mapping[str, Collection[str]]
    accounts: Collection[str] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)

    def of(self, check: str, key: str) -> tuple[str, ...]:
        """The billing accounts that a difference belongs to, in order; none where it is nobody's."""
        pieces = key.split("/")
        if check in BY_ENTITY:
            return ()
        if check == WAITING and pieces[0] != "parked":
            return tuple(sorted(self.payers.get(self.messages.get(key, ""), ())))
        by_account = 1 if pieces[0] == RECEIVABLE else BY_ACCOUNT.get(check)
        for position, piece in enumerate(pieces):
            for name in (piece, piece.split(" ")[0]):
                if name in self.documents:
                    return (self.documents[name],)
                if position == by_account:
                    if name in self.accounts:
                        return (name,)
                elif name in self.payers:
                    return tuple(sorted(self.payers[name]))
        return ()


Waived = Mapping[tuple[str, str, str | None, str | None], str]
"""By gate and what was `seen` the person who lets it stay."""


@dataclass(frozen=True, slots=True)
class Found:
    """A difference that a gate found: of which comparison and accounts (none: nobody's), and who has waived it."""

    check: str
    key: str
    left: Value | None
    right: Value | None
    accounts: tuple[str, ...] = ()
    waived_by: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON holds it; numbers as text."""
        return {
            "check": self.check, "key": self.key, "left": _written(self.left), "right": _written(self.right),
            "accounts": list(self.accounts), "waived_by": self.waived_by,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """A gate: how many values were compared, and all that differs.

    `parts`: of R2 and R3, which are asked of some accounts at a time, what came of each tenant's cut, by its name.
    `shown`: rows that the evidence has beside: of R11 every movement, also what nobody must explain.
    """

    gate: Gate
    compared: int
    found: tuple[Found, ...] = ()
    parts: Mapping[str, Result] = field(default_factory=dict)
    shown: tuple[Mapping[str, str], ...] = ()

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

        A damaged line of one account also shows in sums over all of them: that holds up the book, not the others. So
        does what is in Stripe for a customer that nobody knows.
        """
        of_others = {each.check for each in self.open if each.accounts} | {IN_STRIPE}
        return [e for e in self.open if account in e.accounts or not (e.accounts or e.check in of_others)]

    def held_books(self, entities: Mapping[str, str]) -> dict[str, list[Found]]:
        """What holds up books, by legal entity. `entities`: by billing account the legal entity that bills it.

        A difference is that of its accounts' entities, or of the entity that its key begins with; one that is nobody's
        holds up all, unless it is a sum of the ledger that goes with somebody's. Of R5b, which asks before an account
        is closed, only what is nobody's holds up a book.
        """
        books = sorted(set(entities.values()))
        whose: dict[str, set[str]] = defaultdict(set)
        for each in self.open:
            whose[each.check] |= {entities[name] for name in each.accounts if name in entities}
        found: dict[str, list[Found]] = {}
        for each in self.open:
            of = {entities[name] for name in each.accounts if name in entities}
            if each.check in BY_ENTITY and (first := each.key.split("/")[0]) in books:
                of = {first}
            elif (self.gate is Gate.R4 or each.check == BOOKED) and not each.accounts:
                of = whose[each.check]
            elif self.gate is Gate.R5B and each.accounts:
                continue
            for book in of or books:
                found.setdefault(book, []).append(each)
        return found


def results(checks: Iterable[Check], owners: Owners, waived: Waived) -> dict[Gate, Result]:
    """The gates that comparisons make up. `waived`: by gate, key and both values the person who has."""
    compared: dict[Gate, int] = {}
    found: dict[Gate, list[Found]] = {}
    for check in checks:
        gate = GATE_OF.get(check.name)
        if gate is None:
            continue
        compared[gate] = compared.get(gate, 0) + check.compared
        listed = found.setdefault(gate, [])
        for each in check.differences:
            waivable = check.name in WAIVABLE
            listed.append(
                Found(
                    check.name, each.key, each.left, each.right, owners.of(check.name, each.key),
                    waived.get((gate, *seen(each))) if waivable else None,
                )
            )  # fmt: skip
    return {gate: Result(gate, count, tuple(found[gate])) for gate, count in sorted(compared.items(), key=_order)}


def seen(found: Difference | Found) -> tuple[str, str | None, str | None]:
    """What a waiver is for: a difference's key with both values as text. It does not hold for others of that key."""
    return found.key, _written(found.left), _written(found.right)


def _order(item: tuple[Gate, int]) -> int:
    return list(Gate).index(item[0])


def _written(value: Value | None) -> str | None:
    return None if value is None else str(value)


def of_documents(rows: Collection[Mapping[str, Any]]) -> tuple[Found, ...]:
    """Differences as they were stored: with their accounts, or, by an earlier version, with one or none."""
    return tuple(
        Found(
            row["check"], row["key"], row["left"], row["right"],
            tuple(row.get("accounts") or filter(None, [row.get("account")])), row["waived_by"],
        )
        for row in rows
    )  # fmt: skip
