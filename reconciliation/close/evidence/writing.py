"""The evidence of a close: `content/`, which is a function of cuts and what was stored since, and `signatures/`.

Written again from the same close it has the same bytes. EXPLAINED says what each file holds.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from billing.ledger.journal_chain import exported
from billing.money import ZERO, exactly, plain
from billing.periods import BillingPeriod, rfc3339
from reconciliation.close import close_store, freezing, priced_events, signature_store
from reconciliation.close.close_store import Content, Standing, book_key, is_under_way
from reconciliation.close.contents import CHANGES_LATER
from reconciliation.close.evidence import pack_files, register_store, registers, renderings, stripe_read
from reconciliation.close.evidence.pack_files import lines, table
from reconciliation.close.freezing import Cut
from reconciliation.close.gates import gate_store
from reconciliation.close.gates.gate import Gate
from reconciliation.close.gates.movement import MOVED
from reconciliation.close.signatures import SINCE, since_signed
from reconciliation.close.states import State
from reconciliation.errors import CloseRefused

FORMAT: Final = "tollbook.close_evidence.v4"
CONTENT, SIGNATURES, README = "content", "signatures", "README.md"
MANIFEST, MANIFEST_HASH = "manifest.json", "manifest.sha256"
ACCOUNTS_FILE, GATES_FILE, INVOICES_FILE = "accounts.jsonl", "gates.jsonl", "invoices.jsonl"
DOCUMENTS_FILE, BALANCE_FILE = "documents.jsonl", "trial_balance.csv"
BEFORE_FILE = "signed_before.jsonl"
RATED: Final = ("billing_account", "tenant_id", "period", "key", "model", "metric", "quantity", "unit_price", "amount",
                "currency", "tax_group")  # fmt: skip
USED: Final = ("billing_account", "tenant_id", "period", "model", "adapter", "region", "tier", "status", "requests",
               "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")  # fmt: skip
BALANCES: Final = ("legal_entity", "code", "currency", "debit", "credit", "balance_after")
EXPLAINED: Final = """# The close of {month}

`content/` is what was closed: its figures follow from the cuts alone. `signatures/` is who did what, when and why.
`renderings/` is a page to read, made of the content, as HTML and PDF.

    tollbook close verify FOLDER

checks, without database or network: every file against `content/manifest.json`, and that against
`signatures/manifest.sha256`, the hash that `close evidence` printed; every account's content against the hash that was
signed; tables against contents; frozen usage against its cut; rated lines against a second, independent rating of the
frozen usage, of periods that go on and of earlier ones that drafts bill something of, too; invoices against what was
approved, both ways, and against their lines; what was issued before an account was reopened against what was signed
then; what gates call waived against the waivers; the journal's chain of hashes, that it ends where its book was closed,
its sums, and its accruals against the rated lines; Stripe's objects against invoices and journal, both ways; the
registers against journal and documents; the page against the content.

| file in content/ | holds |
|---|---|
| cuts.jsonl | when usage was cut, up to which message of each source, and where all else stood |
| accounts.jsonl | an account a line, as approved: contract, usage, rated lines, drafts; what is accrued; what is late |
| signed_before.jsonl | of accounts that were reopened since: what was signed, and issued under that signature, before |
| priced_events.jsonl | of tenants whose prices hang on single events: these, as the second rating read them |
| usage.csv, rated_lines.csv | the same as tables |
| gates.jsonl, waivers.jsonl | what each gate compared and found; what a person let stay, why, what it may be worth |
| invoices.jsonl | what was approved as it was issued, with numbers and Stripe's ids |
| stripe.jsonl | those invoices, their credit notes, the month's balance transactions, the balance, as Stripe had them |
| documents.jsonl | other documents that are booked since the month began: fees in advance, top-ups, credit notes |
| journal-ENTITY.jsonl | the sealed journal up to the close of its book, or of an account that was released later |
| trial_balance.csv | the month's debits and credits by account, and the balance after it |
| registers/late_usage.csv | what is billed of earlier periods; what came when the draft was built already |
| registers/unbillable_usage.csv | what came later than its contract bills, and who approved that |
| registers/credit_notes.csv | credit notes booked since the month began, in minor units |
| registers/disputes.csv | what disputes withdrew, gave back, cost, and lost for good in the month |
| registers/manual_journals.csv | entries by hand in the month, leg by leg, and who proposed and approved them |
| registers/since_signed.csv | of reopened accounts: what has become of them since their first signature |
| registers/movements.csv | what changed against the month before (R11) by tenant and model, also what is small |
| registers/number_series.csv | every number of each series from the first to the last that such a document bears |
"""


@dataclass(frozen=True, slots=True)
class Written:
    """A pack that was written: how many files, its manifest's hash, and why there is no PDF ('' where there is)."""

    files: int
    manifest: str
    without_pdf: str = ""


def write_evidence(engine: Engine, month: BillingPeriod, folder: Path, *, tar: Path | None = None) -> Written:
    """Write the evidence of a month's close into a folder that is empty or holds an earlier pack of it.

    And as a tar if asked, whose order, owners and times are the same each time. Cut off anywhere it is no pack, or the
    one before, and written again it is whole. Raises CloseRefused where the close has not begun.
    """
    with transaction(engine) as connection:
        files = dict(_content(connection, month))
        signatures = dict(_signatures(connection, month))
        cut_at = max((cut.taken_at for cut in _taken(connection, _accounts(files))), default=month.end)
    if not files[ACCOUNTS_FILE]:
        raise CloseRefused(f"nothing of {month.name} is reconciled yet: there is no evidence of it")
    listed = [
        {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in sorted(files.items())
    ]
    files[MANIFEST] = lines([{"format": FORMAT, "month": month.name, "files": listed}])
    manifest = hashlib.sha256(files[MANIFEST]).hexdigest()
    signatures[MANIFEST_HASH] = f"{manifest}  {CONTENT}/{MANIFEST}\n".encode()
    pack = {f"{CONTENT}/{name}": data for name, data in files.items()}
    pack |= {f"{SIGNATURES}/{name}": data for name, data in signatures.items()}
    pack[README] = EXPLAINED.format(month=month.name).encode()
    rendered, without_pdf = renderings.rendered(month.name, files, cut_at)
    pack |= rendered
    pack_files.put(folder, pack, last=f"{SIGNATURES}/{MANIFEST_HASH}")
    if tar is not None:
        renderings.write_tar(tar, f"close-{month.name}", pack, cut_at)
    return Written(len(pack), manifest, without_pdf)


def _accounts(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files[ACCOUNTS_FILE].splitlines()]


def _content(connection: Connection, month: BillingPeriod) -> Iterator[tuple[str, bytes]]:
    contents = close_store.latest_contents(connection, month.name)
    accounts = [json.loads(each.content) for each in contents]
    yield ACCOUNTS_FILE, "".join(f"{each.content}\n" for each in contents).encode()
    given = signature_store.of_reopened(connection, month)
    signed = signature_store.texts(connection, month, given)
    latest = {each.hash for each in contents}
    yield BEFORE_FILE, "".join(f"{text}\n" for (_, digest), text in signed.items() if digest not in latest).encode()
    yield "cuts.jsonl", lines(_cuts(connection, accounts))
    yield priced_events.FILE, _priced_events(connection, accounts)
    yield "usage.csv", usage_table(accounts)
    yield "rated_lines.csv", rated_table(accounts)
    stored = gate_store.latest(connection, month.name)
    yield (
        GATES_FILE,
        lines(
            {
                "gate": gate.value,
                "compared": one.result.compared,
                "differences": [d.document() for d in one.result.found],
            }
            for gate, one in stored.items()
        ),
    )
    moved = stored[Gate.R11].result.shown if Gate.R11 in stored else ()
    yield registers.MOVED_FILE, table(MOVED, moved)
    yield "waivers.jsonl", lines(each.document() for each in close_store.waivers(connection, month.name))
    ids = sorted(uuid.UUID(document["invoice_id"]) for each in accounts for document in each["documents"])
    issued = [s for s in invoice_store.listed(connection, invoice_ids=ids) if s.state in ISSUED]
    documents = documents_of(connection, sorted(issued, key=lambda s: s.invoice.invoice_id))
    yield INVOICES_FILE, lines({k: v for k, v in each.items() if k not in CHANGES_LATER} for each in documents)
    yield stripe_read.FILE, stripe_read.written(stripe_read.latest(connection, month.name))
    books = dict(_books(connection, month, accounts))
    yield from books.items()
    since = since_signed(
        given, {key: json.loads(text) for key, text in signed.items()},
        {each["billing_account"]: each for each in accounts}, {each["invoice_id"]: each for each in documents},
        map(json.loads, books[DOCUMENTS_FILE].splitlines()),
    )  # fmt: skip
    yield registers.SINCE_FILE, table(SINCE, since)


def _books(
    connection: Connection, month: BillingPeriod, accounts: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Each legal entity's journal as far as its book's close, and what follows from it: balances, registers."""
    balances: list[dict[str, Any]] = []
    journals: dict[str, list[dict[str, Any]]] = {}
    standings = close_store.standings(connection, month.name)
    unbillable: list[int] = []
    for entity in sorted({each["legal_entity"] for each in accounts}):
        book = standings.get(book_key(entity))
        last = _journal_end(entity, standings)
        unbillable += [int(book.detail.get("unbillable_no", 0))] if book is not None else []
        journal = list(_journal(connection, entity, last))
        yield f"journal-{entity}.jsonl", "".join(journal).encode()
        journals[entity] = [json.loads(line) for line in journal]
        balances += trial_balance(entity, month.name, journals[entity])
    yield BALANCE_FILE, balances_table(balances)
    booked = {name for journal in journals.values() for name in registers.booked_documents(journal, month.name)}
    others = register_store.other_documents(connection, booked)
    yield DOCUMENTS_FILE, lines(others)
    yield from register_store.register_files(
        connection, month, accounts, journals, others, last_unbillable=max(unbillable, default=None)
    )


def _journal_end(entity: str, standings: Mapping[str, Standing]) -> int | None:
    """Up to which entry the month's documents are booked: where the book was closed, or, of an account that was parked
    then, where that account was. None: something is still to come, and all of it is shown."""
    book = standings.get(book_key(entity))
    if book is None or book.at is None:
        return None
    own = [each for each in standings.values() if each.legal_entity == entity and each.billing_account]
    if any(is_under_way(each) or (each.state is State.PARKED and each.at and each.at > book.at) for each in own):
        return None
    return max(int(each.detail["position"]) for each in (book, *own) if "position" in each.detail)


def _journal(connection: Connection, entity: str, last: int | None) -> Iterator[str]:
    """The sealed journal up to an entry; all of it."""
    links = journal_chain_store.links(connection, entity)
    yield from exported(entity, links if last is None else takewhile(lambda link: link.position <= last, links))


def trial_balance(entity: str, month: str, journal: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A month's debits and credits by account code and currency, and the balance after it, from an exported journal."""
    moved: dict[tuple[int, str], list[Decimal]] = defaultdict(lambda: [ZERO, ZERO, ZERO])
    with exactly():
        for line in journal:
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


def _cuts(connection: Connection, accounts: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    last = {cut.digest: cut for cut in _taken(connection, accounts)}
    for cut in sorted(last.values(), key=lambda cut: (cut.period, cut.cut_id)):
        yield {
            "period": cut.period.name,
            "taken_at": rfc3339(cut.taken_at),
            "digest": cut.digest,
            "coordinates": cut.coordinates,
            "rows": freezing.digests_of(connection, cut.cut_id),
        }


def _priced_events(connection: Connection, accounts: Sequence[Mapping[str, Any]]) -> bytes:
    """Of the tenants whose contents name them; the digest tells whether they are those that were signed."""
    signed = {(each["tenant_id"], each["cut"], each.get("events")) for each in rated_in(accounts)}
    found = {
        of: priced_events.in_pack(each, cut.period)
        for cut in _taken(connection, accounts)
        for each in priced_events.of_cut(connection, cut.cut_id)
        if (of := (each.tenant_id, cut.digest, each.digest)) in signed
    }
    return b"".join(found.values())


def _taken(connection: Connection, accounts: Iterable[Mapping[str, Any]]) -> list[Cut]:
    """The cuts that accounts' contents name."""
    return freezing.by_digest(connection, {each["cut"] for each in rated_in(accounts)})


def rated_in(accounts: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What accounts' contents have of tenants' periods: of what the month bills, of what it accrues of those that go
    on, and of what came late to earlier ones."""
    for account in accounts:
        yield from account["tenants"]
        yield from account.get("accrued", ())
        yield from account.get("late", ())


def usage_table(accounts: Iterable[Mapping[str, Any]]) -> bytes:
    """The frozen usage of accounts' contents as CSV."""
    return table(USED, _of_tenants(accounts, "usage"))


def rated_table(accounts: Iterable[Mapping[str, Any]]) -> bytes:
    """The rated lines of accounts' contents as CSV."""
    return table(RATED, _of_tenants(accounts, "rated_lines"))


def balances_table(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows of `trial_balance` as CSV."""
    return table(BALANCES, rows)


def _of_tenants(accounts: Iterable[Mapping[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    for account in accounts:
        for tenant in account["tenants"]:
            own = (row for row in tenant[name] if row["billing_account"] == account["billing_account"])
            yield from (row | {"period": tenant["period"]} for row in own)


def _signatures(connection: Connection, month: BillingPeriod) -> Iterator[tuple[str, bytes]]:
    approved = [_approval(each) for each in close_store.latest_contents(connection, month.name) if each.approved_by]
    yield "approvals.jsonl", lines(approved)
    yield (
        "transitions.jsonl",
        lines(
            {"legal_entity": each.legal_entity, "billing_account": each.billing_account, "step": each.step,
             "from": each.from_state, "event": each.event, "to": each.to_state, "actor": each.actor,
             "reason": each.reason, "detail": each.detail, "at": rfc3339(each.at)}
            for each in close_store.history(connection, month.name)
        ),
    )  # fmt: skip
    times = [
        {"gate": gate.value, "at": rfc3339(one.at)} for gate, one in gate_store.latest(connection, month.name).items()
    ]
    yield "gate_times.jsonl", lines(times)


def _approval(content: Content) -> dict[str, Any]:
    """`alone`: a team of one, where nobody else could approve."""
    assert content.approved_at is not None, "approved"
    return {
        "billing_account": content.billing_account, "content_hash": content.hash, "prepared_by": content.prepared_by,
        "approved_by": content.approved_by, "alone": content.alone, "at": rfc3339(content.approved_at),
    }  # fmt: skip
