"""What every command starts from: the environment in use, who acts, the database, Kafka."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import psycopg
import typer

from billing.periods import BillingPeriod, parse_period
from console.output import err
from devstack import stack
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams.database import connect
from streams.ingest.logs import Log, LogReader
from streams.ingest.sources import Feed
from streams.schema import check
from streams.settings import DatabaseSettings, archive_address

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from billing.stripe.stripe_accounts import StripeAccounts
    from streams.retention.archive_files import Archive
    from streams.rules.stale_bands import StaleBands


def _somebody(actor: str) -> str:
    """A name for the audit log: not empty."""
    if not actor.strip():
        raise typer.BadParameter("say who does this: the audit log keeps it")
    return actor


Actor = Annotated[
    str,
    typer.Option(
        "--as", help="Who does this; goes to the audit log.", default_factory=getpass.getuser, callback=_somebody
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, change nothing.")]
Dev = Annotated[bool, typer.Option("--dev", help="Accept a topic with a single copy. The local broker needs no --dev.")]
Month = Annotated[str, typer.Argument(metavar="MONTH", help="e.g. 2026-10")]
Now = Annotated[
    str | None, typer.Option("--now", help="Take this RFC 3339 time for now (tests and the demo only, with --test).")
]


TEXT_BYTES: Final = 1_000_000
"""More than any price plan has."""


def fill_environment() -> None:
    """Where a variable is not set, use the local services that `make up` has started."""
    for name, value in stack.environment().items():
        os.environ.setdefault(name, value)


def kafka() -> KafkaSettings:
    """Kafka as the environment names it."""
    return KafkaSettings.from_environment()


def usage_log() -> Log:
    """The topic of usage events, as the broker has it now."""
    return feed_log("usage")


def feed_log(feed: Feed) -> Log:
    """The topic of a feed, as the broker has it now."""
    return log_reader(feed).read()


def log_reader(feed: Feed) -> LogReader:
    """Who asks the broker about a feed's topic."""
    settings = kafka()
    topic = USAGE if feed == "usage" else REPLICAS
    return LogReader(settings, topic.name(settings.topic_prefix))


def database() -> DatabaseSettings:
    """The database as the environment names it."""
    return DatabaseSettings.from_environment()


@contextmanager
def connection() -> Iterator[psycopg.Connection]:
    """A connection to a database whose schema is this version's. Raises SchemaOutdated."""
    settings = database()
    check(settings.url)
    with connect(settings.url) as opened:
        yield opened


@contextmanager
def owner_connection() -> Iterator[psycopg.Connection]:
    """The same with the rights of the tables' owner: for what drops partitions and chunks."""
    settings = database()
    check(settings.url)
    with connect(settings.owner_url, as_login=True) as opened:
        yield opened


@contextmanager
def engine() -> Iterator[Engine]:
    """Billing's engine, for a database whose schema is this version's. Raises SchemaOutdated."""
    from billing.database import engine_for  # SQLAlchemy takes half a second to import

    settings = database()
    check(settings.url)
    made = engine_for(settings.url)
    try:
        yield made
    finally:
        made.dispose()


def archive() -> Archive:
    """The archive of raw events as the environment names it."""
    from streams.retention.archive_files import Archive  # pyarrow takes a third of a second to import

    return Archive(archive_address())


def stripe(*, test: bool | None = None) -> StripeAccounts:
    """Each legal entity's account of Stripe's as the environment names them. For changes test keys or a twin need
    `test`, live keys its absence."""
    from billing.database import transaction
    from billing.plans import account_store
    from billing.stripe import stripe_accounts

    found = stripe_accounts.settings_in()
    name, settings = next(iter(found.items()))
    if test is True and settings.is_live:
        raise typer.BadParameter(f"--test with a live key: unset {name}, or leave --test out")
    if test is False and not settings.is_live:
        raise typer.BadParameter(f"{name} is a test key: say --test, and the audit log says so too")
    with engine() as opened, transaction(opened) as connection:
        return stripe_accounts.of_entities(account_store.legal_entities(connection), found)


def stripe_to_follow(*, test: bool) -> StripeAccounts:
    """The same for what takes in what Stripe has. A twin, which nobody's books follow by mistake, needs no `test`."""
    return stripe(test=(test or None) if os.environ.get(stack.STRIPE_API) else test)


def shown(file: Path) -> str:
    """A file's name as text, also where its bytes are no UTF-8."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def read_text(file: Path) -> str:
    """A text file's content."""
    try:
        with file.open("rb") as opened:
            content = opened.read(TEXT_BYTES + 1)
        if len(content) > TEXT_BYTES:
            raise typer.BadParameter(f"{file} has more than {TEXT_BYTES:,} bytes")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {shown(file)}: {error}") from None


class DryRunEnds(Exception):
    """Rolls a dry run's transaction back."""


@contextmanager
def change(opened: psycopg.Connection, dry_run: bool) -> Iterator[None]:
    """A transaction that a dry run goes through as well, and that is then rolled back."""
    try:
        with opened.transaction():
            yield
            if dry_run:
                raise DryRunEnds
    except DryRunEnds:
        pass


def moment(text: str) -> datetime:
    """A day (its midnight) or an RFC 3339 time. Aware, UTC."""
    return clock(f"{text}T00:00:00Z" if len(text) == len("2026-10-01") else text)


def month_of(text: str, why: str = "a month is closed") -> BillingPeriod:
    """A calendar month given on the command line. Raises typer.BadParameter with `why` for another period."""
    period = parse_period(text)
    if period.months != 1:
        raise typer.BadParameter(f"{text}: {why}, e.g. 2026-10")
    return period


def clock(now: str | None) -> datetime:
    """The time to go by: `now` if given, else the clock. Aware, UTC."""
    if now is None:
        return datetime.now(UTC)
    try:
        given = datetime.fromisoformat(now)
        if given.tzinfo is not None:
            return given.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{now!r} is not an RFC 3339 time such as 2026-12-02T00:00:00Z") from None
    raise typer.BadParameter("a time needs its offset, e.g. 2026-12-02T00:00:00Z")


def whole_hours(start: str, end: str) -> tuple[datetime, datetime]:
    """A time given on the command line, [start, end), for hourly windows."""
    begins, ends = clock(start), clock(end)
    if begins >= ends:
        raise typer.BadParameter("--from must lie before --to")
    if any((at.minute, at.second, at.microsecond) != (0, 0, 0) for at in (begins, ends)):
        raise typer.BadParameter("--from and --to must be whole hours: windows are hourly")
    return begins, ends


def warn_of_stale(found: Iterable[StaleBands]) -> None:
    """Say for which times a rebuild is due before they can be rated."""
    bounds = [(each.start, each.end) for each in found]
    if bounds:
        start, end = min(start for start, _ in bounds), max(end for _, end in bounds)
        err.print(
            f"warning: usage that is there already is not marked for these prices; run `tollbook streams rebuild --from"
            f" {start:%Y-%m-%dT%H:%MZ} --to {end:%Y-%m-%dT%H:%MZ} --apply` before it is rated"
        )
