"""What `close run` tells beside the month's own invoices."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from billing.commands.close_month import MonthClosed
from billing.commands.draft_invoices import InvoicesDrafted
from billing.commands.expire_credits import CreditExpired
from billing.commands.issue_credit_notes import CreditNotesIssued
from billing.commands.rate_period import PeriodRated
from billing.commands.send_invoices import InvoicesSent
from billing.commands.top_up_credit import ToppedUp
from billing.plans.price_plans import Metric
from console.close_shown import EARLIER_USUAL, gate_rows, show_run
from reconciliation.close.running import CloseRun
from tests.billing_builders import OCTOBER, bill, charge, stored, usage, version

RATED = PeriodRated(OCTOBER, (), (), (), (), ())


def told(capsys: pytest.CaptureFixture[str], **found: Any) -> str:
    drafted, sent = InvoicesDrafted(OCTOBER, (), (), (), (), ()), InvoicesSent(())
    show_run(CloseRun(OCTOBER, prepared=MonthClosed(OCTOBER, RATED, drafted, sent, **found)))
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("more", "said"), [(0, False), (1, True)])
def test_it_is_said_when_more_earlier_periods_than_usual_are_rated_again(
    capsys: pytest.CaptureFixture[str], more: int, said: bool
) -> None:
    assert ("closing their books ends that" in told(capsys, earlier=(RATED,) * (EARLIER_USUAL + more))) is said


def test_credit_notes_expired_credits_and_credit_to_be_paid_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    note = stored(bill(version(charge("out", Metric.OUTPUT, "1")), [usage(output_tokens=7)]), number="CN-000001")
    done = told(
        capsys,
        notes=CreditNotesIssued((note,), ()),
        expired=(CreditExpired("promo", "acme", "USD", Decimal(5)),),
        topped_up=(ToppedUp("acme", ("g1",), Decimal(100), "USD", Decimal(3)),),
    )
    assert "credit note CN-000001 for tenant_1, 2026-10: 7.00 USD" in done
    assert "1 credits expired" in done
    assert "acme: 100 USD of credit to be paid" in done
    assert "nothing changed" not in done


def test_what_was_waived_is_no_difference_of_a_gate() -> None:
    found = {"gates": [{"gate": "R9", "compared": 5, "differences": [{"waived_by": "cyd"}, {"waived_by": None}]}]}
    (row,) = gate_rows(found)
    assert (row["compared"], row["differences"], row["waived"]) == (5, 1, 1)


def test_a_run_that_did_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing changed" in told(capsys)
