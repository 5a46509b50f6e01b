"""What is owed for paid credits, at any moment: a random history of all that can happen to them (money 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

from billing.bills.credits import Grant, GrantKind, TaxTreatment
from billing.commands.correct_invoice import credit_invoice
from billing.commands.decide_proposal import decide, propose
from billing.commands.expire_credits import expire_credits
from billing.commands.grant_credit import credits_of, grant_credit, invoice_credit, void_credit
from billing.commands.show_invoices import invoice_list
from billing.commands.trial_balance import account_balances
from billing.errors import CorrectionRefused, CreditRefused, UnknownCredit
from billing.invoicing.credit_store import GivenCredit
from billing.money import ZERO
from billing.periods import BillingPeriod
from billing.posting.proposal_store import ProposalKind
from billing.stripe.stripe_gateway import StripeGateway
from tests.billing_builders import NOVEMBER, OCTOBER, PLAN
from tests.closing import bill_month
from tests.integration.billing.conftest import World

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SEED, AS_OF = 6, 15
ENDS = datetime(2026, 12, 10, tzinfo=UTC)


@dataclass
class History:
    """Paid credits of two accounts, one of which has its credits count from their invoices, as time goes by."""

    world: World
    gateway: StripeGateway
    random: Random
    now: datetime = OCTOBER.start + HOUR
    made: int = 0
    to_invoice: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    unbilled: list[BillingPeriod] = field(default_factory=lambda: [OCTOBER, NOVEMBER])

    def step(self) -> None:
        """Let time pass, bill what ended, and do one thing; what is refused changes nothing."""
        self.now += self.random.choice((HOUR, HOUR, DAY, 2 * DAY))
        if self.unbilled and self.now >= self.unbilled[0].end + 2 * DAY:
            self.close(self.unbilled.pop(0))
        things: list[Callable[[], object]] = [
            self.give, self.give, self.use, self.use, self.settle, self.settle, self.void, self.refund, self.expire,
            self.credit, *([self.invoice] * 3 if self.to_invoice else []),
        ]  # fmt: skip
        thing = self.random.choice(things)
        try:
            thing()
            self.done[thing.__name__] += 1
        except (CreditRefused, CorrectionRefused, UnknownCredit):
            self.done["refused"] += 1

    def give(self) -> None:
        self.made += 1
        one = Grant(
            f"g{self.made}", GrantKind.PAID, Decimal(self.random.randint(1, 3000)) / 100, "USD", self.now,
            expires=self.random.choice([None, self.now + self.random.randint(1, 40) * DAY]),
            granted_at=self.now, tax_treatment=self.random.choice([*TaxTreatment]),
        )  # fmt: skip
        account = self.random.choice(("acme", "bolt"))
        grant_credit(self.world.engine, GivenCredit(one, account, "order"), actor="ada")
        if account == "bolt":
            self.to_invoice.append(one.grant_id)

    def any(self) -> str:
        return f"g{self.random.randint(max(1, self.made - 8), max(1, self.made))}" if self.made else "none"

    def use(self) -> None:
        hour = self.now.replace(minute=0, second=0, microsecond=0)
        tokens = self.random.randint(1, 4000)
        self.world.use(self.random.choice(("acme", "bolt")), at=hour, output_tokens=tokens)

    def settle(self) -> None:
        self.by_two(ProposalKind.SETTLE_CREDIT, {"paid_at": (self.now - self.random.choice((HOUR, DAY))).isoformat()})

    def refund(self) -> None:
        self.by_two(ProposalKind.REFUND_CREDIT, {})

    def by_two(self, kind: ProposalKind, content: dict[str, str]) -> None:
        given = {"document": "bank", "now": self.now, "actor": "ada"}
        number = propose(self.world.engine, kind, self.any(), content, **given)
        decide(self.world.engine, number, approved=True, now=self.now, actor="bob")

    def invoice(self) -> None:
        invoice_credit(self.world.engine, self.to_invoice.pop(), now=self.now, actor="ada")

    def void(self) -> None:
        void_credit(self.world.engine, self.any(), reason="never paid", now=self.now, actor="ada")

    def expire(self) -> None:
        expire_credits(self.world.engine, up_to=self.now, now=self.now, actor="ada")

    def credit(self) -> None:
        bills = [each for each in invoice_list(self.world.engine) if each["kind"] == "usage" and each["number"]]
        if bills:
            of = self.random.choice(bills)["number"]
            amount = Decimal(self.random.randint(1, 400)) / 100
            credit_invoice(
                self.world.engine, of, {"std": amount}, reason=str(self.now), now=self.now, actor="ada"
            )  # fmt: skip

    def close(self, month: BillingPeriod) -> None:
        bill_month(self.world.engine, period=month, gateway=self.gateway, now=self.now, actor="ada")

    def owed(self, as_of: datetime | None = None) -> tuple[dict[str, Decimal], dict[str, Decimal]]:
        """Account 2100, and what is left of credits that are paid or invoiced, by credit."""
        rows = account_balances(self.world.engine, code=2100, as_of=as_of, limit=1000)
        left = credits_of(self.world.engine, as_of=as_of)
        return (
            {row.subledger: -row.amount for row in rows if row.amount},
            {state.grant.grant_id: state.remaining for state in left if state.is_liability and state.remaining},
        )


def test_the_liability_is_what_is_left_of_paid_credits_at_any_moment_whatever_is_done(
    world: World, gateway: StripeGateway
) -> None:
    world.tenant("acme", "bolt")
    world.plan()
    world.plan(PLAN.replace("plan: p", "plan: q\nterms: {paid_credit_from: invoice}"))
    world.subscribe("acme")
    world.subscribe("bolt", plan="q")
    history = History(world, gateway, Random(SEED))
    while history.now < ENDS:
        history.step()
        booked, left = history.owed()
        assert booked == left, f"at {history.now}, after {history.done}"
    moments = world.rows(
        "select at from (select at from ledger.credit_movements union select effective_at from ledger.journal_entries)"
        " as moments (at) order by at"
    )
    for (at,) in moments[:: max(1, len(moments) // AS_OF)]:
        booked, left = history.owed(at + timedelta(microseconds=1))
        assert booked == left, f"as of just after {at}"
    assert {"settle", "void", "invoice", "credit"} <= history.done.keys(), history.done
    assert sum(history.owed()[0].values(), ZERO) > 0
    assert world.reports_tie(OCTOBER, NOVEMBER)
