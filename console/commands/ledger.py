"""`tollbook ledger`: the books."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer

from billing.commands.export_beancount import export_beancount
from billing.commands.seal_journal import seal_journals
from billing.commands.show_journal import journal_entries, whole_journal
from billing.commands.trial_balance import account_balances, trial_balance
from billing.commands.verify_journal import export_chain, verify_journals
from billing.errors import JournalBroken
from billing.ledger.journal import ACCOUNTS
from billing.ledger.journal_chain import BookedEntry, verified_export
from billing.ledger.ledger_store import PAGE_MAX, Wanted
from billing.money import plain
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.posting.manual_entries import read_entry
from billing.posting.proposal_store import ProposalKind
from console import session
from console.output import AsCsv, AsJson, cell, document, end_with, err, listing, out
from console.proposing import propose

app = typer.Typer(help="The double-entry journal.", no_args_is_help=True, add_completion=False)

ACCOUNT_COLUMNS: Final = ("account_id", "code", "name", "type", "normal_side", "currency", "subledger", "balance")
LEG_COLUMNS: Final = (
    "entry_id", "effective_at", "kind", "accounting_period", "code", "name", "subledger", "currency", "debit", "credit",
    "idempotency_key",
)  # fmt: skip

Entity = Annotated[str, typer.Option("--legal-entity", help="Whose books.")]
Period = Annotated[str | None, typer.Option(help="One accounting period, e.g. 2026-10; default: all.")]
Effective = Annotated[
    str | None, typer.Option("--as-of", metavar="TIME", help="Only what is effective before this RFC 3339 time.")
]
Booked = Annotated[
    str | None,
    typer.Option("--booked-as-of", metavar="TIME|SEAL", help="Only what was sealed by this time, or with this seal."),
]
Account = Annotated[
    str | None, typer.Option(metavar="CODE[:SUBLEDGER]", help="One account, e.g. 4000 or 1150:tenant_003.")
]
Limit = Annotated[int, typer.Option(min=1, max=PAGE_MAX, help="How many at most.")]


class Format(StrEnum):
    """What `export` writes."""

    JSONL = "jsonl"
    BEANCOUNT = "beancount"
    CSV = "csv"


@app.callback()
def _group() -> None:
    """The double-entry journal."""


@app.command("trial-balance")
def show_trial_balance(
    period: Period = None,
    as_of: Effective = None,
    booked_as_of: Booked = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Every account's balance; debit and credit must be equal. Exit code 1 if they are not."""
    if period is not None and (as_of, booked_as_of) != (None, None):
        raise typer.BadParameter("--period goes with neither --as-of nor --booked-as-of")
    with session.engine() as engine:
        found = trial_balance(
            engine,
            legal_entity=legal_entity,
            accounting_period=_month(period),
            as_of=_time(as_of),
            booked_as_of=_booked(booked_as_of),
        )
    rows: list[dict[str, Any]] = [asdict(row) for row in found.rows]
    if as_json:
        totals = {code: {"debit": debit, "credit": credit} for code, (debit, credit) in found.totals.items()}
        document(
            {
                "legal_entity": legal_entity,
                "accounting_period": period,
                "as_of": found.as_of.effective,
                "seal_no": found.as_of.seal_no,
                "rows": rows,
                "totals": totals,
                "balanced": found.balanced,
            }
        )
    else:
        for currency, (debit, credit) in found.totals.items():
            rows.append({"code": "", "name": "total", "currency": currency, "debit": debit, "credit": credit})
        shown = [
            row | {"code": str(row["code"]), "debit": amount(row["debit"]), "credit": amount(row["credit"])}
            for row in rows
        ]
        listing(shown, ("code", "name", "currency", "debit", "credit"), as_csv=as_csv, empty="the journal is empty")
    if not found.balanced:
        err.print("tollbook: debit and credit differ")
        raise typer.Exit(1)


@app.command()
def accounts(
    account: Account = None,
    as_of: Effective = None,
    booked_as_of: Booked = None,
    limit: Limit = 100,
    after: Annotated[int | None, typer.Option(help="Begin after the account with this id.")] = None,
    chart: Annotated[bool, typer.Option("--chart", help="The chart of accounts itself.")] = False,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Accounts with their balances, debit positive; page by page."""
    if chart:
        rows: list[dict[str, Any]] = [
            {
                "code": str(known.code), "name": known.name.lower(), "type": known.type.value,
                "normal_side": known.normal_side.value, "kept_per": known.subledger.value,
                "whole_quanta": known.in_quanta,
            }
            for known in ACCOUNTS.values()
        ]  # fmt: skip
        columns = ("code", "name", "type", "normal_side", "kept_per", "whole_quanta")
        listing(rows, columns, as_json=as_json, as_csv=as_csv)
        return
    code, subledger = _account(account)
    with session.engine() as engine:
        found = account_balances(
            engine,
            legal_entity=legal_entity,
            as_of=_time(as_of),
            booked_as_of=_booked(booked_as_of),
            code=code,
            subledger=subledger,
            after=after,
            limit=limit,
        )
    rows = [
        {
            "account_id": str(one.account_id), "code": str(one.account.code), "name": one.account.name.lower(),
            "type": one.account.type.value, "normal_side": one.account.normal_side.value, "currency": one.currency,
            "subledger": one.subledger, "balance": Decimal(plain(one.amount)),
        }
        for one in found
    ]  # fmt: skip
    listing(rows, ACCOUNT_COLUMNS, as_json=as_json, as_csv=as_csv, empty="no account was moved by then")
    if len(found) == limit:
        err.print(f"tollbook: there may be more: --after {found[-1].account_id}")


@app.command()
def entries(
    period: Period = None,
    account: Account = None,
    kind: Annotated[str | None, typer.Option(help="One kind, e.g. accrual or invoice.")] = None,
    key: Annotated[str | None, typer.Option(help="The entry with this idempotency key.")] = None,
    as_of: Effective = None,
    booked_as_of: Booked = None,
    limit: Limit = 100,
    after: Annotated[int, typer.Option(help="Begin after the entry with this id.")] = 0,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Journal entries with all their legs, page by page; a row is a leg, a JSON object an entry."""
    code, subledger = _account(account)
    wanted = Wanted(
        legal_entity,
        accounting_period=_month(period),
        code=code,
        subledger=subledger,
        kind=kind,
        key=key,
        after=after,
        limit=limit,
    )
    with session.engine() as engine:
        found = journal_entries(engine, wanted, as_of=_time(as_of), booked_as_of=_booked(booked_as_of))
    if as_json:
        document([one.content() for one in found])
    else:
        listing(list(_legs(found)), LEG_COLUMNS, as_csv=as_csv, empty="no such entry")
    if len(found) == limit:
        err.print(f"tollbook: there may be more: --after {found[-1].entry_id}")


@app.command()
def seal(as_json: AsJson = False) -> None:
    """Give what is booked its place in the hash chain. Safe to repeat; `close run` does it too."""
    with session.engine() as engine:
        found = seal_journals(engine)
    if as_json:
        document([asdict(one) | {"chain_hash": one.chain_hash.hex()} for one in found])
        return
    for one in found:
        out.print(
            f"{one.legal_entity}: {one.sealed:,} entries sealed now, {one.entries:,} in all with seal {one.seal_no}"
            + (f"; {one.waiting:,} wait for transactions to end" if one.waiting else "")
        )
        out.print(f"  chain hash {one.chain_hash.hex()}", soft_wrap=True)


@app.command()
def verify(
    export: Annotated[
        Path | None, typer.Option(help="An export to verify by itself, without the database.", dir_okay=False)
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="The chain hash that the export must end with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the hash chain; names the first entry that is not what was sealed. Exit code 1 if there is one."""
    if export is not None:
        _verify_export(export, head, as_json)
        return
    if head is not None:
        raise typer.BadParameter("--head goes with --export")
    with session.engine() as engine:
        found = verify_journals(engine)
    if as_json:
        document([asdict(one) | {"chain_hash": one.chain_hash.hex()} for one in found])
    else:
        for one in found:
            if one.broken is None:
                out.print(
                    f"{one.legal_entity}: {one.entries:,} sealed entries are what was sealed"
                    f" ({one.snapshots} kept balances agree, {one.waiting:,} entries are not sealed yet)"
                )
                out.print(f"  chain hash {one.chain_hash.hex()}", soft_wrap=True)
    broken = [f"{one.legal_entity}: {one.broken}" for one in found if one.broken is not None]
    end_with(broken)


@app.command("export")
def export_journal(
    format_: Annotated[Format, typer.Option("--format", help="jsonl: sealed entries with the chain.")],
    output: Annotated[Path | None, typer.Option("--out", help="A file; default: standard output.")] = None,
    as_of: Effective = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
) -> None:
    """Write the journal for others: canonical JSON lines that `verify --export` follows, a Beancount ledger, or CSV."""
    if format_ is Format.JSONL and as_of is not None:
        raise typer.BadParameter("--as-of goes with --format beancount or csv: a chain is exported from its beginning")
    with session.engine() as engine, _writing(output) as file:
        if format_ is Format.JSONL:
            file.writelines(export_chain(engine, legal_entity=legal_entity))
        elif format_ is Format.CSV:
            table = csv.DictWriter(file, LEG_COLUMNS, lineterminator="\n")
            table.writeheader()
            for row in _legs(whole_journal(engine, legal_entity=legal_entity, as_of=_time(as_of))):
                table.writerow({name: cell(value) for name, value in row.items()})
        else:
            file.writelines(export_beancount(engine, legal_entity=legal_entity, as_of=_time(as_of)))


@app.command()
def post(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")],
    actor: session.Actor,
    paper: Annotated[str, typer.Option("--document", help="What the entry rests on.")],
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    dry_run: session.DryRun = False,
) -> None:
    """Propose a journal entry by hand: YAML with effective_at, memo, legs. Another person approves it.

    A leg has account, currency, amount (a text, debit positive) and, where the account is kept per something,
    subledger. `kind: prior_period_adjustment` books into a closed month.
    """
    content = read_entry(session.read_text(file), file=file.name)
    propose(ProposalKind.POST_ENTRY, legal_entity, content, paper, actor, dry_run)


@app.command()
def close(
    month: session.Month,
    actor: session.Actor,
    paper: Annotated[str, typer.Option("--document", help="What the close rests on, such as a reconciliation.")],
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    dry_run: session.DryRun = False,
) -> None:
    """Propose to close the book of a month in which nobody is billed, for good. Another person approves it.

    Where billing accounts take part, `close run` closes the book once its gates are green.
    """
    propose(ProposalKind.CLOSE_BOOK, legal_entity, {"month": _month(month)}, paper, actor, dry_run)


def _legs(entries: Iterable[BookedEntry]) -> Iterator[dict[str, Any]]:
    """Entries as rows, leg by leg."""
    for one in entries:
        for leg in one.legs:
            yield {
                "entry_id": str(one.entry_id), "effective_at": one.effective_at, "kind": one.kind,
                "accounting_period": one.accounting_period, "code": str(leg.code),
                "name": ACCOUNTS[leg.code].name.lower(), "subledger": leg.subledger, "currency": leg.currency,
                "debit": amount(max(leg.amount, Decimal(0))), "credit": amount(max(-leg.amount, Decimal(0))),
                "idempotency_key": one.idempotency_key,
            }  # fmt: skip


def amount(value: Decimal) -> Decimal | None:
    """As short as it can be written; zero is shown as an empty cell."""
    return Decimal(plain(value)) if value else None


def _verify_export(file: Path, head: str | None, as_json: bool) -> None:
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            length, found = verified_export(lines, name=session.shown(file))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {session.shown(file)}: {error}") from None
    if head is not None and found.hex() != head.strip().lower():
        raise JournalBroken(f"{session.shown(file)} is a whole chain of {length} entries, but ends with {found.hex()}")
    if as_json:
        document({"entries": length, "chain_hash": found.hex()})
    else:
        out.print(f"{length:,} entries, whole and unchanged")
        out.print(f"  chain hash {found.hex()}", soft_wrap=True)


@contextmanager
def _writing(file: Path | None) -> Iterator[TextIO]:
    if file is None:
        yield sys.stdout
        return
    try:
        opened = file.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise typer.BadParameter(f"cannot write {session.shown(file)}: {error}") from None
    with opened:
        yield opened


def _month(period: str | None) -> str | None:
    return None if period is None else session.month_of(period, "the books are kept by the month").name


def _time(given: str | None) -> datetime | None:
    return None if given is None else session.clock(given)


def _booked(given: str | None) -> datetime | int | None:
    if given is None or not given.isascii() or not given.isdecimal():
        return _time(given)
    if len(given) > 9:
        raise typer.BadParameter(f"{given} is no number of a seal")
    return int(given)


def _account(given: str | None) -> tuple[int | None, str | None]:
    if given is None:
        return None, None
    code, _, subledger = given.partition(":")
    if not code.isascii() or not code.isdecimal() or int(code[:9]) not in ACCOUNTS:
        raise typer.BadParameter(f"{given}: no account of the chart; see `tollbook ledger accounts --chart`")
    return int(code), subledger or None
