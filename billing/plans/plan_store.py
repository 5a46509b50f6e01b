"""Plans and their versions in the database. Versions are appended, never changed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.errors import UnknownPlan
from billing.plans.plan_documents import terms_document, terms_of_document, version_document, version_of_document
from billing.plans.price_plans import PlanVersion, PricePlan, Terms
from billing.plans.recorded_versions import RecordedVersion, known_versions


def plan(connection: Connection, name: str, *, as_of: datetime | None = None) -> PricePlan:
    """A plan with its versions as they are known now, or were by a moment. Raises UnknownPlan."""
    found = plans(connection, [name], as_of=as_of)
    if name not in found:
        then = "" if as_of is None else f" by {as_of:%Y-%m-%d %H:%M} UTC"
        raise UnknownPlan(f"plan {name} was never applied{then}: `tollbook plan apply FILE` applies it")
    return found[name]


def plans(
    connection: Connection, names: Collection[str] | None = None, *, as_of: datetime | None = None
) -> dict[str, PricePlan]:
    """Plans by name (all, or those named), each with its versions as they are known now, or were by a moment."""
    found: dict[str, PricePlan] = {}
    for name, (terms, listed) in _stored(connection, names).items():
        if versions := known_versions(listed, as_of):
            found[name] = PricePlan(name, versions[0].currency, versions, terms)
    return found


def recorded(connection: Connection, names: Collection[str] | None = None) -> dict[str, list[RecordedVersion]]:
    """Every version ever recorded, by plan, in the order of recording: also those that others took the place of."""
    return {name: listed for name, (_, listed) in _stored(connection, names).items()}


def _stored(connection: Connection, names: Collection[str] | None) -> dict[str, tuple[Terms, list[RecordedVersion]]]:
    plans_, versions = tables.price_plans, tables.plan_versions
    query = (
        select(plans_.c.currency, plans_.c.terms, versions)
        .join(versions, versions.c.plan == plans_.c.plan)
        .order_by(versions.c.plan, versions.c.plan_version_no)
    )
    if names is not None:
        query = query.where(plans_.c.plan.in_(names))
    found: dict[str, tuple[Terms, list[RecordedVersion]]] = {}
    for row in connection.execute(query):
        if row.plan not in found:
            found[row.plan] = terms_of_document(row.terms), []
        version = version_of_document(row.plan, row.currency, row.version, row.valid_from, row.content)
        found[row.plan][1].append(RecordedVersion(version, row.recorded_at, row.recorded_by))
    return found


def lock(connection: Connection, name: str) -> None:
    """Let changes of one plan go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"plan/{name}", 0))))


def add_versions(connection: Connection, given: PricePlan, versions: Collection[PlanVersion], actor: str) -> None:
    """Append versions; the plan itself is made if it is new."""
    connection.execute(
        insert(tables.price_plans)
        .values(plan=given.name, currency=given.currency, terms=terms_document(given.terms))
        .on_conflict_do_nothing()
    )
    for version in versions:
        connection.execute(
            tables.plan_versions.insert().values(
                plan=given.name,
                version=version.version,
                valid_from=version.valid_from,
                content=version_document(version),
                recorded_by=actor,
            )
        )
