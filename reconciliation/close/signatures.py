"""What of an account was signed and issued before it was reopened, against what there is now. Values only."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.invoicing.invoices import InvoiceKind
from billing.money import ZERO, currency, exactly, from_minor, plain
from reconciliation.agreement import Check, compare
from reconciliation.close.states import Event
from reconciliation.comparison import Value

AS_SIGNED: Final = "issued documents are as signed"
ISSUED: Final = "issued"
"""In the detail of a step: what was issued by then, by the invoice's id, with what no draft has (TOLD)."""
TOLD: Final = ("number", "issue_date", "due_date")
SINCE: Final = ("billing_account", "tenant_id", "period", "what", "key", "currency", "signed", "now")
_COUNTS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")

Row = Mapping[str, Any]
Signed = Mapping[tuple[str, str], Row]
"""Contents by billing account and hash."""


@dataclass(frozen=True, slots=True)
class Signature:
    """An approval of an account under which something was issued, or that it has nothing to issue.

    `issued`: by the invoice's id what it was issued with (TOLD); None: all its documents, by a version that did not
    tell what with.
    """

    billing_account: str
    hash: str
    issued: Mapping[str, Row] | None


def of_reopened(steps: Iterable[tuple[str, str, Row]]) -> list[Signature]:
    """Of the accounts that were reopened after something was issued each signature that it was issued under, the first
    one first. `steps`: account, event, and detail, in the order in which they were made."""
    approved: dict[str, str] = {}
    found: dict[str, dict[str, Signature]] = defaultdict(dict)
    reopened: dict[str, None] = {}
    for account, event, detail in steps:
        if event == Event.APPROVE:
            approved[account] = detail["content_hash"]
        elif account in approved and (event == Event.FINALIZE or detail.get(ISSUED)):
            signed, issued = approved[account], detail.get(ISSUED)
            if (before := found[account].get(signed)) is not None:
                issued = None if issued is None or before.issued is None else {**issued, **before.issued}
            found[account][signed] = Signature(account, signed, issued)
        if event == Event.REOPEN and account in found:
            reopened[account] = None
    return [signature for account in reopened for signature in found[account].values()]


def as_signed(signatures: Iterable[Signature], signed: Signed, issued: Mapping[str, Row]) -> Check:
    """What was issued is what was signed before it, field by field, each line by its key; with its number and dates.

    `issued`: documents that are issued, by the id that they are stored under.
    """
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    known: set[str] = set()
    for each in signatures:
        content = signed.get((each.billing_account, each.hash))
        if content is None:
            said[f"{each.billing_account}/signed as {each.hash}"] = "kept"
            continue
        for draft in content["documents"]:
            name = draft["invoice_id"]
            if name in known or (each.issued is not None and name not in each.issued):
                continue
            known.add(name)
            key = f"{each.billing_account}/{name}"
            said[key] = "issued"
            if name in issued:
                there[key] = "issued"
                wanted = {**draft, **(each.issued or {}).get(name, {})}
                now = {field: issued[name].get(field) for field in wanted}
                if wanted != now:
                    said |= _fields(key, wanted)
                    there |= _fields(key, now)
    return compare(AS_SIGNED, "signatures", "documents", said, there)


def _fields(key: str, document: Row) -> dict[str, Value]:
    lines: dict[str, Value] = {f"{key}/lines/{line['line_key']}": _text(line) for line in document["lines"]}
    return lines | {f"{key}/{name}": _text(value) for name, value in document.items() if name != "lines"}


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def since_signed(
    signatures: Iterable[Signature],
    signed: Signed,
    now: Mapping[str, Row],
    issued: Mapping[str, Row],
    notes: Iterable[Row],
) -> Iterator[dict[str, str]]:
    """What has become of each account since its first signature, as rows of SINCE: usage, what it was rated at, its
    documents, and credit notes on what was signed. Amounts in major units.

    `now`: contents by account as they were put before a person last; `notes`: credit notes as documents.
    """
    first: dict[str, Signature] = {}
    for each in signatures:
        first.setdefault(each.billing_account, each)
    noted = [note for note in notes if note["kind"] == InvoiceKind.CREDIT_NOTE and note["credits_invoice"]]
    for account in sorted(first):
        content = signed.get((account, first[account].hash))
        if content is None:
            continue
        before, after = _values(account, content), _values(account, now[account])
        numbers = {issued[d["invoice_id"]]["number"] for d in content["documents"] if d["invoice_id"] in issued}
        for note in noted:
            if note["billing_account"] == account and note["credits_invoice"]["number"] in numbers - {None}:
                after["", note["period"], "credit note", note["number"] or "", note["currency"]] = _total(note)
        for key in sorted(before.keys() | after.keys()):
            left, right = (None if key not in side else plain(side[key]) for side in (before, after))
            if left != right:
                yield dict(zip(SINCE, (account, *key, left or "", right or ""), strict=True))


def _values(account: str, content: Row) -> dict[tuple[str, str, str, str, str], Decimal]:
    """By tenant, period, what it is, key and currency."""
    found: dict[tuple[str, str, str, str, str], Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for of in (*content["tenants"], *content.get("accrued", ()), *content.get("late", ())):
            tenant = of["tenant_id"], of["period"]
            for row in (row for row in of["usage"] if row["billing_account"] == account):
                for count in _COUNTS:
                    if row[count]:
                        found[*tenant, "usage", f"{row['model']}/{count}", ""] += int(row[count])
            for line in (line for line in of["rated_lines"] if line["billing_account"] == account):
                found[*tenant, "rated", line["key"], line["currency"]] += Decimal(line["amount"])
    for document in content["documents"]:
        key = document["tenant_id"] or "", document["period"], document["kind"], document["invoice_id"]
        found[*key, document["currency"]] = _total(document)
    return {key: value for key, value in found.items() if value or key[2] not in ("usage", "rated")}


def _total(document: Row) -> Decimal:
    ends = datetime.fromisoformat(document["service_end"]).date()
    return from_minor(document["total"], currency(document["currency"], ends))
