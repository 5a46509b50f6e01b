"""`close verify`: an evidence pack by itself, without database or network."""

from __future__ import annotations

import shutil
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from billing.bills.late_usage import plain_group
from billing.errors import JournalBroken
from billing.ledger.journal_chain import verified_export
from billing.money import ZERO, exactly, plain
from billing.periods import parse_period
from reconciliation.agreement import Check, compare
from reconciliation.close import priced_events
from reconciliation.close.contents import WITHOUT_LATE
from reconciliation.close.evidence import signed
from reconciliation.close.evidence.pack import Pack
from reconciliation.close.evidence.register_checks import register_checks
from reconciliation.close.evidence.writing import BALANCE_FILE, balances_table, trial_balance
from reconciliation.close.freezing import cut_digest, row_digest
from reconciliation.close.gates.contracts import frozen_as_used
from reconciliation.close.gates.rated_twice import USAGE, RatedTwice, Told
from reconciliation.close.gates.second_rating import Used, priced_by_event
from reconciliation.comparison import Difference, Value
from reconciliation.errors import EvidenceBroken

ACCRUED = 1150


def verify_evidence(folder: Path, *, manifest: str | None = None) -> list[Check]:
    """Everything that can be compared in a pack, a folder or the tar of one. Raises EvidenceBroken for what is none.

    `manifest`: the manifest's hash that `close evidence` printed, as somebody kept it apart from the pack: whoever
    changes a pack can write all of its hashes anew, but not that one.
    """
    if folder.is_file():
        with TemporaryDirectory() as unpacked:
            try:
                _unpack(folder, Path(unpacked).resolve())
            except (OSError, tarfile.TarError) as error:
                because = str(error).partition("\n")[0].rstrip(":")
                raise EvidenceBroken(f"{folder} is no tar of an evidence pack: {because}") from None
            roots = list(Path(unpacked).iterdir())
            if len(roots) != 1:
                raise EvidenceBroken(f"{folder} has {len(roots)} folders and files at its top: a pack's tar has one")
            return verify_evidence(roots[0], manifest=manifest)
    try:
        return _checks(Pack(folder, manifest))
    except (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise EvidenceBroken(f"{folder} is no whole evidence of a close: {type(error).__name__}: {error}") from None


def _unpack(file: Path, folder: Path) -> None:
    """Plain files alone, each once, all of them in the folder: a tar may name any place. Raises OSError, TarError."""
    with tarfile.open(file) as tar:
        for member in tar:
            place = (folder / member.name).resolve()
            source = tar.extractfile(member) if member.isreg() and place.is_relative_to(folder) else None
            if source is None:
                raise tarfile.TarError(f"{member.name} is no file of a pack")
            place.parent.mkdir(parents=True, exist_ok=True)
            with source, place.open("xb") as target:
                shutil.copyfileobj(source, target)


def _checks(pack: Pack) -> list[Check]:
    files = pack.files()
    if files.differences:
        return [files]  # the rest would be about other files than were written
    pack.expect_readable_contents()
    chains, ends = _chains(pack.journals)
    return [
        files,
        signed.contents(pack),
        _cuts([*pack.tenants, *pack.accrued, *pack.late], list(pack.of("cuts.jsonl"))),
        signed.tables(pack),
        *_rated(pack),
        _drafted(pack.accounts),
        _billed_late(pack),
        signed.invoices(pack),
        signed.before(pack),
        signed.waivers(pack),
        chains,
        signed.books(pack, ends),
        *([_balanced(pack), _accrued(pack), *register_checks(pack)] if not chains.differences else []),
    ]


def _cuts(tenants: Iterable[Mapping[str, Any]], cuts: Iterable[Mapping[str, Any]]) -> Check:
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    known: dict[str, set[str]] = {}
    for number, cut in enumerate(cuts, start=1):
        said[f"cut {number}"], there[f"cut {number}"] = cut["digest"], cut_digest(cut["coordinates"], cut["rows"])
        known[cut["digest"]] = set(cut["rows"])
    for tenant in tenants:
        for number, row in enumerate(tenant["usage"], start=1):
            key = f"{_where(tenant)}/row {number}"
            digest = row_digest(row)
            said[key] = row["digest"]
            there[key] = digest if digest in known.get(tenant["cut"], ()) else f"{digest}, in no cut"
    return compare("frozen usage is that of its cut", "digests", "rows", said, there)


def _where(tenant: Mapping[str, Any]) -> str:
    """What is told of a tenant's period; of what came late, by the account that is billed for it, too."""
    return "/".join(tenant[name] for name in ("tenant_id", "period", "billing_account") if name in tenant)


def _rated(pack: Pack) -> list[Check]:
    """The second rating of frozen usage; where prices hang on single events, of these, which are what was signed."""
    rated = RatedTwice()
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    events: dict[tuple[str, str, str], list[Used]] = {}
    for number, line in enumerate(pack.of(priced_events.FILE), start=1):
        digest, used = priced_events.of_pack(line)
        events[line["tenant_id"], line["period"], digest] = used
        there[f"line {number}"] = digest
    named: set[str] = set()
    for tenant in (*pack.tenants, *pack.accrued, *pack.late):
        key = _where(tenant)
        if tenant["contract"] is None:
            continue
        if priced_by_event(tenant["contract"]):
            if pack.is_without_events:
                continue
            of = tenant["tenant_id"], tenant["period"], tenant["events"]
            named.add(tenant["events"])
            said[key] = tenant["events"]
            there |= {key: tenant["events"]} if of in events else {}
            used = events.get(of, [])
        else:
            used = [frozen_as_used(row, number) for number, row in enumerate(tenant["usage"], start=1)]
        rated.add(key, tenant["contract"], used, map(_told, tenant["rated_lines"]), tenant.get("accrued_to"))
    said |= {key: digest for key, digest in there.items() if digest in named}
    return [
        compare("single events are what was signed", "accounts", priced_events.FILE, said, there),
        rated.check("second rating of frozen usage"),
    ]


def _told(line: Mapping[str, Any]) -> Told:
    counted = line["unit_price"] is not None or line["kind"] == USAGE
    quantity = Decimal(line["quantity"]) if counted else None
    charge = line["plan"], line["version"], line["charge_key"]
    names = line["model"], line["adapter"], line["region"], line["tier"]
    amount = Decimal(line["amount"])
    return Told(line["kind"], line["key"], line["tax_group"], amount, quantity, charge, line["metric"], names)


def _drafted(accounts: Iterable[Mapping[str, Any]]) -> Check:
    """What was rated is on the drafts: by account and tenant, but for credits and what came late, to them or others."""
    rated: dict[str, Decimal] = defaultdict(lambda: ZERO)
    drafted: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for account in accounts:
            for tenant in account["tenants"]:
                for sign, lines in ((1, tenant["rated_lines"]), (-1, tenant["late_lines"])):
                    for line in lines:
                        if line["billing_account"] == account["billing_account"]:
                            rated[f"{line['billing_account']}/{line['tenant_id']}"] += sign * Decimal(line["amount"])
            for document in account["documents"]:
                own = [line for line in document["lines"] if line["original_period"] == document["period"]]
                for line in own if document["kind"] == "usage" else ():
                    if line["kind"] != "credit":
                        key = f"{account['billing_account']}/{line['tenant_id']}"
                        drafted[key] += Decimal(line["amount_exact"])
    ours, theirs = ({k: Decimal(plain(v)) for k, v in each.items() if v} for each in (rated, drafted))
    return compare("rated lines are drafted", "rated lines", "lines of drafts", dict(ours), dict(theirs))


def _billed_late(pack: Pack) -> Check:
    """What documents bill of earlier periods is what these were rated at, less what others had billed of them before:
    by account, tenant, period and tax group, but for credits. In major units.

    Groups of which they bill nothing are left out: what came to them is on credit notes, or comes to nothing.
    """
    begins = parse_period(pack.month).start
    rated: dict[str, Decimal] = defaultdict(lambda: ZERO)
    billed: dict[str, Decimal] = defaultdict(lambda: ZERO)
    groups: dict[str, set[str]] = defaultdict(set)
    with exactly():
        for account in pack.accounts:
            if account["format"] in WITHOUT_LATE:
                continue
            name = account["billing_account"]
            for document in account["documents"]:
                for line in document["lines"]:
                    period, group = line["original_period"], plain_group(line["tax_group"])
                    if line["kind"] != "credit" and parse_period(period).end <= begins:
                        groups[f"{name}/{period}"].add(group)
                        billed[f"{name}/{line['tenant_id']}/{period}/{group}"] += Decimal(line["amount_exact"])
            for late in account["late"]:
                of = f"{name}/{late['tenant_id']}/{late['period']}"
                own = (line for line in late["rated_lines"] if line["billing_account"] == name)
                for sign, lines in ((1, own), (-1, late["billed_before"])):
                    for line in lines:
                        if line["tax_group"] in groups[f"{name}/{late['period']}"]:
                            rated[f"{of}/{line['tax_group']}"] += sign * Decimal(line["amount"])
    ours, theirs = ({k: Decimal(plain(v)) for k, v in each.items() if v} for each in (rated, billed))
    return compare("what came late is billed as rated", "rated, not billed before", "lines of drafts", ours, theirs)


def _chains(journals: Mapping[str, Path]) -> tuple[Check, dict[str, tuple[int, bytes]]]:
    """Whether each journal's chain is whole; where those that are end."""
    broken = []
    ends = {}
    for entity, file in journals.items():
        try:
            with file.open(encoding="utf-8", newline="\n") as lines:
                ends[entity] = verified_export(lines, name=file.name)
        except JournalBroken as error:
            broken.append(Difference(entity, "whole", str(error)))
    entries = sum(position for position, _ in ends.values())
    return Check("the journal's chain is whole", "chain", "entries", entries, tuple(broken)), ends


def _balanced(pack: Pack) -> Check:
    """The trial balance is that of the journals, and its debits are its credits."""
    rows = [row for entity in sorted(pack.journals) for row in trial_balance(entity, pack.month, pack.journal(entity))]
    sums: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for row in rows:
            sums[f"{row['legal_entity']}/{row['currency']}/sum"] += Decimal(row["balance_after"])
    there, said = signed.same_lines(BALANCE_FILE, balances_table(rows), (pack.content / BALANCE_FILE).read_bytes())
    return compare(
        "the trial balance is the journal's", "trial balance", "journal", said | dict.fromkeys(sums, ZERO), there | sums
    )


def _accrued(pack: Pack) -> Check:
    """What was rated up to the cut is what accruals of that period moved, by tenant: of periods that go on all of them
    up to the month."""
    ratings: dict[tuple[str, str], int] = {}
    rated: dict[str, Decimal] = defaultdict(lambda: ZERO)
    booked: dict[str, Decimal] = defaultdict(lambda: ZERO)
    # With each account that pays for it a tenant is there as a whole: it counts once, as it was rated last
    listed = sorted([*pack.tenants, *pack.accrued], key=lambda t: int(t["rating_no"]))
    with exactly():
        for tenant in {(t["tenant_id"], t["period"]): t for t in listed}.values():
            ratings[tenant["tenant_id"], tenant["period"]] = int(tenant["rating_no"])
            for line in tenant["rated_lines"]:
                rated[f"{_where(tenant)}/{line['currency']}"] += Decimal(line["amount"])
        for entry in (line["entry"] for entity in pack.journals for line in pack.journal(entity) if "entry" in line):
            source = entry["source"]
            if entry["kind"] != "accrual" or (entry["original_period"] or entry["accounting_period"]) > pack.month:
                continue
            if int(source["rating_no"]) > ratings.get((source["tenant_id"], source["period"]), 0):
                continue  # of what is not here, or came after the cut
            for leg in entry["legs"]:
                if leg["code"] == ACCRUED:
                    booked[f"{leg['subledger']}/{source['period']}/{leg['currency']}"] += Decimal(leg["amount"])
    ours, theirs = ({k: Decimal(plain(v)) for k, v in each.items() if v} for each in (rated, booked))
    return compare("rated lines are accrued", "rated lines", f"journal {ACCRUED}", dict(ours), dict(theirs))
