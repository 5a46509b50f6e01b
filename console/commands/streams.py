"""`tollbook streams`: from Kafka into the windows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from console import session
from console.output import AsCsv, AsJson, document, err, listing, out
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import USAGE
from streams import quarantine, sources, status
from streams import rebuild as rebuilding
from streams.schema import check
from streams.settings import CHUNK_MESSAGES
from streams.windows import WINDOW_SUMS

app = typer.Typer(help="From Kafka into the windows.", no_args_is_help=True, add_completion=False)


@app.command()
def run(
    drain: Annotated[bool, typer.Option("--drain", help="Stop when all that is in the topic now is applied.")] = False,
    chunk: Annotated[int, typer.Option(min=1, max=10_000, help="Messages a transaction, at most.")] = CHUNK_MESSAGES,
    dev: session.Dev = False,
) -> None:
    """Run a worker. Start as many as there are cores; stop with Ctrl-C: the chunk in hand is finished first."""
    from streams.worker import StreamsWorker  # Faust takes a second to import

    kafka, database = session.kafka(), session.database()
    require_fit(kafka, USAGE, development=dev)
    check(database.url)
    worker = StreamsWorker(
        kafka, database, drain=drain, chunk_messages=chunk, say=lambda text: err.print(text, markup=False)
    )
    tally = worker.run()
    out.print(
        f"applied {tally.applied:,}, duplicates {tally.duplicates:,}, quarantined {tally.quarantined:,}"
        f" in {tally.chunks:,} chunks"
    )
    if tally.stopped:
        raise typer.Exit(1)


@app.command("status")
def show_status(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Lag and counts of each partition, and the quarantine by reason."""
    log = session.usage_log()
    with session.connection() as connection:
        rows = [asdict(row) for row in status.partitions(connection, log)]
        refused = quarantine.counts(connection)
    if as_json:
        document(
            {"topic": log.topic, "partitions": rows, "lag": sum(row["lag"] for row in rows), "quarantine": refused}
        )
        return
    columns = (
        "partition",
        "next_offset",
        "end_offset",
        "lag",
        "applied",
        "duplicates",
        "quarantined",
        "last_applied_at",
    )
    listing(rows, columns, as_csv=as_csv, title=log.topic)
    if not as_csv:
        for row in rows:
            if row["stopped_because"]:
                err.print(f"partition {row['partition']} STOPPED: {row['stopped_because']}", markup=False)
        out.print("quarantine: " + (", ".join(f"{reason} {count}" for reason, count in refused.items()) or "empty"))


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
        document({"windows": found.windows, "differences": rows, "sums": WINDOW_SUMS})
    else:
        if rows:
            listing(rows, ("table", "bucket", "key", "stored", "events"), title=f"sums: {', '.join(WINDOW_SUMS)}")
        done = ", replaced" if apply and rows else ""
        out.print(f"{found.windows:,} windows compared with their events, {len(rows):,} differ{done}")
    if rows and not apply:
        raise typer.Exit(1)


@app.command()
def resolve(
    actor: session.Actor,
    partition: Annotated[int, typer.Option(min=0, help="The partition that stands still.")],
    to: Annotated[int, typer.Option(min=0, help="The offset at which it goes on.")],
    reason: Annotated[str, typer.Option(help="Why; goes to the audit log.")],
    dry_run: session.DryRun = False,
) -> None:
    """Let a partition that stands still go on: pass over positions, or begin in a topic that was made again."""
    log = session.usage_log()
    with session.connection() as connection, session.change(connection, dry_run):
        source, stood_at = sources.resolve(connection, log, partition, to, reason=reason, actor=actor)
    out.print(f"{source} {'would go' if dry_run else 'goes'} on at {to} (stood at {stood_at})")
