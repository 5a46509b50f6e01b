"""Two legal entities, each with an account of Stripe's: nothing of one is taken for the other's."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.commands.keep_accounts import add_entity
from billing.commands.send_invoices import Outcome
from billing.commands.show_invoices import invoice_list
from billing.commands.show_returns import returns_shown
from billing.commands.trial_balance import trial_balance
from billing.errors import OtherStripeAccount
from billing.settings import StripeSettings
from billing.stripe.stripe_accounts import StripeAccounts, followed
from billing.stripe.stripe_gateway import StripeGateway
from console.stripe_receiver import _signed
from reconciliation.period import ask
from reconciliation.stripe_records import money
from tests.billing_builders import OCTOBER
from tests.fixtures_stripe_twin import StripeTwin, act, new_test_key
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import sync
from tests.integration.billing.test_send import reconcile
from tests.integration.billing.test_stripe_returns import differing, paid_by_a_stranger, signed

FEE = Decimal("0.88")
"""2.9 % of 20.00 and 0.30."""


def books(world: World, legal_entity: str) -> dict[int, Decimal]:
    """The balance of each account of an entity's books, debit positive, but for zeros."""
    rows = trial_balance(world.engine, legal_entity=legal_entity).rows
    return {row.code: row.debit - row.credit for row in rows if row.debit != row.credit}


def test_two_legal_entities_have_an_account_of_stripes_each_and_1010_is_each_ones_own(
    world: World, stripe_twin: StripeTwin
) -> None:
    twins = {"default": stripe_twin, "eu": StripeTwin(stripe_twin.url)}
    gateways = {
        entity: StripeGateway(StripeSettings(twin.key, twin.url), legal_entity=entity) for entity, twin in twins.items()
    }
    for name in ("eu", "uk"):
        add_entity(world.engine, name=name, actor="ada", currency="USD", values={})
    world.tenant("acme", "euro")
    world.plan()
    world.subscribe("acme")
    world.subscribe("euro", legal_entity="eu")
    for name in ("acme", "euro"):
        world.use(name, output_tokens=10_000)
    world.rate()
    world.draft()
    # Without a key of its own an entity's invoices wait; they do not go to another's account.
    first = {i.billing_account: i for i in world.send(StripeAccounts({"default": gateways["default"]})).invoices}
    assert (first["acme"].outcome, first["euro"].outcome) == (Outcome.FINALIZED, Outcome.LATER)
    assert "set TOLLBOOK_STRIPE_KEY_EU" in str(first["euro"].reason)
    with pytest.raises(OtherStripeAccount, match="which another entity's books follow"):
        world.send(StripeAccounts(gateways | {"eu": _of("eu", stripe_twin.key, stripe_twin.url)}))
    stripe = StripeAccounts(gateways)
    sent = {i.billing_account: str(i.stripe_invoice_id) for i in world.send(stripe).invoices}
    for twin, name in zip(twins.values(), ("acme", "euro"), strict=True):
        assert [invoice.id for invoice in twin.client().v1.invoices.list().data] == [sent[name]]
        act(twin, "pay", invoice=sent[name])
    paid_by_a_stranger(twins["eu"], "usd")
    assert sync(world, stripe).booked == 3
    stranger = Decimal(9) - Decimal("0.56")
    assert books(world, "default") | {4000: 0} == {1010: 20 - FEE, 4000: 0, 5100: FEE}
    assert books(world, "eu") | {4000: 0} == {1010: 20 - FEE + stranger, 1090: -9, 4000: 0, 5100: FEE + 9 - stranger}
    act(twins["eu"], "payout")
    assert_what_is_not_booked_is_the_entitys_whose_account_it_is_in(world, stripe)
    sync(world, stripe)
    assert (books(world, "eu").get(1010), books(world, "eu")[1020]) == (None, 20 - FEE + stranger)
    shown = returns_shown(world.engine, datetime.now(UTC))
    assert [(row["legal_entity"], row["books"], row["difference"]) for row in shown.balances] == [
        ("default", str(20 - FEE), "0"), ("eu", "0", "0"),
    ]  # fmt: skip
    assert differing(world, stripe) == {}
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}
    # A key of another's account, or of none that is known, is refused before anything is read or told.
    swapped = StripeAccounts({"default": gateways["default"], "eu": _of("eu", twins["default"].key, stripe_twin.url)})
    other = StripeAccounts({**gateways, "eu": _of("eu", new_test_key(), stripe_twin.url)})
    for wrong in (swapped, other):
        for refused in (sync, reconcile):
            with pytest.raises(OtherStripeAccount, match=r"the books of eu follow .* TOLLBOOK_STRIPE_KEY_EU"):
                refused(world, wrong)
    # To share one account is no way to go on from two.
    with pytest.raises(OtherStripeAccount, match="shared with default"):
        followed(world.engine, StripeAccounts(dict.fromkeys(gateways, gateways["default"])), "eu")


def assert_what_is_not_booked_is_the_entitys_whose_account_it_is_in(world: World, stripe: StripeAccounts) -> None:
    """So that it holds up no other's book; in an account that two share it is nobody's."""
    seen = ask(stripe, None).money
    with world.engine.connect() as rolled_back:
        rolled_back.exec_driver_sql("update ledger.stripe_cursors set read_to = now() + interval '1 hour'")
        keys = [each.key.split("/") for each in money(rolled_back, OCTOBER, stripe, seen).differences]
        assert [(entity, name[:4]) for entity, name in keys] == [("eu", "txn_")]
        rolled_back.exec_driver_sql(
            "insert into ledger.stripe_account (legal_entity, account_id, live, shares_with)"
            " select 'uk', account_id, live, 'eu' from ledger.stripe_account where legal_entity = 'eu'"
        )
        assert [each.key for each in money(rolled_back, OCTOBER, stripe, seen).differences] == [keys[0][1]]


def _of(entity: str, key: str, url: str) -> StripeGateway:
    return StripeGateway(StripeSettings(key, url), legal_entity=entity)


def test_a_webhook_is_of_the_account_whose_secret_it_is_signed_with() -> None:
    secrets = {"default": "whsec_1", "eu": "whsec_2"}
    event = {"id": "evt_1", "type": "x.y", "created": 1, "data": {"object": {"id": "z"}}}
    assert [_signed(*signed(event, secret=secret), secrets)[1] for secret in secrets.values()] == ["default", "eu"]
