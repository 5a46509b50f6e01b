"""What `close run` tells of earlier periods."""

from __future__ import annotations

import pytest

from billing.commands.close_month import MonthClosed
from billing.commands.draft_invoices import InvoicesDrafted
from billing.commands.rate_period import PeriodRated
from billing.commands.send_invoices import InvoicesSent
from console.commands.close import EARLIER_USUAL, show
from tests.billing_builders import OCTOBER

RATED = PeriodRated(OCTOBER, (), (), (), (), ())


@pytest.mark.parametrize(("more", "told"), [(0, False), (1, True)])
def test_it_is_said_when_more_earlier_periods_than_usual_are_rated_again(
    capsys: pytest.CaptureFixture[str], more: int, told: bool
) -> None:
    drafted, sent = InvoicesDrafted(OCTOBER, (), (), (), (), ()), InvoicesSent(())
    show(MonthClosed(OCTOBER, RATED, drafted, sent, earlier=(RATED,) * (EARLIER_USUAL + more)))
    assert ("closing their books ends that" in " ".join(capsys.readouterr().out.split())) is told
