"""`tollbook streams`: from Kafka into the windows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_args

import psycopg
import typer
from rich.text import Text

from console import session, streams_status
from console.output import AsCsv, AsJson, document, err, listing, out
from serving_adapter.errors import KafkaUnavailable
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import REPLICAS, USAGE
from streams.completeness import completeness_store, number_store
from streams.database import is_passing
from streams.errors import DatabaseUnavailable
from streams.http.listening import listen as listen_on
from streams.http.listening import url_of
from streams.ingest import log_proof, resolving
from streams.ingest.logs import Log
from streams.ingest.sources import Feed
from streams.retention import archive, chunk_intervals, hypertables, retention_store
from streams.retention.expiry import Forgotten, Retention
from streams.rules import ingest_rules
from streams.rules.windows import WINDOW_SUMS
from streams.schema import check
from streams.settings import CHUNK_MESSAGES, DatabaseSettings, RetentionSettings
from streams.usage import rebuild as rebuilding
from streams.workers.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from streams.workers.consumer import BareConsumer
    from streams.workers.worker import StreamsWorker

Reader = Literal["faust", "bare"]
HEALTH_BACKLOG: Final = 64
"""Probes and scrapers that may wait to be let in."""

START_AGAIN_S: Final = 2.0
"""A worker that found no Kafka or no database tries again after this."""
WATCH_EVERY_S: Final = 2.0
STEP_AGAIN_S: Final = 0.5

MINUTE: Final = timedelta(minutes=1)
app = typer.Typer(help="From Kafka into the windows.", no_args_is_help=True, add_completion=False)


@app.command()
def run(
    drain: Annotated[bool, typer.Option("--drain", help="Stop when all that is in the topic now is applied.")] = False,
    chunk: Annotated[int, typer.Option(min=1, max=10_000, help="Messages a transaction, at most.")] = CHUNK_MESSAGES,
    dev: session.Dev = False,
    instance: Annotated[
        str | None, typer.Option(help="This worker's own name: restarted, it has its partitions back at once.")
    ] = None,
    reader: Annotated[
        Reader, typer.Option(help="What reads Kafka. A group's workers must all use the same.")
    ] = "faust",
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Answer /healthz, /readyz and /metrics there; :PORT is 127.0.0.1."),
    ] = None,
) -> None:
    """Run a worker. Start as many as there are cores; stop with Ctrl-C: the chunk in hand is finished first."""
    address = _address(listen) if listen is not None else None
    kafka, database = session.kafka(), session.database()
    metrics = WorkerMetrics() if address else None

    def made() -> StreamsWorker | BareConsumer:
        for topic in (USAGE, REPLICAS):
            require_fit(kafka, topic, development=dev)
        check(database.url)
        return _reader(reader)(
            kafka, database, drain=drain, chunk_messages=chunk, instance=instance, say=_say, observer=metrics
        )

    worker = made() if drain else _as_soon_as_there(made)
    with _served(worker, metrics, database, address):
        tally = worker.run()
    out.print(
        f"applied {tally.applied:,}, duplicates {tally.duplicates:,}, quarantined {tally.quarantined:,}"
        f" in {tally.chunks:,} chunks"
    )
    if tally.stopped:
        raise typer.Exit(1)


def _as_soon_as_there(
    made: Callable[[], StreamsWorker | BareConsumer],
) -> StreamsWorker | BareConsumer:
    """The worker, once Kafka and the database answer: whoever starts everything at once need not know the order."""
    said = ""
    while True:
        try:
            return made()
        except (KafkaUnavailable, DatabaseUnavailable, psycopg.OperationalError) as error:
            why = str(error).splitlines()[0]
            if why != said:
                _say(f"{why}; waiting for it (Ctrl-C ends)")
            said = why
            time.sleep(START_AGAIN_S)


def _say(text: str) -> None:
    err.print(text, markup=False, soft_wrap=True)


def _reader(name: Reader) -> type[StreamsWorker] | type[BareConsumer]:
    if name == "bare":
        from streams.workers.consumer import BareConsumer

        return BareConsumer
    from streams.workers.worker import StreamsWorker  # Faust takes a second to import

    return StreamsWorker


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT, :PORT or [HOST]:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise typer.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9100")
    return host.strip("[]") or "127.0.0.1", int(port)


@contextlib.contextmanager
def _served(
    worker: StreamsWorker | BareConsumer,
    metrics: WorkerMetrics | None,
    database: DatabaseSettings,
    address: tuple[str, int] | None,
) -> Iterator[None]:
    """Inside the block health and metrics are served, if asked for."""
    if metrics is None or address is None:
        yield
        return
    from streams.workers.worker_server import WorkerServer, served  # uvicorn takes a while to import

    listener = listen_on(*address, backlog=HEALTH_BACKLOG)
    with served(WorkerServer(worker.ingestion, worker.signs, metrics, database), listener):
        _say(f"health and metrics: {url_of(listener)}")
        yield


Watch = Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds, on a terminal, until Ctrl-C.")]


@app.command("status")
def show_status(
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    watch: Watch = False,
    tenant: Annotated[str | None, typer.Option(help="Also up to when this tenant's usage is complete.")] = None,
) -> None:
    """How far everything is: lag, rate and counts by partition, quarantine, complete-to, gaps, boots, witnesses."""
    if watch and (as_json or as_csv or not out.is_terminal):
        raise typer.BadParameter("--watch is for a terminal, without --json and --csv")
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(tenant)
    else:
        with session.connection() as connection:
            streams_status.show(connection, _logs(), tenant, as_json=as_json, as_csv=as_csv)


def _watch(tenant: str | None) -> None:
    """Show it again and again, over a connection of its own each time: an outage is shown, and passes."""
    while True:
        with out.capture() as captured:
            try:
                with session.connection() as connection:
                    streams_status.show(connection, _logs(), tenant)
            except (psycopg.Error, DatabaseUnavailable, KafkaUnavailable) as error:
                if not (isinstance(error, KafkaUnavailable) or is_passing(error)):
                    raise
                out.print(f"{str(error).splitlines()[0]}; asked again", markup=False, soft_wrap=True)
        out.clear()
        out.print(Text.from_ansi(captured.get()))
        time.sleep(WATCH_EVERY_S)


def _logs() -> dict[Feed, Log]:
    return {feed: session.feed_log(feed) for feed in get_args(Feed)}


@app.command("write-off")
def write_off(
    replica_id: Annotated[str, typer.Argument(metavar="REPLICA")],
    boot_id: Annotated[str, typer.Argument(metavar="BOOT")],
    reason: Annotated[str, typer.Option(help="Why nothing more will come of this boot; goes to the audit log.")],
    actor: session.Actor,
    dry_run: session.DryRun = False,
) -> None:
    """Wait no longer for a boot that ended without a farewell or lost events for good. Its gaps stay listed."""
    with session.connection() as connection, session.change(connection, dry_run):
        done = completeness_store.write_off(connection, (replica_id, boot_id), actor=actor, reason=reason)
    if not done:
        out.print(f"boot {boot_id} of {replica_id} is written off already")
    elif dry_run:
        out.print(f"boot {boot_id} of {replica_id} would be written off")
    else:
        out.print(f"boot {boot_id} of {replica_id} is written off")


@app.command()
def gaps(
    replica_id: Annotated[str, typer.Argument(metavar="REPLICA")],
    boot_id: Annotated[str, typer.Argument(metavar="BOOT")],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """The numbers of a boot that are missing, run by run, however many gaps they are listed as."""
    with session.connection() as connection:
        runs = number_store.missing_numbers(connection, (replica_id, boot_id))
    rows = [{"first_number": first, "last_number": last, "missing": last - first + 1} for first, last in runs]
    listing(rows, ("first_number", "last_number", "missing"), as_json=as_json, as_csv=as_csv)


@app.command()
def rebuild(
    actor: session.Actor,
    start: Annotated[str, typer.Option("--from", help="Beginning, a whole hour in RFC 3339.")],
    end: Annotated[str, typer.Option("--to", help="End, not included, a whole hour in RFC 3339.")],
    apply: Annotated[bool, typer.Option("--apply", help="Replace the windows that differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute windows from raw events, beside the running ingestion, and show what differs (expected: nothing)."""
    begins, ends = session.whole_hours(start, end)
    with session.connection() as connection:
        found = rebuilding.rebuild(connection, begins, ends, actor=actor, apply=apply)
    rows = [asdict(difference) for difference in found.differences]
    if as_json:
        document(
            {"windows": found.windows, "differences": rows, "sums": WINDOW_SUMS, "replaced": found.replaced,
             "rebanded": found.rebanded}
        )  # fmt: skip
    else:
        if rows:
            listing(rows, ("table", "bucket", "key", "stored", "events"), title=f"sums: {', '.join(WINDOW_SUMS)}")
        done = f", {found.replaced:,} replaced" if apply and rows else ""
        out.print(f"{found.windows:,} windows compared with their events, {len(rows):,} listed that differ{done}")
        if found.rebanded:
            out.print(f"{found.rebanded:,} events have another rating band by today's rules")
    if rows and not apply:
        raise typer.Exit(1)


@app.command()
def retain(
    actor: session.Actor,
    now: session.Now = None,
    test: Annotated[bool, typer.Option("--test", help="The data is a test's: --now may let go of it.")] = False,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let go of what is old: identities behind the horizon, ended boots, the feed; drop raw events that are archived.

    Workers do the first three by themselves, a little at a time. Safe to repeat; run it daily, after `events archive`.
    """
    from billing import periods
    from billing.database import transaction
    from billing.ledger import ledger_store
    from billing.plans import account_store, schedules

    if now is not None and not (test or dry_run):
        raise typer.BadParameter("--now goes with --test or --dry-run only: what is let go of is gone")
    at = session.clock(now)
    with session.engine() as engine, transaction(engine) as books:
        closed = periods.closed_before(ledger_store.books(books))
        if closed is not None:
            # A quarter or a year is rated from all of its usage: it is needed until that is billed.
            closed = schedules.running_since(account_store.subscriptions(books), closed)
    with session.owner_connection() as connection:
        retention = Retention(connection, RetentionSettings.from_environment())
        with session.change(connection, dry_run):
            retention_store.set_closed_before(connection, closed, actor=actor)
            dropping = archive.droppable(connection, at)
            done, dropped = (retention.preview(at) if dry_run else Forgotten()), list(dropping.days)
        if not dry_run:
            done = _let_go(retention, at)
            if dropping.days:
                dropped = archive.drop(connection, session.archive(), at, actor=actor, progress=err.print)
    if as_json:
        document(asdict(done) | {"days_dropped": dropped, "closed_before": closed, "hindered_by": dropping.hindered_by})
        return
    would = "would be " if dry_run else ""
    out.print(f"closed before {closed:%Y-%m-%d}" if closed else "no period is closed: nothing is behind the horizon")
    if done.before is not None:
        out.print(f"events from before {done.before:%Y-%m-%d %H:%M} UTC are too old")
        out.print(
            f"{done.weeks:,} weeks of identities, {done.identities:,} other identities and {done.boots:,} boots"
            f" {would}forgotten"
        )
    out.print(f"{done.feed_chunks:,} chunks of the quota feed {would}dropped")
    out.print(f"the proofs of {done.chunks:,} applied chunks {would}folded")
    days = f": {dropped[0]} to {dropped[-1]}" if dropped else ""
    out.print(f"{len(dropped)} days of raw events {would}dropped{days}")
    if dropping.hindered_by:
        out.print(f"not more, because {dropping.hindered_by}")


def _let_go(retention: Retention, at: datetime) -> Forgotten:
    """Steps until nothing is left; a worker's step in between is waited for."""
    done = Forgotten(more=True)
    while done.more:
        step = retention.step(at, at_once=True)
        if step is None:
            time.sleep(STEP_AGAIN_S)
        else:
            done += step
    return done


@app.command("plan-chunks")
def plan_chunks(
    actor: session.Actor,
    events_a_day: Annotated[int, typer.Option("--events-per-day", min=1, help="What is expected.")],
    keys: Annotated[
        int, typer.Option("--keys-per-minute", min=1, help="Windows a minute: tenants times models in use, about.")
    ] = 2000,
    memory_gib: Annotated[float | None, typer.Option("--memory-gib", help="Default: shared_buffers.")] = None,
    share: Annotated[int, typer.Option("--share", min=1, max=100, help="Percent of it for indexes written to.")] = 25,
    apply: Annotated[bool, typer.Option("--apply", help="Set it for chunks to come.")] = False,
    as_json: AsJson = False,
) -> None:
    """Work out how much time a chunk should hold, so that the indexes that are written to stay in memory."""
    with session.owner_connection() as connection:
        memory = int(memory_gib * 2**30) if memory_gib else hypertables.shared_memory(connection)
        stands, edition = hypertables.intervals(connection), hypertables.edition(connection)
        planned = chunk_intervals.plan(chunk_intervals.loads(events_a_day, keys), memory, share)
        rows = [
            {"table": each.table, "minutes": each.interval // MINUTE, "index_mib": each.index_bytes >> 20,
             "fits": each.fits, "minutes_now": stands[each.table] // MINUTE}
            for each in planned
        ]  # fmt: skip
        if apply:
            for each in planned:
                hypertables.set_interval(connection, each.table, each.interval, actor=actor)
            hypertables.compress_after(connection, ingest_rules.horizon(connection).length * 2, actor=actor)
    if as_json:
        document({"edition": edition, "memory_bytes": memory, "chunks": rows, "applied": apply})
        return
    listing(
        rows, ("table", "minutes", "minutes_now", "index_mib", "fits"), title=f"{memory >> 20:,} MiB, {share} % of it"
    )
    out.print(
        f"TimescaleDB's edition: {edition}" + ("" if edition == hypertables.COMMUNITY else ", without compression")
    )
    if not all(row["fits"] for row in rows):
        out.print("even the shortest chunk does not fit: give PostgreSQL more memory, or a larger share")


@app.command()
def resolve(
    actor: session.Actor,
    partition: Annotated[int, typer.Option(min=0, help="The partition that stands still.")],
    to: Annotated[int, typer.Option(min=0, help="The offset at which it goes on.")],
    reason: Annotated[str, typer.Option(help="Why; goes to the audit log.")],
    feed: Annotated[Feed, typer.Option(help="Of which topic: usage events, or replicas' reports.")] = "usage",
    lose: Annotated[
        bool, typer.Option("--lose", help="Pass over messages of a log that was cut or made again, unread.")
    ] = False,
    dry_run: session.DryRun = False,
) -> None:
    """Let a partition that stands still go on: pass over positions, or begin in a topic that was cut or made again."""
    reader = session.log_reader(feed)
    with session.owner_connection() as connection, session.change(connection, dry_run):
        source, stood_at = resolving.resolve(
            connection, reader.topic, reader.read, partition, to, reason=reason, actor=actor, lose=lose,
            find_held=partial(log_proof.held, session.kafka()),
        )  # fmt: skip
    out.print(f"{source} {'would go' if dry_run else 'goes'} on at {to} (stood at {stood_at})")
