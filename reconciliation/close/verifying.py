"""`close verify`: an evidence pack by itself, without database or network."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from billing.errors import JournalBroken
from billing.ledger.journal_chain import verified_export
from billing.money import ZERO, exactly, plain
from reconciliation.agreement import Check, compare
from reconciliation.close.close_store import content_hash
from reconciliation.close.contracts import frozen_as_used
from reconciliation.close.evidence import BALANCES, CONTENT, FORMAT, MANIFEST, SIGNATURES, trial_balance
from reconciliation.close.freezing import cut_digest, row_digest
from reconciliation.close.second_rating import NO_DECIMAL, NotRerated, priced_by_event, rated_again
from reconciliation.comparison import Difference, Value
from reconciliation.errors import EvidenceBroken

ACCRUED = 1150


def verify_evidence(folder: Path) -> list[Check]:
    """Everything that can be compared in a pack. Raises EvidenceBroken for a folder that is none."""
    content = folder / CONTENT
    manifest = _manifest(content)
    files = _files(content, manifest)
    if files.differences:
        return [files]  # the rest would be about other files than were signed
    accounts = list(_read(content / "accounts.jsonl"))
    tenants = [tenant for account in accounts for tenant in account["tenants"]]
    journals = {path.stem.removeprefix("journal-"): path for path in sorted(content.glob("journal-*.jsonl"))}
    chains, intact = _chains(journals)
    return [
        files,
        _signed(content / "accounts.jsonl", folder / SIGNATURES / "approvals.jsonl"),
        _cuts(tenants, list(_read(content / "cuts.jsonl"))),
        _rated(tenants),
        _drafted(accounts),
        _added_up(accounts, list(_read(content / "invoices.jsonl"))),
        chains,
        *(
            [_balanced(manifest["month"], journals, content), _accrued(manifest["month"], tenants, journals)]
            if intact
            else []
        ),
    ]


def _manifest(content: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((content / MANIFEST).read_text())
        if found["format"] != FORMAT:
            raise EvidenceBroken(f"{content}: no evidence that this version can read")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceBroken(f"{content} is no evidence of a close: {error}") from None


def _read(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise EvidenceBroken(f"{file}:{number}: {error}") from None


def _files(content: Path, manifest: Mapping[str, Any]) -> Check:
    said: dict[str, Value] = {each["file"]: each["sha256"] for each in manifest["files"]}
    there: dict[str, Value] = {
        path.relative_to(content).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(content.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    return compare("files are those of the manifest", "manifest", "files", said, there)


def _signed(accounts: Path, approvals: Path) -> Check:
    signed: dict[str, Value] = {each["billing_account"]: each["content_hash"] for each in _read(approvals)}
    there: dict[str, Value] = {}
    with accounts.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            name = json.loads(line)["billing_account"]
            if name in signed:  # of what nobody has approved yet there is nothing to compare
                there[name] = content_hash(line.removesuffix("\n"))
    return compare("contents are what was signed", "approvals", "accounts", signed, there)


def _cuts(tenants: Iterable[Mapping[str, Any]], cuts: Iterable[Mapping[str, Any]]) -> Check:
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    known: dict[str, set[str]] = {}
    for number, cut in enumerate(cuts, start=1):
        said[f"cut {number}"], there[f"cut {number}"] = cut["digest"], cut_digest(cut["coordinates"], cut["rows"])
        known[cut["digest"]] = set(cut["rows"])
    for tenant in tenants:
        for number, row in enumerate(tenant["usage"], start=1):
            key = f"{tenant['tenant_id']}/{tenant['period']}/row {number}"
            digest = row_digest(row)
            said[key] = row["digest"]
            there[key] = digest if digest in known.get(tenant["cut"], ()) else f"{digest}, in no cut"
    return compare("frozen usage is that of its cut", "digests", "rows", said, there)


def _rated(tenants: Iterable[Mapping[str, Any]]) -> Check:
    """The second rating of frozen usage. What is priced request by request was rated again at the close alone (R3)."""
    again: dict[str, Value] = {}
    rated: dict[str, Value] = {}
    hindered = []
    for tenant in tenants:
        where = f"{tenant['tenant_id']}/{tenant['period']}"
        if tenant["contract"] is None or priced_by_event(tenant["contract"]):
            continue
        try:
            used = [frozen_as_used(row, number) for number, row in enumerate(tenant["usage"], start=1)]
            found = rated_again(tenant["contract"], used)
        except NotRerated as error:
            hindered.append(Difference(f"{where}/not rated again: {error}", "rated", None))
            continue
        again |= {f"{where}/{key}": Decimal(value) for key, value in found.items() if value != NO_DECIMAL}
        first = _told(tenant["rated_lines"])
        rated |= {f"{where}/{key}": value for key, value in first.items() if found.get(key) != NO_DECIMAL}
    check = compare("rated again", "second rating of frozen usage", "rated lines", again, rated)
    return Check(check.name, check.left, check.right, check.compared, (*check.differences, *hindered))


def _told(lines: Iterable[Mapping[str, Any]]) -> dict[str, Value]:
    sums: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in lines:
            key = f"{line['kind'] if line['kind'] == 'invoice_discount' else line['key']}/{line['tax_group']}"
            sums[f"{key}/amount"] += Decimal(line["amount"])
            if line["unit_price"] is not None:
                sums[f"{key}/quantity"] += Decimal(line["quantity"])
    return {key: Decimal(plain(value)) for key, value in sums.items() if value}


def _drafted(accounts: Iterable[Mapping[str, Any]]) -> Check:
    """What was rated is on the drafts: per account and tenant, without credits and what came late to other periods."""
    rated: dict[str, Decimal] = defaultdict(lambda: ZERO)
    drafted: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for account in accounts:
            for tenant in account["tenants"]:
                for line in tenant["rated_lines"]:
                    rated[f"{line['billing_account']}/{line['tenant_id']}"] += Decimal(line["amount"])
            for document in account["documents"]:
                own = [line for line in document["lines"] if line["original_period"] == document["period"]]
                for line in own if document["kind"] == "usage" else ():
                    if line["kind"] != "credit":
                        key = f"{account['billing_account']}/{line['tenant_id']}"
                        drafted[key] += Decimal(line["amount_exact"])
    ours, theirs = ({k: Decimal(plain(v)) for k, v in each.items() if v} for each in (rated, drafted))
    return compare("rated lines are drafted", "rated lines", "lines of drafts", dict(ours), dict(theirs))


def _added_up(accounts: Iterable[Mapping[str, Any]], issued: Iterable[Mapping[str, Any]]) -> Check:
    """Invoices are the drafts that were approved, and each is the sum of its lines: minor units."""
    said: dict[str, Value] = {}
    summed: dict[str, Value] = {}
    drafts = {document["invoice_id"]: document for account in accounts for document in account["documents"]}
    for document in issued:
        key = document["invoice_id"]
        within = sum(row["amount"] for row in document["tax"]) if document["tax_mode"] == "inclusive" else 0
        said[f"{key}/net"] = document["net"]
        summed[f"{key}/net"] = sum(line["amount"] for line in document["lines"]) - within
        said[f"{key}/total"] = document["total"]
        summed[f"{key}/total"] = document["net"] + sum(row["amount"] for row in document["tax"])
        if (draft := drafts.get(key)) is not None:
            said[f"{key}/as approved"] = json.dumps(draft, sort_keys=True)
            summed[f"{key}/as approved"] = json.dumps({name: document.get(name) for name in draft}, sort_keys=True)
    return compare("invoices are what was approved", "approved", "issued", said, summed)


def _chains(journals: Mapping[str, Path]) -> tuple[Check, bool]:
    broken = []
    entries = 0
    for entity, file in journals.items():
        try:
            with file.open(encoding="utf-8", newline="\n") as lines:
                entries += verified_export(lines, name=file.name)[0]
        except JournalBroken as error:
            broken.append(Difference(entity, "whole", str(error)))
    return Check("the journal's chain is whole", "chain", "entries", entries, tuple(broken)), not broken


def _balanced(month: str, journals: Mapping[str, Path], content: Path) -> Check:
    """The trial balance is that of the journal, and its debits are its credits."""
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    key: Callable[[Mapping[str, Any]], str] = lambda row: "/".join(str(row[name]) for name in BALANCES[:3])  # noqa: E731
    with (content / "trial_balance.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            said |= {f"{key(row)}/{name}": row[name] for name in BALANCES[3:]}
    sums: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for entity, file in journals.items():
        for row in trial_balance(entity, month, _read(file)):
            there |= {f"{key(row)}/{name}": row[name] for name in BALANCES[3:]}
            with exactly():
                sums[f"{entity}/{row['currency']}/sum"] += Decimal(row["balance_after"])
    said |= dict.fromkeys(sums, ZERO)
    there |= sums
    return compare("the trial balance is the journal's", "trial balance", "journal", said, there)


def _accrued(month: str, tenants: Iterable[Mapping[str, Any]], journals: Mapping[str, Path]) -> Check:
    """What was rated up to the cut, of tenants billed by the calendar month, is what accruals for the month moved."""
    ratings: dict[str, dict[str, int]] = defaultdict(dict)
    rated: dict[str, Decimal] = defaultdict(lambda: ZERO)
    booked: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for tenant in tenants:
            ratings[tenant["tenant_id"]][tenant["period"]] = tenant["rating_no"]
            for line in tenant["rated_lines"]:
                rated[f"{tenant['tenant_id']}/{line['currency']}"] += Decimal(line["amount"])
        whole = {tenant_id for tenant_id, names in ratings.items() if names.keys() == {month}}
        for entry in (line["entry"] for file in journals.values() for line in _read(file) if "entry" in line):
            source = entry["source"]
            if entry["kind"] != "accrual" or source["period"] != month or source["tenant_id"] not in whole:
                continue
            if int(source["rating_no"]) > ratings[source["tenant_id"]][month]:
                continue  # what came after the cut
            for leg in entry["legs"]:
                if leg["code"] == ACCRUED:
                    booked[f"{leg['subledger']}/{leg['currency']}"] += Decimal(leg["amount"])
    ours = {k: Decimal(plain(v)) for k, v in rated.items() if v and k.rpartition("/")[0] in whole}
    theirs = {k: Decimal(plain(v)) for k, v in booked.items() if v}
    return compare("rated lines are accrued", "rated lines", f"journal {ACCRUED}", dict(ours), dict(theirs))
