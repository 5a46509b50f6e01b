"""What goes to Stripe: keys, parameters, and what counts as a difference."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import pytest

from billing.errors import IllegalTransition
from billing.invoicing.invoices import Invoice
from billing.invoicing.parties import Party
from billing.invoicing.sending import (
    LINES_PER_REQUEST,
    DraftSeen,
    SendingStep,
    customer_changes,
    customer_data,
    customer_request,
    draft_differences,
    draft_request,
    due_date,
    finalize_request,
    following,
    invoice_metadata,
    lines_requests,
    number_request,
)
from billing.invoicing.stripe_lines import LineSeen, line_parameters, stripe_lines
from billing.plans.price_plans import Metric
from tests.billing_builders import OCTOBER, bill, charge, usage, version

PLAN = version(charge("in", Metric.INPUT, "0.01", model="llama"), charge("out", Metric.OUTPUT, "0.03"))
INVOICE = bill(PLAN, [usage(input_tokens=1234, output_tokens=100)], account="acme")
ACME = Party("Acme Inc", street="1 Main St", city="Springfield", country="US", email="ap@acme.example")


def test_keys_are_deterministic_and_name_the_invoice_step_chunk_and_epoch() -> None:
    draft = draft_request(INVOICE, customer="cus_1", payment_terms_days=30)
    (lines,) = lines_requests(INVOICE, stripe_invoice="in_1")
    assert draft.idempotency_key == "tollbook:default:acme:usage:2026-10:r0:draft:0:e0"
    assert lines.idempotency_key == "tollbook:default:acme:usage:2026-10:r0:lines:0:e0"
    assert number_request(INVOICE, stripe_invoice="in_1", number="INV-1", payer=ACME, epoch=2).idempotency_key == (
        "tollbook:default:acme:usage:2026-10:r0:number:0:e2"
    )
    assert finalize_request(INVOICE, stripe_invoice="in_1").idempotency_key.endswith(":r0:finalize:0:e0")
    customer = customer_request("default", "acme", customer_data(ACME))
    assert customer.idempotency_key == "tollbook:default:acme:customer:e0"
    assert draft.key_at(3) == "tollbook:default:acme:usage:2026-10:r0:draft:0:e3"


def test_stripe_is_told_who_pays_and_later_only_what_has_changed() -> None:
    address = {
        "line1": "1 Main St", "line2": "", "postal_code": "", "city": "Springfield", "state": "", "country": "US"
    }  # fmt: skip
    told = customer_request("default", "acme", customer_data(ACME)).decoded
    assert told == {
        "name": "Acme Inc", "email": "ap@acme.example", "address": address,
        "metadata": {"legal_entity": "default", "billing_account": "acme"},
    }  # fmt: skip
    assert "address" not in customer_request("default", "acme", customer_data(Party("Acme"))).decoded
    # As Stripe shows it: what it has not is null.
    there = {**told, "address": {name: value or None for name, value in address.items()}}
    for known in (told, there):
        assert customer_changes(customer_data(ACME), known) == {}
        moved = customer_data(replace(ACME, street="2 Main St"))
        assert customer_changes(moved, known) == {"address": {**address, "line1": "2 Main St"}}
        assert customer_changes({"name": "Acme Inc"}, known) == {}
        nowhere = customer_data(Party("Acme Ltd"))
        assert customer_changes(nowhere, known) == {"name": "Acme Ltd", "address": ""}, "its e-mail address stays"


def test_stripes_invoice_says_of_its_payer_what_our_document_says() -> None:
    def told(payer: Party) -> object:
        request = number_request(INVOICE, stripe_invoice="in_1", number="INV-1", payer=payer)
        return request.decoded

    assert told(ACME) == {"number": "INV-1"}
    long = "P" * 200
    assert told(replace(ACME, tax_id="DE 123", purchase_order=long, reference="Ann")) == {
        "number": "INV-1",
        "custom_fields": [
            {"name": "Tax ID", "value": "DE 123"}, {"name": "Purchase order", "value": long[:140]},
            {"name": "Reference", "value": "Ann"},
        ],
    }  # fmt: skip


def test_an_account_with_a_colon_cannot_take_the_key_of_another() -> None:
    odd = customer_request("default", "acme:usage", {}).idempotency_key
    assert odd == "tollbook:default:acme%3Ausage:customer:e0"


def test_the_longest_names_still_make_a_key_that_stripe_takes() -> None:
    one, two = "a:" * 63 + "b", "a:" * 63 + "c"
    invoices = [bill(PLAN, [usage(output_tokens=100)], account=account) for account in (one, two)]
    keys = [draft_request(i, customer="cus_1", payment_terms_days=30).idempotency_key for i in invoices]
    assert len(set(keys)) == 2
    assert max(map(len, keys)) <= 255 - len("x" * 40) + len("default")


def test_other_parameters_keep_the_key_so_that_stripe_refuses_them() -> None:
    other = bill(PLAN, [usage(input_tokens=1235, output_tokens=100)], account="acme")
    one, two = (draft_request(i, customer="cus_1", payment_terms_days=30) for i in (INVOICE, other))
    assert one.idempotency_key == two.idempotency_key
    assert one.parameters != two.parameters


def test_a_draft_advances_nothing_sweeps_nothing_and_lets_stripe_add_nothing() -> None:
    parameters = draft_request(INVOICE, customer="cus_1", payment_terms_days=14).decoded
    metadata = parameters.pop("metadata")
    assert parameters == {
        "customer": "cus_1",
        "currency": "usd",
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "collection_method": "send_invoice",
        "days_until_due": 14,
        "discounts": "",
        "automatic_tax": {"enabled": False},
    }
    assert metadata == {
        "legal_entity": "default",
        "billing_account": "acme",
        "kind": "usage",
        "period": "2026-10",
        "revision": "0",
        "invoice_id": str(INVOICE.invoice_id),
        "lines_hash": INVOICE.lines_hash,
    }


def test_lines_carry_integer_amounts_their_key_and_an_inclusive_period() -> None:
    (request,) = lines_requests(INVOICE, stripe_invoice="in_1")
    first = request.decoded["lines"][0]
    assert first == {
        "amount": 1234,
        "description": "llama: input, 1234 × 0.01 USD",
        "discountable": False,
        "period": {"start": 1790812800, "end": 1793491199},
        "metadata": {
            "line_key": "in",
            "tenant_id": "tenant_1",
            "quantity": "1234",
            "unit_price": "0.01",
            "amount_exact": "12.34",
        },
    }
    assert "." not in json.dumps([line["amount"] for line in request.decoded["lines"]])


def test_a_line_of_less_than_a_second_ends_no_earlier_than_it_begins() -> None:
    """Stripe refuses a period that does, and with it every line of the request."""
    at = OCTOBER.start
    (line, *_) = stripe_lines(INVOICE)
    for first, last in ((100, 700), (0, 999_999)):
        of = replace(line, period=(at.replace(microsecond=first), at.replace(microsecond=last)))
        assert line_parameters(INVOICE, of)["period"] == {"start": 1790812800, "end": 1790812800}


def test_currencies_without_a_minor_unit_go_as_stripe_counts_them() -> None:
    krona = version(charge("out", Metric.OUTPUT, "1"), currency="ISK")
    (request,) = lines_requests(bill(krona, [usage(output_tokens=7)], currency="ISK"), stripe_invoice="in_1")
    assert request.decoded["lines"][0]["amount"] == 700


def test_many_lines_go_in_chunks_each_under_its_own_key() -> None:
    keys = [f"l{number:03d}" for number in range(LINES_PER_REQUEST + 1)]
    plan = version(*(charge(key, Metric.OUTPUT, "1", model=key) for key in keys))
    requests = lines_requests(bill(plan, [usage(model=key, output_tokens=1) for key in keys]), stripe_invoice="in_1")
    assert [len(request.decoded["lines"]) for request in requests] == [LINES_PER_REQUEST, 1]
    assert [request.idempotency_key[-11:] for request in requests] == [":lines:0:e0", ":lines:1:e0"]


def seen(invoice: Invoice, **changed: object) -> DraftSeen:
    values = DraftSeen(
        "draft", None, "cus_1", "usd", invoice.total_minor, invoice.amount_due_minor, 0, False, "send_invoice",
        False, 0, 0,
        invoice_metadata(invoice),
    )  # fmt: skip
    return replace(values, **changed)  # type: ignore[arg-type]


LINES = [LineSeen("in", 1234, "usd"), LineSeen("out", 300, "usd")]


def differences(found: DraftSeen, lines: list[LineSeen]) -> list[str]:
    return draft_differences(INVOICE, customer="cus_1", found=found, lines=lines)


def test_an_equal_draft_has_no_difference_in_whatever_order_its_lines_come() -> None:
    assert differences(seen(INVOICE), LINES) == []
    assert differences(seen(INVOICE), LINES[::-1]) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"status": "open"}, "status"),
        ({"customer": "cus_2"}, "customer"),
        ({"currency": "eur"}, "currency"),
        ({"total": 1535}, "total is 1535, not 1534"),
        ({"amount_due": 1434}, "amount_due"),
        ({"starting_balance": -100}, "starting_balance"),
        ({"auto_advance": True}, "auto_advance"),
        ({"collection_method": "charge_automatically"}, "collection_method"),
        ({"automatic_tax": True}, "automatic_tax"),
        ({"default_tax_rates": 1}, "default_tax_rates"),
        ({"discounts": 1}, "discounts"),
        ({"metadata": {}}, "metadata lines_hash is None"),
    ],
)
def test_any_difference_of_the_draft_is_told(changed: dict[str, object], told: str) -> None:
    assert any(told in difference for difference in differences(seen(INVOICE, **changed), LINES))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (LINES[:1], ["line out 300 usd is not in Stripe"]),
        ([*LINES, LINES[0]], ["line in 1234 usd is only in Stripe"]),
        ([*LINES, LineSeen("", 5, "usd")], ["line (without key) 5 usd is only in Stripe"]),
        (
            [LineSeen("in", 1233, "usd"), LineSeen("out", 301, "usd")],
            ["line in 1234", "line out 300", "line in 1233", "line out 301"],
        ),
        (
            [LineSeen("in", 1234, "usd", discounts=1), LINES[1]],
            ["line in 1234 usd is not", "with a discount or tax of its own"],
        ),
        (
            [LineSeen("in", 1234, "usd", taxes=1), LINES[1]],
            ["line in 1234 usd is not", "with a discount or tax of its own"],
        ),
    ],
)
def test_any_difference_of_the_lines_is_told(lines: list[LineSeen], told: list[str]) -> None:
    found = differences(seen(INVOICE), lines)
    assert len(found) == len(told)
    assert all(part in text for part, text in zip(told, found, strict=True))


def test_steps_follow_each_other_to_the_end() -> None:
    step, seen_steps = SendingStep.NOT_BEGUN, [SendingStep.NOT_BEGUN]
    while step is not SendingStep.FINALIZED:
        step = following(step)
        seen_steps.append(step)
    assert seen_steps == list(SendingStep)
    with pytest.raises(IllegalTransition):
        following(step)


def test_an_invoice_is_due_so_many_days_after_its_issue() -> None:
    assert due_date(date(2026, 12, 2), 30) == date(2027, 1, 1)
