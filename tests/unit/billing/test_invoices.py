"""An invoice's identity, the keys of its lines, and the states of its life."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from billing.errors import CurrencyMismatch, IllegalTransition
from billing.invoicing.invoice_states import InvoiceEvent, InvoiceState, after, settled_locally
from billing.invoicing.invoices import InvoiceIdentity, InvoiceKind
from billing.money import plain
from billing.plans.price_plans import Metric
from billing.rating import difference, rate
from tests.billing_builders import (
    NOVEMBER,
    OCTOBER,
    bill,
    charge,
    cut,
    invoice,
    rated,
    rounded,
    subscription,
    usage,
    version,
)

OUTPUT = Metric.OUTPUT
PLAN = version(charge("out", OUTPUT, "0.01"))
IDENTITY = InvoiceIdentity("default", "acme", InvoiceKind.USAGE, OCTOBER, "USD")


def test_every_part_of_the_identity_makes_another_invoice() -> None:
    others = [
        replace(IDENTITY, legal_entity="eu"),
        replace(IDENTITY, billing_account="acme2"),
        replace(IDENTITY, kind=InvoiceKind.ADVANCE),
        replace(IDENTITY, period=NOVEMBER),
        replace(IDENTITY, currency="EUR"),
        replace(IDENTITY, revision=1),
    ]
    assert len({IDENTITY.invoice_id, *(other.invoice_id for other in others)}) == 7
    assert replace(IDENTITY).invoice_id == IDENTITY.invoice_id


def test_the_id_of_an_identity_never_changes() -> None:
    assert str(IDENTITY.invoice_id) == "d2f0bf3c-7b5b-5a29-888e-d3cf62280a9f"


def test_a_line_is_called_by_its_charge_alone_where_that_is_enough() -> None:
    assert list(rounded(bill(PLAN, [usage(output_tokens=1)]))) == ["out"]


def test_segment_and_version_join_the_key_where_there_are_several() -> None:
    middle = datetime(2026, 10, 16, tzinfo=UTC)
    v2 = version(charge("out", OUTPUT, "0.02"), name="v2", valid_from=middle)
    first, second = cut([PLAN, v2])
    versions = invoice(
        rate([(first, [usage(output_tokens=1)]), (second, [usage(output_tokens=1)])], OCTOBER).lines, plan_versions=2
    )
    assert list(rounded(versions)) == ["out.v1", "out.v2"]
    (one,), (two,) = cut([PLAN], of=subscription(ends_at=middle)), cut([PLAN], of=subscription(starts_at=middle))
    lines = rate(
        [(one, [usage(output_tokens=1)]), (replace(two, segment_no=2), [usage(output_tokens=1)])], OCTOBER
    ).lines
    assert list(rounded(invoice(lines))) == ["out.s1", "out.s2"]


def test_an_invoice_over_differences_is_that_over_their_sum() -> None:
    early, late = rated(PLAN, [usage(output_tokens=7)]).lines, rated(PLAN, [usage(output_tokens=12)]).lines
    assert invoice([*early, *difference(late, early)]) == invoice(late)
    gone = invoice([*late, *difference((), late)])
    assert (gone.lines, gone.net_minor, plain(gone.exact_total)) == ((), 0, "0")


def test_lines_in_another_currency_are_refused() -> None:
    with pytest.raises(CurrencyMismatch):
        invoice(rated(PLAN, [usage(output_tokens=1)]).lines, currency="EUR")


def test_equal_documents_have_equal_hashes_and_others_have_not() -> None:
    one, same, other = (bill(PLAN, [usage(output_tokens=n)]) for n in (7, 7, 8))
    assert one.lines_hash == same.lines_hash
    assert one.lines_hash != other.lines_hash


LEGAL = {
    (InvoiceState.DRAFT, InvoiceEvent.APPROVE, InvoiceState.APPROVED),
    (InvoiceState.DRAFT, InvoiceEvent.SETTLE_AS_ZERO, InvoiceState.ZERO),
    (InvoiceState.DRAFT, InvoiceEvent.CARRY, InvoiceState.CARRIED_BELOW_MINIMUM),
    (InvoiceState.DRAFT, InvoiceEvent.ISSUE, InvoiceState.ISSUED_LOCALLY),
    (InvoiceState.ISSUED_LOCALLY, InvoiceEvent.TELL, InvoiceState.ISSUED),
    (InvoiceState.APPROVED, InvoiceEvent.FINALIZE, InvoiceState.FINALIZED),
    (InvoiceState.FINALIZED, InvoiceEvent.PAY, InvoiceState.PAID),
    (InvoiceState.FINALIZED, InvoiceEvent.VOID, InvoiceState.VOID),
    (InvoiceState.FINALIZED, InvoiceEvent.GIVE_UP, InvoiceState.UNCOLLECTIBLE),
    (InvoiceState.UNCOLLECTIBLE, InvoiceEvent.PAY, InvoiceState.PAID),
    (InvoiceState.UNCOLLECTIBLE, InvoiceEvent.VOID, InvoiceState.VOID),
}


@pytest.mark.parametrize("state", InvoiceState)
@pytest.mark.parametrize("event", InvoiceEvent)
def test_every_move_is_either_legal_or_an_error_that_names_it(state: InvoiceState, event: InvoiceEvent) -> None:
    leads_to = {(s, e): to for s, e, to in LEGAL}.get((state, event))
    if leads_to is None:
        with pytest.raises(IllegalTransition, match=f"{state} cannot {event}"):
            after(state, event)
    else:
        assert after(state, event) is leads_to


def test_a_currency_without_a_published_minimum_is_carried_below_what_any_comes_to() -> None:
    """Stripe would mark it paid, and let the customer owe it as a balance."""
    won = version(charge("out", OUTPUT, "1"), currency="KRW")
    of = {amount: settled_locally(bill(won, [usage(output_tokens=amount)], currency="KRW")) for amount in (1499, 1500)}
    assert of == {1499: InvoiceEvent.CARRY, 1500: None}


@pytest.mark.parametrize("currency", ["USD", "KRW"])
def test_a_negative_amount_is_carried_and_never_sent(currency: str) -> None:
    """At Stripe it would become a balance of the customer's, which no invoice of ours knows of."""
    plan = version(charge("out", OUTPUT, "1"), currency=currency)
    owed = bill(plan, [usage(output_tokens=7000)], currency=currency)
    assert settled_locally(owed) is None
    assert settled_locally(replace(owed, amount_due_minor=-7000)) is InvoiceEvent.CARRY
