"""Apply a price plan from its file: new versions are appended, applied ones stay as they are.

A version from the same moment as an applied one corrects it: of the two the one that was recorded last holds, and the
next rating posts the difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine

from billing.database import raw, transaction
from billing.errors import PlanConflict
from billing.invoicing import billed_until_store
from billing.plans import account_store, plan_store
from billing.plans.plan_documents import differences, plan_differences
from billing.plans.plan_file import parse_plan
from billing.plans.price_plans import PlanVersion, PricePlan, counted_twice, unpriced_token_classes
from billing.usage import estimates, rating_bands
from streams import audit
from streams.rules.stale_bands import StaleBands


@dataclass(frozen=True, slots=True)
class PlanApplied:
    """What applying a plan did: versions added, versions that were there, and what is worth a second look.

    `corrected` are the applied versions that hold no more: some that were added begin with them.
    """

    plan: PricePlan
    added: tuple[str, ...]
    unchanged: tuple[str, ...]
    warnings: tuple[str, ...]
    corrected: tuple[str, ...] = ()
    stale: tuple[StaleBands, ...] = ()
    """Usage that was marked by other prices than now hold: `streams rebuild` is due for these times."""


def apply_plan(
    engine: Engine, text: str, *, file: str, actor: str, now: datetime, dry_run: bool = False
) -> PlanApplied:
    """Apply the plan that `text` (the content of `file`) describes. Applying it again changes nothing.

    Raises PlanInvalid with every line and field that is wrong, PlanConflict if an applied version would change or a new
    one reaches into a period that is billed already.
    """
    given = parse_plan(text, file=file)
    stale: list[StaleBands] = []
    with transaction(engine, dry_run=dry_run) as connection:
        plan_store.lock(connection, given.name)
        applied = plan_store.plans(connection, [given.name]).get(given.name)
        recorded = [each.version for each in plan_store.recorded(connection, [given.name]).get(given.name, ())]
        fresh = _new_versions(given, applied, recorded)
        begun = {version.valid_from for version in fresh}
        corrected = [v.version for v in (applied.versions if applied else ()) if v.valid_from in begun]
        _check_frozen(connection, given.name, fresh)
        if fresh:
            plan_store.add_versions(connection, given, fresh, actor)
            on_plan = [s for s in account_store.subscriptions(connection) if s.plan == given.name]
            estimates.write_prices(connection, {s.tenant_id for s in on_plan})
            stale = rating_bands.write_rules(connection, {s.tenant_id for s in on_plan})
            audit.record(
                raw(connection),
                actor,
                "plan.apply",
                given.name,
                {"file": file, "versions": [v.version for v in fresh], "corrected": corrected, "now": now.isoformat()},
            )
    added = tuple(version.version for version in fresh)
    return PlanApplied(
        plan=given,
        added=added,
        unchanged=tuple(version.version for version in given.versions if version.version not in added),
        warnings=(*_warnings(given), *_outdated(given, recorded, applied)),
        corrected=tuple(corrected),
        stale=tuple(stale),
    )


def _new_versions(given: PricePlan, applied: PricePlan | None, recorded: Iterable[PlanVersion]) -> list[PlanVersion]:
    if applied is None:
        return list(given.versions)
    if applied.currency != given.currency:
        raise PlanConflict(
            f"plan {given.name} is in {applied.currency}, the file says {given.currency}: a plan keeps its currency"
        )
    if applied.terms != given.terms:
        raise PlanConflict(
            f"plan {given.name} is applied already with other terms: give other terms a plan of their own."
            f" {'; '.join(plan_differences(applied, given))}"
        )
    by_name = {version.version: version for version in recorded}
    for version in given.versions:
        if version.version in by_name and (found := differences(by_name[version.version], version)):
            raise PlanConflict(
                f"version {version.version} of plan {given.name} is applied already and never changes; give the change"
                f" a version of its own, from the same time if it corrects this one. {'; '.join(found)}"
            )
    return [version for version in given.versions if version.version not in by_name]


def _outdated(given: PricePlan, recorded: Iterable[PlanVersion], applied: PricePlan | None) -> list[str]:
    """Versions of the file that were corrected before."""
    replaced = {version.version for version in recorded} - {v.version for v in (applied.versions if applied else ())}
    return [
        f"version {version.version} was corrected since and does not hold: this file is not the latest"
        for version in given.versions
        if version.version in replaced
    ]


def _check_frozen(connection: Connection, plan: str, fresh: list[PlanVersion]) -> None:
    on_plan = [subscription for subscription in account_store.subscriptions(connection) if subscription.plan == plan]
    billed = billed_until_store.frozen_until(connection, {subscription.billing_account for subscription in on_plan})
    tenants = {subscription.tenant_id for subscription in on_plan}
    for version in fresh:
        if billed is not None and version.valid_from < billed:
            raise PlanConflict(
                f"version {version.version} of plan {plan} begins {version.valid_from:%Y-%m-%d}, but invoices up to"
                f" {billed:%Y-%m-%d} are frozen: begin it there or later"
            )
        if billed_until_store.billed_in_advance(connection, tenants, version.valid_from):
            raise PlanConflict(
                f"version {version.version} of plan {plan} begins {version.valid_from:%Y-%m-%d %H:%M}, but fees in"
                " advance that begin then are invoiced: begin it later"
            )


def _warnings(plan: PricePlan) -> list[str]:
    free = [
        f"version {version.version}: nothing prices {metric.value}: these tokens are free"
        for version in plan.versions
        for metric in unpriced_token_classes(version)
    ]
    return free + [
        f"version {version.version}: charge {whole} counts all tokens, those of charge {part}, too: they cost twice"
        for version in plan.versions
        for whole, part in counted_twice(version)
    ]
