"""The table of an invoice's moves, whole."""

from __future__ import annotations

from itertools import product

import pytest

from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.rules.invoice_status import (
    InvoiceAction,
    InvoiceStatus,
    check_draft,
    check_editable,
    transition,
)

ALLOWED = {
    "finalize": {"draft": "open"},
    "pay": {"open": "paid", "uncollectible": "paid"},
    "void": {"open": "void", "uncollectible": "void"},
    "mark_uncollectible": {"open": "uncollectible"},
    "send": {"open": "open", "paid": "paid", "uncollectible": "uncollectible"},
    "delete": {"draft": "draft"},
}


@pytest.mark.parametrize(("status", "action"), list(product(InvoiceStatus, InvoiceAction)))
def test_every_move_is_allowed_or_refused_as_in_the_table(status: InvoiceStatus, action: InvoiceAction) -> None:
    expected = ALLOWED[action.value].get(status.value)
    if expected is None:
        with pytest.raises(StripeError) as caught:
            transition(status, action)
        assert caught.value.status == 400
    else:
        assert transition(status, action) == expected


@pytest.mark.parametrize("status", [status for status in InvoiceStatus if status is not InvoiceStatus.DRAFT])
def test_only_drafts_take_lines_and_numbers(status: InvoiceStatus) -> None:
    check_editable(status, {"metadata"})
    for refuse in (lambda: check_draft(status), lambda: check_editable(status, {"metadata", "number"})):
        with pytest.raises(StripeError) as caught:
            refuse()
        assert caught.value.code == "invoice_not_editable"
