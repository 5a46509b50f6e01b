"""Random months at Stripe, with faults: whenever all is taken in, the ledger is what Stripe's balance came to."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import stripe

from billing.commands.correct_invoice import credit_invoice, void_invoice
from billing.commands.decide_proposal import decide, propose
from billing.commands.keep_note_untold import keep_note_untold
from billing.commands.refund_invoice import refund_invoice
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.commands.take_over_note import take_over_note
from billing.commands.trial_balance import trial_balance
from billing.database import transaction
from billing.errors import CorrectionRefused, ProposalRefused, StripeError
from billing.invoicing import correction_store
from billing.invoicing.correcting import CorrectionKind, CorrectionState
from billing.posting.proposal_store import ProposalKind
from billing.stripe import returns, returns_store
from billing.stripe.stripe_gateway import StripeGateway
from devstack.stripe_twin.faults import FaultKind
from tests.fixtures_stripe_twin import ActRefused, StripeTwin, act, control
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import finalized, sync
from tests.simulation.stripe.cells import seconds_of
from tests.simulation.stripe.matrix import settle

NOW: Final = datetime(2026, 12, 3, tzinfo=UTC)
CURRENCIES: Final = ("USD", "EUR")
READ_FAULTS: Final = tuple(kind for kind in FaultKind if kind is not FaultKind.REFUSED)
"""Of what is only read: Stripe refuses nothing of it by chance."""


class Month:
    """A random month: payers, banks, people here and in Stripe do things to invoices, while requests fail."""

    def __init__(self, world: World, gateway: StripeGateway, twin: StripeTwin, seed: int, steps: Sequence[str]) -> None:
        self.steps = steps
        self.world, self.gateway, self.twin = world, gateway, twin
        self.chance = random.Random(seed)
        self.invoices = list(finalized(world, gateway, "acme", "bolt", "cord", "dent").values())
        self.charges: list[str] = []
        self.disputes: list[str] = []
        self.lost: list[str] = []
        self.by_hand: list[str] = []
        """Credit notes that somebody made in Stripe, and nobody has taken over."""
        self.untold: set[str] = set()
        """Credit notes of ours that Stripe never takes, and a person keeps here alone."""
        self.done: dict[str, int] = {}

    def step(self) -> None:
        """Do something; what is refused did not happen."""
        did = self.chance.choice(self.steps)
        if self.chance.random() < 0.3:
            method = self.chance.choice(("POST", "GET"))
            kind = self.chance.choice(READ_FAULTS if method == "GET" else tuple(FaultKind))
            skip = self.chance.randrange(4) if method == "GET" else 0
            control(
                self.twin, "faults", kind=kind, key=self.twin.key, method=method, skip=skip, seconds=seconds_of(kind)
            )
        try:
            getattr(self, did)(self.chance.choice(self.invoices))
            self.done[did] = self.done.get(did, 0) + 1
        except REFUSED:
            pass
        finally:
            self.twin.call("DELETE", "/_twin/faults")
            settle(self.twin)

    def pays(self, invoice: str) -> None:
        amount = self.chance.randint(50, 900)
        # One in five of them is a card of an account that settles in euros.
        elsewhere = {"settle": "eur", "rate": "0.9"} if self.chance.random() < 0.2 else {}
        self.charges.append(
            act(self.twin, "pay", invoice=invoice, amount=amount, overpay=self.chance.random() < 0.3, **elsewhere)["id"]
        )

    def fails(self, invoice: str) -> None:
        act(self.twin, "pay", invoice=invoice, fails=True)

    def disputed(self, _: str) -> None:
        if not self.charges:
            return
        amount = self.chance.choice((None, self.chance.randint(1, 100)))
        self.disputes.append(act(self.twin, "dispute", charge=self.chance.choice(self.charges), amount=amount)["id"])

    def decided(self, _: str) -> None:
        if not self.disputes:
            return
        dispute = self.disputes.pop()
        if act(self.twin, "decide", dispute=dispute, won=self.chance.random() < 0.5)["status"] == "lost":
            self.lost.append(dispute)

    def regained(self, _: str) -> None:
        if self.lost:
            act(self.twin, "reinstate", dispute=self.lost.pop())

    def paid_out(self, _: str) -> None:
        act(self.twin, "payout")

    def refunds(self, invoice: str) -> None:
        amount = Decimal(self.chance.randint(1, 200)) / 100
        refund_invoice(self.world.engine, invoice, amount, gateway=self.gateway, reason="r", actor="ada")

    def refunds_by_hand(self, _: str) -> None:
        """Somebody gives a payment back in Stripe's dashboard, or a part of it."""
        if self.charges:
            charge, amount = self.chance.choice(self.charges), self.chance.randint(1, 300)
            self.twin.client().v1.refunds.create({"charge": charge, "amount": amount})

    def fails_to_refund(self, _: str) -> None:
        """A payer's bank does not take what was given back."""
        given_back = self.twin.client().v1.refunds.list().data
        if given_back:
            act(self.twin, "fail_refund", refund=self.chance.choice(given_back).id)

    def sends_cash(self, invoice: str) -> None:
        amount = self.chance.randint(50, 1500)
        cash = self.twin.client().v1.test_helpers.customers
        cash.fund_cash_balance(self.customer_of(invoice), {"amount": amount, "currency": "usd"})

    def applies_cash(self, invoice: str) -> None:
        act(self.twin, "apply_cash", invoice=invoice)

    def returns_cash(self, invoice: str) -> None:
        act(self.twin, "return_cash", customer=self.customer_of(invoice), amount=self.chance.randint(1, 100))

    def transfers_cash(self, invoice: str) -> None:
        act(self.twin, "transfer_cash", customer=self.customer_of(invoice))

    def applies_cash_by_itself(self, invoice: str) -> None:
        """Somebody says whether Stripe applies a customer's cash by itself."""
        mode = self.chance.choice(("automatic", "manual"))
        balance = self.twin.client().v1.customers.cash_balance
        balance.update(self.customer_of(invoice), {"settings": {"reconciliation_mode": mode}})

    def customer_of(self, invoice: str) -> str:
        return str(self.twin.client().v1.invoices.retrieve(invoice).customer)

    def credits(self, invoice: str) -> None:
        back = self.gateway if self.chance.random() < 0.4 else None
        amount = {"std": Decimal(self.chance.randint(1, 300)) / 100}
        reason = f"r{self.chance.random()}"
        credit_invoice(self.world.engine, invoice, amount, reason=reason, now=NOW, actor="ada", refund_from=back)

    def credits_by_hand(self, invoice: str) -> None:
        """Somebody makes a credit note in Stripe's dashboard; of what is paid, one that pays nothing out."""
        client, amount = self.twin.client(), self.chance.randint(1, 200)
        paid = client.v1.invoices.retrieve(invoice).status == "paid"
        note = client.v1.credit_notes.create(
            {"invoice": invoice, "amount": amount, "out_of_band_amount": amount}
            if paid
            else {"invoice": invoice, "amount": amount}
        )
        self.by_hand.append(note.id)

    def undoes_a_note_by_hand(self, _: str) -> None:
        """Somebody voids the note again that was made there last, before anybody here took it over."""
        if self.by_hand:
            self.twin.client().v1.credit_notes.void_credit_note(self.by_hand[-1])
            self.by_hand.pop()

    def ends_by_hand(self, invoice: str) -> None:
        """Somebody voids an invoice there, or gives it up; rarely: there are four."""
        if self.chance.random() < 0.2:
            invoices = self.twin.client().v1.invoices
            self.chance.choice((invoices.void_invoice, invoices.mark_uncollectible))(invoice)

    def follows(self, invoice: str) -> None:
        """A person here lets the books follow what was done to an invoice by hand, by the verbs that are told."""
        theirs, _ = self.gateway.invoice(invoice)
        for found in self.gateway.pages("/v1/credit_notes", invoice=invoice):
            if found["id"] in self.by_hand:
                amounts = {"std": Decimal(found["total"]) / 100}
                take_over_note(
                    self.world.engine, invoice, found["id"], amounts, gateway=self.gateway, reason=found["id"], now=NOW,
                    actor="ada",
                )  # fmt: skip
                self.by_hand.remove(found["id"])
        of = invoice_document(self.world.engine, invoice)
        ours = of["state"]
        if theirs.seen.status in ("paid", "void"):
            self.keeps_notes_untold(uuid.UUID(of["invoice_id"]))
        if theirs.seen.status == "void" and ours in ("finalized", "uncollectible"):
            void_invoice(self.world.engine, invoice, reason="r", now=NOW, actor="ada", gateway=self.gateway)
        elif theirs.seen.status == "uncollectible" and ours == "finalized":
            self.by_two(ProposalKind.WRITE_OFF, invoice)

    def keeps_notes_untold(self, invoice_id: uuid.UUID) -> None:
        """What Stripe never takes of our credit notes stays here alone."""
        with transaction(self.world.engine) as connection:
            open_ = correction_store.listed(
                connection, state=CorrectionState.OPEN, invoice_ids=[invoice_id], kind=CorrectionKind.CREDIT_NOTE
            )
        for each in open_:
            if each.told_because is not None:
                keep_note_untold(
                    self.world.engine, str(each.note_id), gateway=self.gateway, reason="r", now=NOW, actor="ada"
                )
                self.untold.add(str(each.note_id))

    def voids(self, invoice: str) -> None:
        void_invoice(self.world.engine, invoice, reason="r", now=NOW, actor="ada")

    def ends(self, invoice: str) -> None:
        self.by_two(self.chance.choice([ProposalKind.WRITE_OFF, ProposalKind.PAID_ELSEWHERE]), invoice)

    def by_two(self, kind: ProposalKind, invoice: str) -> None:
        number = propose(self.world.engine, kind, invoice, {}, document="d", now=NOW, actor="ada")
        decide(self.world.engine, number, approved=True, now=NOW, actor="bob")

    def syncs(self, _: str) -> None:
        sync(self.world, self.gateway)
        if self._committed_late():
            settle(self.twin)
            sync(self.world, self.gateway)
        self.agrees()

    def _committed_late(self) -> bool:
        """Whether Stripe has done, or does, something after its list was read."""
        _, _, faults = self.twin.call("GET", "/_twin/faults")
        return any(fault["met"] and fault["kind"] == FaultKind.COMMIT_LATE for fault in faults["data"])

    def hears(self, _: str) -> None:
        """Some webhooks come, twice and in any order, and are handled before the others."""
        events = self.gateway.get("/v1/events", limit=50)["data"]
        heard = self.chance.choices(events, k=self.chance.randint(1, 40))
        with transaction(self.world.engine) as connection:
            for event in heard:
                returns_store.keep_event(connection, returns.event_of(event), received_as="webhook")
        sync(self.world, self.gateway, poll=False)

    def catch_up(self) -> None:
        """Take in and tell all, as long as something is open; what Stripe stored as a 5xx is looked up in time.
        Somebody here follows what was done by hand."""
        for _ in range(6):
            sync(self.world, self.gateway)
            for invoice in self.invoices if self.steps is BY_HAND else ():
                with suppress(*REFUSED):
                    self.follows(invoice)
            self.world.age_requests(hours=1)

    def agrees(self) -> None:
        """Whenever all is taken in, 1010 is what Stripe's balance transactions come to, and 1012 customers' cash."""
        moved: Counter[str] = Counter()
        for each in self.gateway.pages("/v1/balance_transactions"):
            moved[each["currency"].upper()] += each["net"]
        now = self.books()
        for code in CURRENCIES:
            assert now.get((1010, code), Decimal(0)) == Decimal(moved[code]) / 100, code
        pages = "/v1/customers/{}/cash_balance_transactions"
        cash = sum(
            each["net_amount"] for c in self.gateway.customers(None) for each in self.gateway.pages(pages, c["id"])
        )
        assert now.get((1012, "USD"), Decimal(0)) == Decimal(cash) / 100

    def books(self) -> dict[tuple[int, str], Decimal]:
        """The balance of each account by currency, debit positive."""
        balance = trial_balance(self.world.engine)
        assert balance.balanced
        return {(row.code, row.currency): row.debit - row.credit for row in balance.rows}


STEPS: Final = (
    "pays", "pays", "pays", "fails", "fails_to_refund", "hears", "hears",
    "disputed", "decided", "regained", "paid_out", "refunds", "refunds",
    "refunds_by_hand", "credits", "credits", "voids", "ends", "sends_cash", "applies_cash", "returns_cash",
    "transfers_cash", "applies_cash_by_itself", "syncs", "syncs",
)  # fmt: skip
BY_HAND: Final = (*STEPS, "credits_by_hand", "undoes_a_note_by_hand", "ends_by_hand", "follows", "follows")
"""Also what people do to invoices in Stripe's dashboard, and what a person here does about it."""
REFUSED: Final = (ActRefused, CorrectionRefused, ProposalRefused, StripeError, stripe.StripeError)


def run(
    world: World, gateway: StripeGateway, twin: StripeTwin, *, seed: int, steps: int, by_hand: bool = False
) -> list[str]:
    """Let a random month happen, catch up, and say what does not agree. `by_hand`: people also credit, void and give
    up invoices in Stripe."""
    month = Month(world, gateway, twin, seed, BY_HAND if by_hand else STEPS)
    for _ in range(steps):
        month.step()
    month.catch_up()
    month.agrees()
    wrong = [str(row) for row in world.rows("select * from ledger.corrections where state = 'open'")]
    if sum(month.done.values()) < steps // 3:
        wrong.append(f"a month in which little happens shows little: {month.done}")
    listed = invoice_list(world.engine)
    receivable = Decimal(0)
    for invoice in listed:
        if invoice["kind"] != "credit_note":
            theirs, _ = gateway.invoice(invoice["stripe_invoice_id"])
            if theirs.seen.status != {"finalized": "open"}.get(invoice["state"], invoice["state"]):
                wrong.append(f"{invoice['number']} is {theirs.seen.status} in Stripe and {invoice['state']} here")
            receivable += Decimal(theirs.amount_remaining if invoice["state"] == "finalized" else 0) / 100
        elif invoice["state"] == "issued_locally" and not (
            str(invoice["invoice_id"]) in month.untold or _voided(world, invoice)
        ):
            wrong.append(f"Stripe was not told of {invoice['number']}")
    there = {note["id"]: note["total"] for note in gateway.pages("/v1/credit_notes") if note["status"] == "issued"}
    told = {name: total for name, total in there.items() if name not in month.by_hand}
    states = {invoice["stripe_invoice_id"]: invoice["state"] for invoice in listed}
    wrong += [
        f"nobody could take over {note['id']} on an invoice that is {states[note['invoice']]}"
        for note in gateway.pages("/v1/credit_notes")
        if note["id"] in month.by_hand and states[note["invoice"]] != "void"
    ]
    issued = {i["stripe_invoice_id"]: -i["total"] for i in listed if i["state"] == "issued"}
    if told != issued:
        wrong.append(f"credit notes in Stripe {told}, here {issued}")
    owed = month.books().get((1100, "USD"), Decimal(0))
    if owed != receivable:
        wrong.append(f"1100 has {owed}, Stripe {receivable} to be paid")
    return wrong


def _voided(world: World, note: dict[str, Any]) -> bool:
    of = invoice_document(world.engine, note["credits_invoice"]["number"])
    return str(of["state"]) == "void"
