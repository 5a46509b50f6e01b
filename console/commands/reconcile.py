"""`tollbook reconcile`: do all records agree? What was found, and is it healed?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import psycopg
import typer

from billing.periods import parse_period
from console import findings_shown, session, witnesses
from console.output import AsCsv, AsJson, document, err, listing, out, problems
from reconciliation.errors import MaterialUnreadable
from reconciliation.findings import finding_store
from reconciliation.findings.finding import Kind
from reconciliation.findings.look import FURTHEST, AdmissionLog, look
from reconciliation.period import PeriodReport, reconcile_period
from reconciliation.replay import log_source
from streams.errors import DatabaseUnavailable

app = typer.Typer(help="Do all records agree?", no_args_is_help=True, add_completion=False)
LOOKED_BACK: Final = 8
"""Days: a week and what may still be under way of the day before."""
AGAIN_AFTER_S: Final = 60
"""After a look for which the database was not there, or the log: its files may be rotated away as they are read."""
LOOKED_BACK_DAILY: Final = FURTHEST.days
"""Days: as long as late usage may still come to a month (docs/late-usage.md)."""


@app.callback()
def _group() -> None:
    """Do all records agree?"""


@app.command()
def run(
    period: Annotated[
        str | None, typer.Argument(metavar="[PERIOD]", help="Compare a month's records, e.g. 2026-10.")
    ] = None,
    stripe: Annotated[bool, typer.Option(help="Compare with Stripe as well.")] = True,
    kafka: Annotated[bool, typer.Option(help="Compare with the end of the topic as well.")] = True,
    days: Annotated[int, typer.Option(min=1, max=400, help="Look at raw events so far back.")] = LOOKED_BACK,
    begin: Annotated[str | None, typer.Option("--from", help="Look at raw events from here on instead.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Up to here.")] = None,
    admission_log: Annotated[
        str | None,
        typer.Option(help="A gateway's log as a witness: a folder, a file, or s3://bucket/prefix; with --mapping."),
    ] = None,
    mapping: Annotated[Path | None, typer.Option(help="How the log's lines become events (docs/replay.md).")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look each hour, and once a day further back, until stopped.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks of --watch.")] = 3600,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Look for what does not agree, and write it down, once, until it is healed. Exit code 1 while any is open.

    With a PERIOD: compare messages, events, windows, rated lines, ledger, invoices and Stripe of it, stage by stage;
    exit code 1 on any difference. CSV has the differences, JSON the checks as well.
    """
    if period is not None:
        _compare(period, stripe=stripe, kafka=kafka, as_json=as_json, as_csv=as_csv)
        return
    if bool(admission_log) != bool(mapping):
        raise typer.BadParameter("--admission-log and --mapping go together")
    ended = threading.Event()
    looked_on: date | None = None
    while True:
        today, wait_s = session.clock(None).date(), every
        back = days_back(days, today, looked_on) if watch else days
        try:
            found = _look(back, begin, end, admission_log, mapping, as_json=as_json, as_csv=as_csv)
        except (DatabaseUnavailable, psycopg.OperationalError, MaterialUnreadable) as error:
            if not watch:
                raise
            wait_s = min(every, AGAIN_AFTER_S)
            err.print(f"tollbook: {error}; the next look is in {wait_s:g} s")
        else:
            looked_on = today
            if not watch:
                if found:
                    raise typer.Exit(1)
                return
        try:
            ended.wait(wait_s)
        except KeyboardInterrupt:
            return


def days_back(days: int, today: date, looked_on: date | None) -> int:
    """How far back a look of a watch goes, in days: the first one of each UTC day goes further."""
    return days if looked_on == today else max(days, LOOKED_BACK_DAILY)


@app.command("list")
def list_findings(
    all_: Annotated[bool, typer.Option("--all", help="Healed and settled ones as well.")] = False,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """What was found and is not healed, the newest first."""
    with session.connection() as connection:
        found = finding_store.listed(connection, healed=all_, kind=kind, limit=limit)
    findings_shown.table(found, as_json=as_json, as_csv=as_csv)


@app.command("show")
def show_finding(number: Annotated[int, typer.Argument(metavar="NO")], as_json: AsJson = False) -> None:
    """One finding: its cause, its size by tenant and model, and how it went."""
    with session.connection() as connection:
        found = finding_store.require(connection, number)
        history = finding_store.history(connection, found.finding_id)
    findings_shown.whole(found, history, as_json=as_json)


@app.command()
def settle(
    number: Annotated[int, typer.Argument(metavar="NO")],
    actor: session.Actor,
    reason: Annotated[str, typer.Option(help="Why it may stay; goes to the audit log.")],
    dry_run: session.DryRun = False,
) -> None:
    """Let a finding stay that no look will find gone: what was counted at wrong times, what was mended by hand."""
    with session.connection() as connection, session.change(connection, dry_run):
        found = finding_store.require(connection, number)
        finding_store.settle(connection, found, session.clock(None), reason=reason, actor=actor)
    out.print(f"finding {number} {'would be' if dry_run else 'is'} settled")


def _look(
    days: int,
    begin: str | None,
    end: str | None,
    log: str | None,
    mapping: Path | None,
    *,
    as_json: bool,
    as_csv: bool,
) -> bool:
    """Look once and show it; whether anything is open."""
    now = session.clock(None)
    until = session.moment(end) if end else now
    since = session.moment(begin) if begin else until - timedelta(days=days)
    if since >= until:
        raise typer.BadParameter("--from must lie before --to")
    with session.connection() as connection:
        done = look(connection, since, until, now, admitted=_admitted(log, mapping))
        found = finding_store.listed(connection)
    if as_json and done.by_hour is not None:
        document(
            {"witnesses": done.witnesses, "findings": findings_shown.documents(found)}
            | {"by_hour": findings_shown.hours_document(done.by_hour)}
        )
        return bool(found)
    if as_json or as_csv:
        findings_shown.table(found, as_json=as_json, as_csv=as_csv)
        return bool(found)
    out.print(f"looked at events from {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}; {done.witnesses}")
    findings_shown.table(found, as_json=False, as_csv=False)
    if done.by_hour is not None:
        findings_shown.hours(done.by_hour)
    written = done.written
    out.print(
        f"{len(found)} open: {len(written.new)} new, {len(written.changed)} changed; {len(written.healed)} healed",
        style="bold",
    )
    return bool(found)


def _admitted(log: str | None, mapping: Path | None) -> AdmissionLog | None:
    if log is None or mapping is None:
        return None
    read = log_source.mapping_of(session.read_text(mapping), str(mapping))
    return AdmissionLog(read.log, log_source.logged(log, read))


def _compare(period: str, *, stripe: bool, kafka: bool, as_json: bool, as_csv: bool) -> None:
    parsed = parse_period(period)
    gateway = session.stripe() if stripe else None
    log = session.usage_log if kafka else None
    left_out = [name for name, looked_at in (("Stripe", stripe), ("Kafka's end", kafka)) if not looked_at]
    with session.engine() as engine:
        report = reconcile_period(engine, period=parsed, now=session.clock(None), gateway=gateway, log=log)
    if as_json:
        checks = [asdict(check) | {"agrees": check.agrees} for check in report.checks]
        document(
            {"period": period, "agrees": report.agrees, "left_out": left_out, "checks": checks}
            | {"engines": witnesses.as_document(report.engines)}
        )
    elif as_csv:
        listing(differences(report), ("check", "key", "left", "right"), as_csv=True)
    else:
        show(report, left_out)
    if not report.agrees:
        raise typer.Exit(1)


def differences(report: PeriodReport) -> list[dict[str, Any]]:
    """Every difference with the check that found it."""
    return [{"check": check.name} | asdict(found) for check in report.checks for found in check.differences]


def show(report: PeriodReport, left_out: Sequence[str]) -> None:
    """The report for people: one line a check, then the differences, and what was not looked at."""
    rows = [
        {"check": c.name, "between": f"{c.left} / {c.right}", "compared": c.compared, "differences": len(c.differences)}
        for c in report.checks
    ]
    listing(rows, ("check", "between", "compared", "differences"), title=f"Reconciliation of {report.period.name}")
    problems([f"{check.name}: {d.key}: {d.left} / {d.right}" for check in report.checks for d in check.differences])
    witnesses.show(report.engines)
    verdict = "everything agrees" if report.agrees else "NOT everything agrees"
    out.print(verdict + (f", {' and '.join(left_out)} not looked at" if left_out else ""), style="bold")
