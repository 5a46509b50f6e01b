"""Journal entries written by hand: read strictly, kept from what other records explain. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from billing.errors import EntryInvalid, PlanProblem
from billing.ledger.journal import ACCOUNTS, AccountCode, JournalEntry, Posting
from billing.money import LINE_DECIMALS, parse_decimal
from billing.plans.plan_reader import Reader, compose
from billing.posting.posting_rules import Booking

MANUAL: Final = "manual"
PRIOR_PERIOD: Final = "prior_period_adjustment"
KINDS: Final = (MANUAL, PRIOR_PERIOD)
NOT_BY_HAND: Final = (
    AccountCode.UNBILLED_RECEIVABLE,
    AccountCode.DEFERRED_REVENUE_PREPAID,
    AccountCode.EXPECTED_BREAKAGE,
    AccountCode.DEFERRED_FEES,
)
"""What is unbilled, prepaid and deferred follows from rated lines and credits, and from nothing else."""
EARLIEST_YEAR: Final = 2000
AHEAD_MAX: Final = timedelta(days=366)
_FIELDS: Final = {"effective_at", "memo", "legs"}
_LEG_FIELDS: Final = {"account", "currency", "amount", "subledger"}


def read_entry(text: str, *, file: str) -> dict[str, Any]:
    """The content of an entry's YAML file, for `checked`. Raises EntryInvalid with every problem, by line and field."""
    problems: list[PlanProblem] = []
    root = compose(text, problems)
    fields = {} if root is None else root.fields((*sorted(_FIELDS), "kind")) or {}
    found: dict[str, Any] = {name: reader.text() for name, reader in fields.items() if name != "legs"}
    if "legs" in fields:
        found["legs"] = [_read_leg(item) for item in fields["legs"].items()]
    if problems:
        raise EntryInvalid("\n".join(problem.told(file) for problem in problems))
    return found


def _read_leg(reader: Reader) -> dict[str, Any]:
    leg: dict[str, Any] = {}
    for name, field in (reader.fields(tuple(sorted(_LEG_FIELDS))) or {}).items():
        text = field.text()
        if name == "amount" and field.node.tag != "tag:yaml.org,2002:str":
            field.problem(f'{text}: write it as a text, "12.50"')
        leg[name] = int(text) if name == "account" and text is not None and text.isdecimal() else text
    return leg


def checked(content: Mapping[str, Any], *, now: datetime) -> dict[str, Any]:
    """The content of an entry as it is stored: `effective_at`, `memo`, `legs` of account, currency, amount, subledger.

    Amounts are decimal strings, debit positive. Raises EntryInvalid, NotAnAmount.
    """
    if unknown := content.keys() - _FIELDS - {"kind"}:
        raise EntryInvalid(f"unknown: {', '.join(sorted(unknown))}; an entry has {', '.join(sorted(_FIELDS))}")
    if missing := _FIELDS - content.keys():
        raise EntryInvalid(f"missing: {', '.join(sorted(missing))}")
    if content.get("kind", MANUAL) not in KINDS:
        raise EntryInvalid(f"kind {content['kind']!r}: it is {' or '.join(KINDS)}")
    try:
        effective_at = datetime.fromisoformat(str(content["effective_at"]))
    except ValueError:
        raise EntryInvalid(f"effective_at {content['effective_at']!r} is no RFC 3339 time") from None
    if effective_at.tzinfo is None:
        raise EntryInvalid(f"effective_at {content['effective_at']!r}: say its offset, such as Z")
    if not (EARLIEST_YEAR <= effective_at.year < 9999 and effective_at <= now + AHEAD_MAX):
        raise EntryInvalid(
            f"effective_at {effective_at.isoformat()}: it lies in {EARLIEST_YEAR} or later, and at most a year ahead"
        )
    if not isinstance(content["legs"], list) or not content["legs"]:
        raise EntryInvalid("legs: a list of account, currency, amount and subledger is expected")
    legs = [_leg(leg) for leg in content["legs"]]
    found = {
        "kind": content.get("kind", MANUAL),
        "effective_at": effective_at.isoformat(),
        "memo": str(content["memo"]),
        "legs": legs,
    }
    entry_of(found, Booking("check", "check", "check", effective_at), document="check")
    return found


def entry_of(content: Mapping[str, Any], booking: Booking, *, document: str) -> JournalEntry:
    """The journal entry of checked content."""
    return booking.entry(
        kind=content["kind"],
        postings=tuple(
            Posting(
                ACCOUNTS[leg["account"]],
                leg["currency"],
                parse_decimal(leg["amount"], decimals=LINE_DECIMALS),
                leg["subledger"],
            )
            for leg in content["legs"]
        ),
        source={"memo": content["memo"], "document": document},
    )


def _leg(given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise EntryInvalid(f"leg {given!r}: account, currency, amount and subledger are expected")
    if unknown := given.keys() - _LEG_FIELDS:
        raise EntryInvalid(f"a leg has no {', '.join(sorted(unknown))}")
    code = given.get("account")
    if not isinstance(code, int) or code not in ACCOUNTS:
        raise EntryInvalid(f"{code!r} is no account: `tollbook ledger accounts --chart` has them")
    if ACCOUNTS[code] in NOT_BY_HAND:
        raise EntryInvalid(f"{ACCOUNTS[code].title} follows from other records: nothing is posted to it by hand")
    amount = given.get("amount")
    if not isinstance(amount, str):
        raise EntryInvalid(f'amount {amount!r}: write it as a text, "12.50"')
    return {
        "account": code,
        "currency": str(given.get("currency", "")),
        "amount": amount,
        "subledger": str(given.get("subledger", "")),
    }
