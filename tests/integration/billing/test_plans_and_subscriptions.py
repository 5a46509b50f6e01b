"""Applying plans and starting subscriptions in the database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from billing.commands.change_subscription import cancel_subscription, change_subscription
from billing.commands.keep_accounts import add_account
from billing.commands.start_subscription import start_subscriptions
from billing.database import transaction
from billing.errors import PlanConflict, PlanInvalid, SubscriptionRefused, UnknownPlan
from billing.money import Rounding
from billing.plans import account_store, plan_store
from billing.plans.plan_file import parse_plan
from billing.plans.price_plans import version_at
from streams.errors import UnknownTenant
from tests.billing_builders import NOVEMBER, OCTOBER, PLAN, SINCE
from tests.integration.billing.conftest import World

V2 = """\
  - version: v2
    from: 2026-11-01
    charges:
      - {key: in, model: per_unit, metric: input, price: "0.003"}
"""


def audited(world: World) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in world.rows("select action, subject from usage.audit_log order by audit_no")]


def test_a_plan_is_applied_once_and_read_back_as_it_was(world: World) -> None:
    assert (world.plan().added, world.plan().added, world.plan().unchanged) == (("v1",), (), ("v1",))
    with transaction(world.engine) as connection:
        assert plan_store.plan(connection, "p") == parse_plan(PLAN, file="plan.yaml")
    assert audited(world) == [("plan.apply", "p")]


def test_a_further_version_is_added_beside_the_applied_ones(world: World) -> None:
    world.plan()
    found = world.plan(PLAN + V2)
    assert (found.added, found.unchanged) == (("v2",), ("v1",))
    assert found.warnings == (
        "version v2: nothing prices cached_input: these tokens are free",
        "version v2: nothing prices output: these tokens are free",
    )
    assert world.plan("plan: p\ncurrency: USD\nversions:\n" + V2).unchanged == ("v2",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PLAN.replace('"0.001"', '"0.0011"'), r"v1 of plan p is applied.*in: price is 0\.001, the file says 0\.0011"),
        (PLAN.replace("currency: USD", "currency: EUR"), "plan p is in USD, the file says EUR"),
    ],
)  # fmt: skip
def test_an_applied_version_never_changes(world: World, content: str, told: str) -> None:
    world.plan()
    with pytest.raises(PlanConflict, match=told):
        world.plan(content)
    assert world.count("ledger.plan_versions") == 1


def test_a_version_from_the_same_time_corrects_the_applied_one_and_both_times_can_be_asked(world: World) -> None:
    world.plan(PLAN + V2.replace('"0.003"', '"0.3"'))
    fixed = PLAN + V2.replace("v2", "v2-fixed")
    assert (world.plan(fixed, dry_run=True).corrected, world.count("ledger.plan_versions")) == (("v2",), 2)
    done = world.plan(fixed)
    assert (done.added, done.corrected, done.unchanged) == (("v2-fixed",), ("v2",), ("v1",))
    assert (world.plan(fixed).added, world.plan(fixed).corrected) == ((), ())
    with transaction(world.engine) as connection:
        *_, wrong, right = plan_store.recorded(connection, ["p"])["p"]
        for as_of, version in ((None, right.version), (wrong.recorded_at, wrong.version)):
            known = plan_store.plan(connection, "p", as_of=as_of).versions
            assert version_at(known, NOVEMBER.start) == version
            assert version_at(known, OCTOBER.start).version == "v1"
        with pytest.raises(UnknownPlan, match="never applied by 2020-01-01 00:00"):
            plan_store.plan(connection, "p", as_of=datetime(2020, 1, 1, tzinfo=UTC))
    assert wrong.recorded_at < right.recorded_at
    outdated = world.plan(PLAN + V2.replace('"0.003"', '"0.3"'))
    assert (outdated.added, outdated.warnings[-1]) == (
        (), "version v2 was corrected since and does not hold: this file is not the latest",
    )  # fmt: skip


def test_a_subscription_can_be_asked_for_as_it_was_known(world: World) -> None:
    world.customers("acme")
    ((before,),) = world.rows("select clock_timestamp()")
    cancel_subscription(world.engine, tenant_id="acme", at=NOVEMBER.start, actor="ada")
    with transaction(world.engine) as connection:
        ends = [account_store.subscriptions(connection, as_of=at)[0].ends_at for at in (before, None)]
        assert account_store.subscriptions(connection, as_of=SINCE) == []
    assert ends == [None, NOVEMBER.start]


def test_a_plan_with_a_mistake_changes_nothing(world: World) -> None:
    with pytest.raises(PlanInvalid, match=r"plan.yaml:7: versions\[0\].charges\[0\].price: -0.001 is negative"):
        world.plan(PLAN.replace('"0.001"', '"-0.001"'))
    assert world.count("ledger.price_plans") == 0


def test_a_dry_run_says_what_would_be_added_and_adds_nothing(world: World) -> None:
    assert world.plan(dry_run=True).added == ("v1",)
    assert (world.count("ledger.plan_versions"), audited(world)) == (0, [])


def test_a_tenant_starts_with_an_account_of_its_own_under_the_default_legal_entity(world: World) -> None:
    world.customers("acme")
    again = world.subscribe("acme")
    assert not again.created
    with transaction(world.engine) as connection:
        (account,) = account_store.accounts(connection).values()
        (subscription,) = account_store.subscriptions(connection)
    assert (account.billing_account, account.legal_entity, account.currency) == ("acme", "default", "USD")
    assert (subscription.starts_at, subscription.ends_at, subscription.bill_statuses) == (
        SINCE,
        None,
        ("ok", "aborted"),
    )
    assert audited(world)[-3:] == [
        ("account.add", "acme"),
        ("account.describe", "acme"),
        ("subscription.start", "acme"),
    ]


def test_one_account_may_pay_for_several_tenants(world: World) -> None:
    world.tenant("a", "b")
    world.plan()
    for tenant in ("a", "b"):
        world.subscribe(tenant, billing_account="group")
    with transaction(world.engine) as connection:
        assert list(account_store.accounts(connection)) == ["group"]


def test_what_does_not_fit_is_refused(world: World) -> None:
    world.customers("acme")
    with pytest.raises(
        SubscriptionRefused, match=r"acme is on plan p from 2026-01-01 00:00 without end.*cannot overlap"
    ):
        world.subscribe("acme", starts_at=datetime(2026, 6, 1, tzinfo=UTC))
    with pytest.raises(SubscriptionRefused, match="overlap"):
        world.subscribe("acme", billing_account="other")
    with pytest.raises(SubscriptionRefused, match="bill_statuses: 'okay' is none of ok, aborted"):
        world.subscribe("acme", bill_statuses=["okay"])
    with pytest.raises(UnknownTenant, match="stranger"):
        world.subscribe("stranger")
    with pytest.raises(UnknownPlan, match="nowhere"):
        world.subscribe("acme", plan="nowhere")
    with pytest.raises(SubscriptionRefused, match="no version"):
        world.subscribe("acme", starts_at=datetime(2025, 1, 1, tzinfo=UTC))
    world.plan(PLAN.replace("plan: p", "plan: euro").replace("USD", "EUR"))
    world.tenant("b")
    with pytest.raises(SubscriptionRefused, match="acme pays in USD, plan euro is in EUR"):
        world.subscribe("b", plan="euro", billing_account="acme")
    assert world.count("ledger.subscriptions") == 1


def test_many_tenants_start_together_or_not_at_all(world: World) -> None:
    world.tenant("a", "b")
    world.plan()
    with pytest.raises(UnknownTenant):
        start_subscriptions(world.engine, tenant_ids=["a", "b", "stranger"], plan="p", starts_at=SINCE, actor="test")
    assert world.count("ledger.subscriptions") == 0
    start_subscriptions(world.engine, tenant_ids=["a", "b"], plan="p", starts_at=SINCE, actor="test")
    assert world.count("ledger.subscriptions") == 2


def test_of_two_starts_at_once_the_database_lets_one_through(world: World) -> None:
    world.tenant("acme")
    world.plan()
    moments = [datetime(2026, month, 1, tzinfo=UTC) for month in range(1, 9)]

    def attempt(starts_at: datetime) -> bool:
        try:
            return world.subscribe("acme", starts_at=starts_at).created
        except SubscriptionRefused:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, moments)) == 1


def test_the_database_itself_refuses_an_overlap_and_any_edit_of_a_subscription(world: World) -> None:
    world.customers("acme")
    copy = (
        "insert into ledger.subscriptions (subscription_id, tenant_id, billing_account, plan, starts_at, ends_at,"
        " bill_statuses, recorded_by) select gen_random_uuid(), tenant_id, billing_account, plan, '2026-03-01Z',"
        " '2026-04-01Z', bill_statuses, 'test' from ledger.subscriptions where superseded_at is null"
    )
    for statement in (
        copy,
        "update ledger.subscriptions set starts_at = '2026-02-01Z'",
        "update ledger.subscriptions set starts_at = '2026-02-01Z', superseded_at = now()",
        "delete from ledger.subscriptions",
        "update ledger.plan_versions set valid_from = '2026-02-01Z'",
        "update ledger.subscriptions set bill_statuses = array['lost']",
    ):
        with pytest.raises(DBAPIError) as caught:
            world.execute(statement)
        assert isinstance(caught.value.orig, psycopg.Error)
    world.execute("update ledger.subscriptions set superseded_at = clock_timestamp()")
    with pytest.raises(DBAPIError, match="only be superseded, once"):
        world.execute("update ledger.subscriptions set superseded_at = null")


def test_a_price_that_reaches_into_billed_time_is_refused(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=1)
    world.rate()
    world.draft()
    world.plan(PLAN + V2.replace("2026-11-01", "2026-10-20"), dry_run=True)
    world.execute("update ledger.invoices set frozen_at = now()")
    with pytest.raises(PlanConflict, match=r"v2 of plan p begins 2026-10-20, but invoices up to 2026-11-01 are frozen"):
        world.plan(PLAN + V2.replace("2026-11-01", "2026-10-20"))
    with pytest.raises(PlanConflict, match=r"v1-fixed of plan p begins 2026-01-01, but invoices up to 2026-11-01"):
        world.plan(PLAN.replace("v1", "v1-fixed"))
    assert world.plan(PLAN + V2).added == ("v2",)
    world.tenant("late")
    with pytest.raises(SubscriptionRefused, match="frozen up to 2026-11-01"):
        world.subscribe("late", billing_account="acme")
    assert world.subscribe("late", billing_account="acme", starts_at=NOVEMBER.start).created


def test_a_plan_that_rounds_otherwise_than_its_payer_is_refused(world: World) -> None:
    world.customers("acme")
    world.tenant("beta")
    world.account("beta")
    world.plan(PLAN.replace("plan: p", "plan: up").replace("versions:", "terms: {rounding: half_up}\nversions:"))
    with pytest.raises(
        SubscriptionRefused, match=r"rounded half_even, by the terms of plan up half_up.*--rounding half_up"
    ):
        world.subscribe("beta", plan="up")
    with pytest.raises(SubscriptionRefused, match="rounded half_even"):
        change_subscription(world.engine, tenant_id="acme", plan="up", at=OCTOBER.start, actor="ada")
    add_account(world.engine, name="b2", currency="USD", rounding=Rounding.HALF_UP, actor="ada", values={})
    assert world.subscribe("beta", plan="up", billing_account="b2").created
    with transaction(world.engine) as connection:
        assert account_store.accounts(connection, ["b2"])["b2"].rounding is Rounding.HALF_UP
