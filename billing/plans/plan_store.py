"""Plans and their versions in the database. Versions are appended, never changed."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.errors import UnknownPlan
from billing.plans.plan_documents import terms_document, terms_of_document, version_document, version_of_document
from billing.plans.price_plans import PlanVersion, PricePlan, Terms


def plan(connection: Connection, name: str) -> PricePlan:
    """A plan with every version applied so far. Raises UnknownPlan."""
    found = plans(connection, [name])
    if name not in found:
        raise UnknownPlan(f"plan {name} was never applied: `tollbook plan apply FILE` applies it")
    return found[name]


def plans(connection: Connection, names: Collection[str] | None = None) -> dict[str, PricePlan]:
    """Plans by name, each with its versions, the earliest first; all of them unless names are given."""
    plans_, versions = tables.price_plans, tables.plan_versions
    query = (
        select(plans_, versions.c.version, versions.c.valid_from, versions.c.content)
        .join(versions, versions.c.plan == plans_.c.plan)
        .order_by(plans_.c.plan, versions.c.valid_from)
    )
    if names is not None:
        query = query.where(plans_.c.plan.in_(names))
    found: dict[str, list[PlanVersion]] = {}
    terms: dict[str, Terms] = {}
    for row in connection.execute(query):
        terms[row.plan] = terms_of_document(row.terms)
        version = version_of_document(row.plan, row.currency, row.version, row.valid_from, row.content)
        found.setdefault(row.plan, []).append(version)
    return {name: PricePlan(name, listed[0].currency, tuple(listed), terms[name]) for name, listed in found.items()}


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
