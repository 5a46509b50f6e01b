"""Credit that is bought where it runs low: by rule, once, within its limit; and by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy.exc import DBAPIError

from billing.bills.top_ups import TopUpRule
from billing.commands.decide_proposal import decide, propose
from billing.commands.grant_credit import void_credit
from billing.commands.top_up_credit import set_top_up, top_up_by_hand, top_up_credits, top_up_rules
from billing.errors import CreditRefused
from billing.posting.proposal_store import ProposalKind
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE
from tests.integration.billing.conftest import World

LATER = datetime(2026, 10, 20, tzinfo=UTC)
RULE = TopUpRule("acme", "USD", Decimal(20), Decimal(50), Decimal(150), SINCE, 12)


def bought(world: World, now: datetime = LATER) -> list[tuple[Decimal, Decimal]]:
    return [(each.left, each.amount) for each in top_up_credits(world.engine, now=now, actor="timer")]


def settle(world: World, grant_id: str) -> None:
    number = propose(
        world.engine, ProposalKind.SETTLE_CREDIT, grant_id, {"paid_at": LATER.isoformat()}, document="bank", now=LATER,
        actor="ada",
    )  # fmt: skip
    decide(world.engine, number, approved=True, now=LATER, actor="bob")


def test_credit_is_bought_once_where_it_runs_low_and_never_beyond_the_months_limit(world: World) -> None:
    world.customers("acme", "bolt")
    assert set_top_up(world.engine, RULE, actor="ada")
    assert not set_top_up(world.engine, RULE, actor="ada")
    assert [(r.below, r.amount) for r in top_up_rules(world.engine, at=LATER)] == [(20, 50)]
    assert bought(world, SINCE.replace(year=2020)) == []
    assert bought(world) == [(0, 50)]
    assert bought(world) == []  # the first is not paid yet, and counts
    (grant_id, expires) = world.rows("select grant_id, expires_at from ledger.credit_grants")[0]
    assert expires == LATER.replace(year=2027)
    settle(world, grant_id)
    assert bought(world) == []
    # 25,000 output tokens at 0.002 are 50: nothing of the first 50 is left for what is not invoiced yet.
    world.use("acme", output_tokens=25_000)
    world.rate()
    assert bought(world) == [(0, 50)]
    world.use("acme", output_tokens=100_000)
    world.rate()
    assert bought(world) == [(-150, 50)]
    assert bought(world) == []
    assert bought(world, NOVEMBER.start) == [(-100, 150)]
    assert world.rows("select count(*) from ledger.journal_entries where kind = 'credit_settled'") == [(1,)]


def test_a_voided_top_up_is_bought_again_within_the_limit_and_none_after_the_rule_ends(world: World) -> None:
    world.customers("acme")
    set_top_up(world.engine, RULE, actor="ada")
    for _ in range(3):
        assert bought(world) == [(0, 50)]
        (last,) = world.rows("select grant_id from ledger.credit_grants order by recorded_at desc limit 1")[0]
        void_credit(world.engine, last, reason="card declined", now=LATER, actor="ada")
    assert bought(world) == []
    assert set_top_up(world.engine, RULE, actor="ada", ends=True)
    assert not set_top_up(world.engine, RULE, actor="ada", ends=True)
    assert bought(world, NOVEMBER.start) == []


def test_credit_is_bought_by_hand_whatever_the_rule_says(world: World) -> None:
    world.customers("acme")
    set_top_up(world.engine, RULE, actor="ada")
    done = top_up_by_hand(world.engine, "acme", Decimal(500), reason="wants it", now=LATER, actor="ada")
    assert (done.left, done.amount, done.currency) == (0, 500, "USD")
    assert bought(world) == []
    for account, amount, told in (("nobody", "5", "no billing account"), ("acme", "0.001", "can be paid"),
                                  ("acme", "-5", "more than nothing")):  # fmt: skip
        with pytest.raises(CreditRefused, match=told):
            top_up_by_hand(world.engine, account, Decimal(amount), reason="r", now=OCTOBER.start, actor="ada")


def test_a_rule_that_says_nothing_is_refused_and_none_is_ever_changed(world: World) -> None:
    world.customers("acme")
    for below, amount, limit, told in (
        ("-1", "5", "5", "not negative"), ("0", "0", "5", "more than nothing"), ("0", "5.001", "9", "can be paid"),
        ("0", "5", "4", "less than one"),
    ):  # fmt: skip
        rule = TopUpRule("acme", "USD", Decimal(below), Decimal(amount), Decimal(limit), SINCE)
        with pytest.raises(CreditRefused, match=told):
            set_top_up(world.engine, rule, actor="ada")
    set_top_up(world.engine, RULE, actor="ada")
    for statement in ("update ledger.top_up_rules set below = 1", "delete from ledger.top_ups"):
        with pytest.raises(DBAPIError, match=r"append-only|permission denied"):
            world.execute(statement)
