"""`tollbook events`: send usage events, check them, look at what was refused."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from billing.periods import parse_period
from console import session
from console.output import AsCsv, AsJson, document, err, listing, out
from console.progress import LINE_EVERY_S
from serving_adapter import ingest as ingesting
from serving_adapter.producer import EventProducer
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import USAGE
from streams.errors import NotReleased
from streams.ingest.release import Releaser
from streams.schema import check
from streams.usage import quarantine as quarantines
from streams.usage.quarantine import Reason

if TYPE_CHECKING:
    from streams.retention.archive import DayToWrite

app = typer.Typer(
    help="Send usage events, check them, look at what was refused.", no_args_is_help=True, add_completion=False
)
quarantine = typer.Typer(help="Messages that were refused, kept whole.", no_args_is_help=True, add_completion=False)
app.add_typer(quarantine, name="quarantine")

EventFile = Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, one event a line; - for standard input.")]
BAD_LINES_SHOWN = 50


@app.command()
def validate(file: EventFile, as_json: AsJson = False) -> None:
    """Check each line of a file; name line, field and reason of the bad ones. Sends nothing."""
    with _lines(file) as lines:
        result = ingesting.validate(lines)
    _report(result, "valid", as_json)


@app.command()
def ingest(
    file: EventFile,
    raw: Annotated[bool, typer.Option("--raw", help="Send each line as it is; the streams judge it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a file to Kafka. Bad lines are named and left out, the good ones sent. Safe to repeat."""
    kafka = session.kafka()
    with _lines(file) as lines, _progress() as progress:
        producer = EventProducer(kafka, USAGE.name(kafka.topic_prefix))
        if raw:
            result = ingesting.ingest_raw(lines, producer, progress=progress)
        else:
            result = ingesting.ingest(
                lines, producer, source=f"file:{session.shown(Path(file.name))}", progress=progress
            )
    _report(result, "sent", as_json)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on. Keys go over it: TLS ends in a proxy before it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8710,
    dev: session.Dev = False,
) -> None:
    """Take events over HTTP (POST /v1/events, CloudEvents) from emitters that have a key. Stop with Ctrl-C."""
    from streams.http.event_server import serve as serve_events  # half a second to import

    kafka, database = session.kafka(), session.database()
    require_fit(kafka, USAGE, development=dev)
    check(database.url)
    serve_events(kafka, database, host=host, port=port, say=lambda text: err.print(text, soft_wrap=True))


@app.command("archive")
def archive_events(
    period: Annotated[str, typer.Option(help="2026-10, 2026-Q4, 2026 or 2026-10-17..2026-11-17 (UTC).")],
    actor: session.Actor,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write the raw events of a period to TOLLBOOK_ARCHIVE, a day at a time, each read back and compared.

    Drops nothing: `streams retain` does, once the period is closed and behind the horizon. Safe to repeat; a day that
    is there unchanged is only verified.
    """
    from streams.retention import archive

    asked = parse_period(period)
    with session.connection() as connection:
        if dry_run:
            days = archive.days_to_write(connection, session.archive(), asked.start, asked.end)
            _say_what_would_be_written(days, as_json)
            return
        found = archive.archive_days(
            connection, session.archive(), asked.start, asked.end, actor=actor, progress=lambda text: err.print(text)
        )
    if as_json:
        document({"days": [asdict(day) for day in found]})
        return
    rows, new = sum(day.rows for day in found), sum(day.changed for day in found)
    out.print(f"{rows:,} events of {len(found)} days are in the archive ({new} days written now)")


def _say_what_would_be_written(days: Sequence[DayToWrite], as_json: bool) -> None:
    if as_json:
        document({"days": [asdict(day) for day in days]})
        return
    missing = [day for day in days if not day.there]
    for day in missing:
        err.print(f"{day.day}: {day.rows:,} events")
    rows = sum(day.rows for day in missing)
    out.print(f"{rows:,} events of {len(missing)} days would be written; {len(days) - len(missing)} days are there")


@app.command("recall")
def recall_events(
    actor: session.Actor,
    period: Annotated[str | None, typer.Option(help="Whose dropped raw events to bring back.")] = None,
    end: Annotated[bool, typer.Option("--end", help="Take away again all that was recalled.")] = False,
    dry_run: session.DryRun = False,
) -> None:
    """Bring archived raw events back into the database, to rate, rebuild or dispute them again; and take them away."""
    from streams.retention import archive

    if bool(period) == end:
        raise typer.BadParameter("give --period, or --end")
    with session.owner_connection() as connection:
        if period is None:
            with session.change(connection, dry_run):
                days_gone = archive.let_go(connection, actor=actor)
            out.print(f"{days_gone} recalled days {'would be' if dry_run else 'are'} taken away")
            return
        asked = parse_period(period)
        if dry_run:
            due = archive.recallable(connection, asked.start, asked.end)
            out.print(f"{len(due)} days with {sum(day.rows for day in due):,} events would be recalled")
            return
        days = archive.recall(
            connection, session.archive(), asked.start, asked.end, actor=actor, progress=lambda text: err.print(text)
        )
    out.print(f"{len(days)} days are recalled; `tollbook events recall --end` takes them away again")


@quarantine.command("list")
def list_quarantine(
    reason: Annotated[Reason | None, typer.Option(help="Only this reason.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Released and discarded ones as well.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """The latest refused messages that wait, newest first, with what each may be worth; `show` has the message."""
    with session.connection() as connection:
        found = quarantines.listing(connection, reason=reason, tenant_id=tenant, resolved=all_, limit=limit)
    rows = [asdict(row) for row in found]
    columns: tuple[str, ...] = ("quarantine_id", "reason", "tenant_id", "estimated_value", "currency", "detail")
    columns += ("not_estimable", "source", "position", "quarantined_at", *(("outcome", "resolved_by") if all_ else ()))
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="the quarantine is empty")


@quarantine.command("show")
def show_quarantine(quarantine_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """One refused message, whole."""
    with session.connection() as connection:
        found = quarantines.get(connection, quarantine_id)
    if found is None:
        err.print(f"tollbook: there is no quarantined message {quarantine_id}")
        raise typer.Exit(1)
    row, message = found
    document(
        asdict(row)
        | {
            "key": message.key,
            "message": message.value,
            "headers": [{"name": name, "value": value} for name, value in message.headers],
        }
    )


@quarantine.command("release")
def release_quarantine(
    actor: session.Actor,
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID…]")] = None,
    reason: Annotated[Reason | None, typer.Option(help="All that wait for this reason.")] = None,
    tenant: Annotated[str | None, typer.Option(help="All that wait of this tenant.")] = None,
    dry_run: session.DryRun = False,
) -> None:
    """Apply messages again, once their cause is mended. Those that would be refused again stay. Safe to repeat."""
    if bool(ids) == bool(reason or tenant):
        raise typer.BadParameter("name ids, or choose by --reason and --tenant")
    released = refused = 0
    with session.connection() as connection:
        releaser = Releaser(connection)
        for quarantine_id in ids or quarantines.waiting_ids(connection, reason=reason, tenant_id=tenant):
            try:
                with session.change(connection, dry_run):
                    done = releaser.release(quarantine_id, actor=actor)
                released += 1
                out.print(f"{quarantine_id}: {'duplicate' if done.duplicate else 'applied'}")
            except NotReleased as error:
                refused += 1
                err.print(str(error), soft_wrap=True)
    out.print(f"{released} {'would be released' if dry_run else 'released'}, {refused} not")
    if refused:
        raise typer.Exit(1)


@quarantine.command("discard")
def discard_quarantine(
    ids: Annotated[list[int], typer.Argument(metavar="ID…")],
    actor: session.Actor,
    reason: Annotated[str, typer.Option(help="Why these are never to count; goes to the audit log.")] = "",
    dry_run: session.DryRun = False,
) -> None:
    """Decide that messages are never to count. They stay stored."""
    if not reason.strip():
        raise typer.BadParameter("--reason is needed: it goes to the audit log")
    with session.connection() as connection, session.change(connection, dry_run):
        releaser = Releaser(connection)
        for quarantine_id in ids:
            releaser.discard(quarantine_id, actor=actor, reason=reason)
    out.print(f"{len(ids)} {'would be discarded' if dry_run else 'discarded'}")


@contextmanager
def _lines(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"cannot read {session.shown(file)}: {error.strerror}") from None
    with opened:
        yield opened


@contextmanager
def _progress() -> Iterator[ingesting.Progress]:
    if not err.is_terminal:
        yield _plain_progress()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("sending")
        yield lambda lines: bar.update(task, description=f"sending, {lines:,} lines")


def _plain_progress() -> ingesting.Progress:
    """A line at most every LINE_EVERY_S seconds."""
    told = time.monotonic()

    def tell(lines: int) -> None:
        nonlocal told
        if time.monotonic() - told >= LINE_EVERY_S:
            told = time.monotonic()
            err.print(f"  sending: {lines:,} lines")

    return tell


def _report(result: ingesting.IngestResult, done: str, as_json: bool) -> None:
    """What became of the file; exit code 1 if there were bad lines."""
    good = result.lines - len(result.bad)
    if as_json:
        document({"lines": result.lines, done: good, "bad": [asdict(bad) for bad in result.bad]})
    else:
        for bad in result.bad[:BAD_LINES_SHOWN]:
            out.print(f"line {bad.line}: {bad.field + ': ' if bad.field else ''}{bad.detail} ({bad.reason})")
        if len(result.bad) > BAD_LINES_SHOWN:
            out.print(f"… and {len(result.bad) - BAD_LINES_SHOWN} more; --json lists all")
        out.print(f"{good:,} of {result.lines:,} lines {done}, {len(result.bad):,} refused")
    if result.bad:
        raise typer.Exit(1)
