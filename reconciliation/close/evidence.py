"""The evidence of a close: `content/`, which is a function of cuts and what was stored since, and `signatures/`.

Written again from the same close it has the same bytes. EXPLAINED says what each file holds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine

from billing.commands.show_invoices import documents_of
from billing.database import transaction
from billing.invoicing import invoice_store
from billing.invoicing.invoice_states import ISSUED
from billing.ledger import journal_chain_store
from billing.ledger.journal_chain import canonical, exported
from billing.money import ZERO, exactly, plain
from billing.periods import BillingPeriod, rfc3339
from reconciliation.close import close_store, freezing, gate_store
from reconciliation.close.close_store import Content, book_key
from reconciliation.close.contents import CHANGES_LATER
from reconciliation.errors import CloseRefused

FORMAT: Final = "tollbook.close_evidence.v1"
CONTENT, SIGNATURES, README = "content", "signatures", "README.md"
MANIFEST, MANIFEST_HASH, BALANCE_FILE = "manifest.json", "manifest.sha256", "trial_balance.csv"
RATED: Final = ("billing_account", "tenant_id", "period", "key", "model", "metric", "quantity", "unit_price", "amount",
                "currency", "tax_group")  # fmt: skip
USED: Final = ("billing_account", "tenant_id", "period", "model", "adapter", "region", "tier", "status", "requests",
               "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")  # fmt: skip
BALANCES: Final = ("legal_entity", "code", "currency", "debit", "credit", "balance_after")
EXPLAINED: Final = """# The close of {month}

`content/` is what was closed: its figures follow from the cuts alone. `signatures/` is who did what, when and why.

    tollbook close verify FOLDER

checks, without database or network: every file against `content/manifest.json`, and that against
`signatures/manifest.sha256`, the hash that `close evidence` printed; every account's content against the hash that was
signed; tables against contents; frozen usage against its cut; rated lines against a second, independent rating of the
frozen usage; invoices against what was approved, both ways, and against their lines; what gates call waived against the
waivers; the journal's chain of hashes, that it ends where its book was closed, its sums, and its accruals against the
rated lines.

| file in content/ | holds |
|---|---|
| cuts.jsonl | when usage was cut, up to which message of each source, and where all else stood |
| accounts.jsonl | an account a line, as it was approved: contract, frozen usage, rated lines, drafts |
| usage.csv, rated_lines.csv | the same as tables |
| gates.jsonl, waivers.jsonl | what each gate compared and found; what a person let stay, why, what it may be worth |
| invoices.jsonl | what was approved as it was issued, with numbers and Stripe's ids |
| journal-ENTITY.jsonl | the sealed journal up to the close of its book |
| trial_balance.csv | the month's debits and credits by account, and the balance after it |
"""


@dataclass(frozen=True, slots=True)
class Written:
    """A pack that was written: how many files, and the hash of its manifest."""

    files: int
    manifest: str


def write_evidence(engine: Engine, month: BillingPeriod, folder: Path) -> Written:
    """Write the evidence of a month's close into a folder that is empty or holds an earlier pack of it.

    Raises CloseRefused where the close has not begun.
    """
    with transaction(engine) as connection:
        files = dict(_content(connection, month))
        signatures = dict(_signatures(connection, month))
    if not files["accounts.jsonl"]:
        raise CloseRefused(f"nothing of {month.name} is reconciled yet: there is no evidence of it")
    listed = [
        {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in sorted(files.items())
    ]
    files[MANIFEST] = _lines([{"format": FORMAT, "month": month.name, "files": listed}])
    manifest = hashlib.sha256(files[MANIFEST]).hexdigest()
    signatures[MANIFEST_HASH] = f"{manifest}  {CONTENT}/{MANIFEST}\n".encode()
    for place, data in (
        *((Path(CONTENT, name), data) for name, data in files.items()),
        *((Path(SIGNATURES, name), data) for name, data in signatures.items()),
        (Path(README), EXPLAINED.format(month=month.name).encode()),
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(data)
    return Written(len(files) + len(signatures) + 1, manifest)


def _content(connection: Connection, month: BillingPeriod) -> Iterator[tuple[str, bytes]]:
    contents = close_store.latest_contents(connection, month.name)
    accounts = [json.loads(each.content) for each in contents]
    yield "accounts.jsonl", "".join(f"{each.content}\n" for each in contents).encode()
    yield "cuts.jsonl", _lines(_cuts(connection, month, accounts))
    yield "usage.csv", usage_table(accounts)
    yield "rated_lines.csv", rated_table(accounts)
    stored = gate_store.latest(connection, month.name)
    yield (
        "gates.jsonl",
        _lines(
            {
                "gate": gate.value,
                "compared": one.result.compared,
                "differences": [d.document() for d in one.result.found],
            }
            for gate, one in stored.items()
        ),
    )
    yield "waivers.jsonl", _lines(each.document() for each in close_store.waivers(connection, month.name))
    ids = sorted(uuid.UUID(document["invoice_id"]) for each in accounts for document in each["documents"])
    issued = [s for s in invoice_store.listed(connection, invoice_ids=ids) if s.state in ISSUED]
    documents = documents_of(connection, sorted(issued, key=lambda s: s.invoice.invoice_id))
    yield "invoices.jsonl", _lines({k: v for k, v in each.items() if k not in CHANGES_LATER} for each in documents)
    balances = []
    standings = close_store.standings(connection, month.name)
    for entity in sorted({each["legal_entity"] for each in accounts}):
        book = standings.get(book_key(entity))
        last = int(book.detail["position"]) if book is not None else None
        journal = list(_journal(connection, entity, last))
        yield f"journal-{entity}.jsonl", "".join(journal).encode()
        balances += trial_balance(entity, month.name, map(json.loads, journal))
    yield BALANCE_FILE, balances_table(balances)


def _journal(connection: Connection, entity: str, last: int | None) -> Iterator[str]:
    """The sealed journal, as far as it went when the book was closed; of an open book all of it."""
    links = journal_chain_store.links(connection, entity)
    yield from exported(entity, links if last is None else takewhile(lambda link: link.position <= last, links))


def trial_balance(entity: str, month: str, lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A month's debits and credits by account code and currency, and the balance after it, from an exported journal."""
    moved: dict[tuple[int, str], list[Decimal]] = defaultdict(lambda: [ZERO, ZERO, ZERO])
    with exactly():
        for line in lines:
            entry = line.get("entry")
            if entry is None or entry["accounting_period"] > month:
                continue
            for leg in entry["legs"]:
                sums, amount = moved[leg["code"], leg["currency"]], Decimal(leg["amount"])
                if entry["accounting_period"] == month:
                    sums[0 if amount > 0 else 1] += abs(amount)
                sums[2] += amount
    return [
        {"legal_entity": entity, "code": code, "currency": currency, "debit": plain(debit), "credit": plain(credit),
         "balance_after": plain(balance)}
        for (code, currency), (debit, credit, balance) in sorted(moved.items())
    ]  # fmt: skip


def _cuts(
    connection: Connection, month: BillingPeriod, accounts: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    tenants = {tenant["tenant_id"] for account in accounts for tenant in account["tenants"]}
    for cut in freezing.cuts(connection, month.name, tenants):
        yield {
            "period": cut.period.name,
            "digest": cut.digest,
            "coordinates": cut.coordinates,
            "rows": freezing.digests_of(connection, cut.cut_id),
        }


def usage_table(accounts: Iterable[Mapping[str, Any]]) -> bytes:
    """The frozen usage of accounts' contents as CSV."""
    return _table(USED, _of_tenants(accounts, "usage"))


def rated_table(accounts: Iterable[Mapping[str, Any]]) -> bytes:
    """The rated lines of accounts' contents as CSV."""
    return _table(RATED, _of_tenants(accounts, "rated_lines"))


def balances_table(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows of `trial_balance` as CSV."""
    return _table(BALANCES, rows)


def _of_tenants(accounts: Iterable[Mapping[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    for account in accounts:
        for tenant in account["tenants"]:
            own = (row for row in tenant[name] if row["billing_account"] == account["billing_account"])
            yield from (row | {"period": tenant["period"]} for row in own)


def _signatures(connection: Connection, month: BillingPeriod) -> Iterator[tuple[str, bytes]]:
    approved = [_approval(each) for each in close_store.latest_contents(connection, month.name) if each.approved_by]
    yield "approvals.jsonl", _lines(approved)
    yield (
        "transitions.jsonl",
        _lines(
            {"legal_entity": each.legal_entity, "billing_account": each.billing_account, "step": each.step,
             "from": each.from_state, "event": each.event, "to": each.to_state, "actor": each.actor,
             "reason": each.reason, "detail": each.detail, "at": rfc3339(each.at)}
            for each in close_store.history(connection, month.name)
        ),
    )  # fmt: skip
    times = [
        {"gate": gate.value, "at": rfc3339(one.at)} for gate, one in gate_store.latest(connection, month.name).items()
    ]
    yield "gate_times.jsonl", _lines(times)


def _approval(content: Content) -> dict[str, Any]:
    """`alone`: a team of one, where nobody else could approve."""
    assert content.approved_at is not None, "approved"
    return {
        "billing_account": content.billing_account, "content_hash": content.hash, "prepared_by": content.prepared_by,
        "approved_by": content.approved_by, "alone": content.alone, "at": rfc3339(content.approved_at),
    }  # fmt: skip


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(canonical(dict(value)) + b"\n" for value in values)


def _table(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return made.getvalue().encode()
