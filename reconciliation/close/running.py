"""`close run`: takes every account of a month, and then the book, as far as they may go. Safe to repeat and to kill."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine

from billing.commands.close_month import StageProgress
from billing.periods import BillingPeriod
from billing.stripe.stripe_accounts import Stripe
from reconciliation.close.issuing import Issuing
from reconciliation.close.preparing import Preparing
from reconciliation.close.run_context import Checkpoint, CloseRun, Run
from streams.ingest.logs import Log

__all__ = ["CloseRun", "run_close"]


def run_close(
    engine: Engine,
    month: BillingPeriod,
    *,
    gateway: Stripe,
    log: Callable[[], Log],
    now: datetime,
    actor: str,
    test: bool = False,
    progress: StageProgress | None = None,
    checkpoint: Checkpoint = lambda name: None,
) -> CloseRun:
    """Take a month's close as far as it may go now: collect, cut, draft, compare; issue what is approved; the book.

    Raises PeriodNotEnded, and what rating, drafting and sending raise when nothing at all can go on.
    """
    run = Run(engine, month, gateway, log, now, actor, progress, checkpoint)
    preparing, issuing = Preparing(run), Issuing(run)
    preparing.collect()
    preparing.freeze_and_draft(test)
    preparing.reconcile()
    issuing.finalize()
    issuing.close_accounts()
    issuing.close_books()
    return run.done()
