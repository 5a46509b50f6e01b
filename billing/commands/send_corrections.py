"""Tell Stripe of what was done to invoices, each correction once, whatever happens on the way. It can be run again."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from billing.database import SENDERS_MAX, connection, transaction
from billing.errors import (
    NoStripeAccount,
    StripeAccessRefused,
    StripeBusy,
    StripeOutcomeUnknown,
    StripeRefused,
    StripeRefusedBefore,
    in_words,
)
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import Correction, CorrectionEvent, CorrectionKind, CorrectionState
from billing.stripe import standing_store
from billing.stripe.correction_sender import CorrectionSender, tell_refused
from billing.stripe.request_sender import Circumstances, Parked
from billing.stripe.sender_lock import account_held
from billing.stripe.stripe_accounts import Stripe, followed

FINAL = tuple(CorrectionKind(kind) for kind in ("void", "write_off", "paid_elsewhere", "refund", "evidence"))
"""What Stripe refuses of these is over: nothing was done, neither there nor here."""

ALONE = (CorrectionKind.OVERPAYMENT, CorrectionKind.EVIDENCE)
"""These wait for no other correction of their invoice, and no other waits for them."""


@dataclass(frozen=True, slots=True)
class CorrectionSent:
    """A correction as it is after a run. `reason`: what hinders it, or why it, or a part of it, was refused."""

    correction: Correction
    reason: str | None = None

    @property
    def done(self) -> bool:
        """Whether Stripe has done it, and the books have it."""
        return self.correction.state is CorrectionState.DONE


def send_corrections(
    engine: Engine,
    *,
    gateway: Stripe,
    now: datetime,
    actor: str = "tollbook",
    correction_nos: Collection[int] | None = None,
    but: Collection[int] = (),
    checkpoint: Callable[[uuid.UUID, str], None] | None = None,
    pause_s: float = 0.2,
    again: bool = False,
) -> list[CorrectionSent]:
    """Tell Stripe of all corrections that are open (but some), or of those named; what became of each.

    What Stripe has refused is told again `again`, or once some time has passed: after an hour, then two, up to a day.
    Those of one account go one after another. What needs a person says so and stops no other. Raises
    StripeAccessRefused.
    """
    with transaction(engine) as opened:
        open_ = correction_store.listed(opened, state=CorrectionState.OPEN)
        open_ = [c for c in open_ if correction_nos is None or c.correction_no in correction_nos]
        open_ = [c for c in open_ if c.correction_no not in but]
        invoices = invoice_store.listed(opened, invoice_ids={c.invoice_id for c in open_}) if open_ else []
    of = {s.invoice.invoice_id: s.invoice.identity for s in invoices}
    by_account: dict[tuple[str, str], list[Correction]] = defaultdict(list)
    for correction in open_:
        identity = of[correction.invoice_id]
        by_account[identity.legal_entity, identity.billing_account].append(correction)
    passed = checkpoint or (lambda invoice_id, name: None)
    given: dict[str, Circumstances] = {}
    left: list[CorrectionSent] = []
    for entity in sorted({entity for entity, _ in by_account}):
        try:
            given[entity] = Circumstances(followed(engine, gateway, entity), now, actor, passed, pause_s, again)
        except (NoStripeAccount, StripeBusy, StripeOutcomeUnknown) as error:
            left += [CorrectionSent(c, str(error)) for c in open_ if of[c.invoice_id].legal_entity == entity]
    senders = min(sum(each.limiter.senders for each in gateway.each), SENDERS_MAX)
    executor = ThreadPoolExecutor(senders, thread_name_prefix="correct")
    try:
        runs = [
            executor.submit(_all_of, engine, name, listed, given[entity])
            for (entity, name), listed in by_account.items()
            if entity in given
        ]
        return [*(sent for run in runs for sent in run.result()), *left]
    finally:
        executor.shutdown(cancel_futures=True)


def _all_of(engine: Engine, account: str, listed: Sequence[Correction], given: Circumstances) -> list[CorrectionSent]:
    with connection(engine) as opened, account_held(opened, account) as held:
        if not held:
            return [CorrectionSent(correction, "another sender is at it") for correction in listed]
        found = []
        for correction in listed:
            reason = None
            try:
                with opened.begin():
                    _check_turn(opened, correction)
                CorrectionSender(opened, correction.correction_no, given).run()
            except (StripeAccessRefused, InterfaceError, OperationalError):
                raise
            except Exception as error:  # also a reply of a shape that nobody thought of: it stops no other correction
                with opened.begin():
                    reason = _hindered(opened, correction, error)
            with opened.begin():
                after = correction_store.one(opened, correction.correction_no)
            refused_in_part = after.told_because if after.kind is CorrectionKind.REFUND else None
            found.append(CorrectionSent(after, reason or refused_in_part))
        return found


def _check_turn(opened: Connection, correction: Correction) -> None:
    """Those of one invoice go in order: what comes later may rest on what was before. Raises Parked.

    But for the write-off of what somebody has made uncollectible there: Stripe takes no credit note on it before that,
    and none after it (`CorrectionSender`).
    """
    if correction.kind in ALONE:
        return
    standing = standing_store.standings(opened, [correction.invoice_id]).get(correction.invoice_id)
    if correction.kind is CorrectionKind.WRITE_OFF and standing is not None and standing.status == "uncollectible":
        return
    open_ = correction_store.listed(opened, state=CorrectionState.OPEN, invoice_ids=[correction.invoice_id])
    first = next((each for each in open_ if each.kind not in ALONE), correction)
    if first.correction_no < correction.correction_no:
        raise Parked(f"first this invoice's {first.kind}: {first.told_because or 'it is not told yet'}")


def _hindered(opened: Connection, correction: Correction, error: Exception) -> str:
    """Keep what hinders a correction, or that it is over; that, in words."""
    reason = in_words(error)
    if isinstance(error, StripeRefusedBefore) and correction.kind not in FINAL:
        return correction.told_because or reason
    if isinstance(error, StripeRefused) and correction.kind in FINAL:
        correction_store.end(opened, correction, CorrectionEvent.REFUSE, because=reason)
        tell_refused(opened, correction, reason)
        return reason
    if isinstance(error, StripeRefused):
        reason += ": mend it in Stripe, and `tollbook stripe sync --again` tells it again (by itself within a day)"
    if correction.note_id is not None and not isinstance(error, StripeBusy | StripeOutcomeUnknown):
        if isinstance(error, StripeRefused):
            ((number, _),) = invoice_store.headers(opened, [correction.note_id]).values()
            reason += f"; or `tollbook invoice note-untold {number}` where its invoice is paid or void there"
        invoice_store.park(opened, correction.note_id, reason)
    correction_store.hinder(opened, correction.correction_no, reason)
    return reason
