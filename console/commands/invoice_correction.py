"""The verbs of `tollbook invoice` that do something to a finalized one: void, credit-note, write-off, refund, pay."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from billing.commands.correct_invoice import credit_invoice, find_invoice, reissue, void_invoice
from billing.commands.keep_note_untold import keep_note_untold
from billing.commands.refund_invoice import refund_invoice
from billing.commands.restart_sending import restart_sending
from billing.commands.send_corrections import CorrectionSent, send_corrections
from billing.commands.take_over_note import take_over_note
from billing.money import LINE_DECIMALS, parse_decimal
from billing.plans.price_plans import DEFAULT_TAX_GROUP
from billing.posting.proposal_store import ProposalKind
from console import session
from console.commands.invoice_evidence import InvoiceName
from console.invoice_shown import note_told
from console.output import end_with, out
from console.proposing import propose

if TYPE_CHECKING:
    from sqlalchemy import Engine

Reason = Annotated[str, typer.Option(help="Why; the audit log keeps it.")]
Document = Annotated[str, typer.Option(help="What it rests on, such as a letter or a bank statement.")]
Test = Annotated[bool, typer.Option("--test", help="On a Stripe test key or a twin.")]
Amount = Annotated[str | None, typer.Option(help="In major units, such as 12.50.")]
Reissue = Annotated[bool, typer.Option("--reissue", help="Draw up anew, at once, all that was taken back.")]


def void(
    reference: InvoiceName,
    actor: session.Actor,
    reason: Reason,
    again: Reissue = False,
    test: Test = False,
    dry_run: session.DryRun = False,
) -> None:
    """Void an invoice that nobody has got yet, here and in Stripe. Its number stays used; its usage is billed anew."""
    gateway, now = session.stripe(test=test), session.clock(None)
    with session.engine() as engine:
        made = void_invoice(engine, reference, reason=reason, now=now, actor=actor, gateway=gateway, dry_run=dry_run)
        if dry_run:
            out.print(f"{reference} can be voided")
            return
        _told(send_corrections(engine, gateway=gateway, now=now, actor=actor, correction_nos=[made.correction_no]))
        _again(engine, reference, actor, again)


def restart(
    reference: InvoiceName,
    actor: session.Actor,
    reason: Reason,
    customer: Annotated[
        str | None, typer.Option(help="A customer in Stripe (cus_…) in place of one that is deleted there.")
    ] = None,
    number_taken: Annotated[
        str | None, typer.Option(help="Another invoice in Stripe (in_…) that has its number: it gets the next one.")
    ] = None,
    test: Test = False,
    dry_run: session.DryRun = False,
) -> None:
    """Begin anew with an invoice that is not finalized, where what it had in Stripe is gone: its draft, its customer.

    What is still there must be deleted or voided there first; nothing of it is overwritten.
    """
    with session.engine() as engine:
        done = restart_sending(
            engine, reference, gateway=session.stripe(test=test), reason=reason, now=session.clock(None), actor=actor,
            customer=customer, number_taken=number_taken, dry_run=dry_run,
        )  # fmt: skip
    out.print(f"{'would be done: ' if dry_run else ''}{done}")


def credit_note(
    reference: InvoiceName,
    actor: session.Actor,
    reason: Reason,
    amount: Amount = None,
    tax_group: Annotated[str, typer.Option(help="Of the lines in this tax group.")] = DEFAULT_TAX_GROUP,
    again: Annotated[bool, typer.Option("--reissue", help="Over all of it, which is drawn up anew at once.")] = False,
    refund: Annotated[bool, typer.Option("--refund", help="Give back what was paid of it already.")] = False,
    made: Annotated[
        str | None, typer.Option("--made-in-stripe", help="Somebody made it there by hand (cn_…): take that one over.")
    ] = None,
    test: Test = False,
    dry_run: session.DryRun = False,
) -> None:
    """Issue a credit note against an invoice, here and in Stripe: over an amount, before tax that comes on top, or all.

    What was paid of it already is kept as unapplied cash (`invoice refund --credit-note` gives it back), or goes back.
    """
    if (amount is None) != again:
        raise typer.BadParameter("say --amount, or --reissue for all of it")
    if made is not None and refund:
        raise typer.BadParameter("--refund does not go with --made-in-stripe")
    gateway, now = session.stripe(test=test), session.clock(None)
    amounts = None if amount is None else {tax_group: _amount(amount)}
    with session.engine() as engine:
        if made is not None:
            note = take_over_note(
                engine, reference, made, amounts, gateway=gateway, reason=reason, now=now, actor=actor,
                dry_run=dry_run,
            )  # fmt: skip
            out.print(f"{'would be taken over: ' if dry_run else 'taken over: '}{note_told(note)}")
            if not dry_run:
                _again(engine, reference, actor, again)
            return
        note = credit_invoice(
            engine, reference, amounts, reason=reason, now=now, actor=actor,
            refund_from=gateway if refund else None, dry_run=dry_run,
        )  # fmt: skip
        out.print(f"{'would be issued: ' if dry_run else ''}{note_told(note)}")
        if not dry_run:
            sent = send_corrections(engine, gateway=gateway, now=now, actor=actor)
            _told([each for each in sent if each.correction.note_id == note.invoice.invoice_id])
            _again(engine, reference, actor, again)


def note_untold(
    reference: InvoiceName,
    actor: session.Actor,
    reason: Reason,
    test: Test = False,
    dry_run: session.DryRun = False,
) -> None:
    """Leave a credit note that Stripe refuses, or that is void there, in our books alone. Its invoice must be paid or
    void there; what it takes off one that is paid is unapplied cash."""
    with session.engine() as engine:
        note = keep_note_untold(
            engine, reference, gateway=session.stripe(test=test), reason=reason, now=session.clock(None), actor=actor,
            dry_run=dry_run,
        )  # fmt: skip
    out.print(f"{'would be kept' if dry_run else 'kept'} in our books alone: {note.number}")


def refund(
    reference: InvoiceName,
    actor: session.Actor,
    reason: Reason,
    amount: Amount = None,
    note: Annotated[
        str | None, typer.Option("--credit-note", help="Pay out what this credit note left as unapplied cash.")
    ] = None,
    test: Test = False,
    dry_run: session.DryRun = False,
) -> None:
    """Give back what was paid of an invoice in Stripe: all of it, or an amount. Booked as Stripe's balance moves."""
    gateway, now = session.stripe(test=test), session.clock(None)
    with session.engine() as engine:
        made = refund_invoice(
            engine, reference, None if amount is None else _amount(amount), gateway=gateway, reason=reason,
            actor=actor, note=note, dry_run=dry_run,
        )  # fmt: skip
        if dry_run:
            out.print(f"would be given back from {len(made.content['parts'])} payments")
        else:
            _told(send_corrections(engine, gateway=gateway, now=now, actor=actor, correction_nos=[made.correction_no]))


def write_off(
    reference: InvoiceName, actor: session.Actor, document: Document, dry_run: session.DryRun = False
) -> None:
    """Propose to write off what is left to pay of an invoice. Another person approves it (`tollbook approval`)."""
    _propose(ProposalKind.WRITE_OFF, reference, actor, document, dry_run)


def pay(
    reference: InvoiceName,
    actor: session.Actor,
    document: Document,
    out_of_band: Annotated[bool, typer.Option("--out-of-band", help="It was paid outside Stripe.")] = False,
    dry_run: session.DryRun = False,
) -> None:
    """Propose that what is left of an invoice was paid outside Stripe. Another person approves it."""
    if not out_of_band:
        raise typer.BadParameter(
            "say --out-of-band: what is paid in Stripe comes in by itself (`tollbook stripe sync`)"
        )
    _propose(ProposalKind.PAID_ELSEWHERE, reference, actor, document, dry_run)


def _propose(kind: ProposalKind, reference: str, actor: str, document: str, dry_run: bool) -> None:
    with session.engine() as engine:
        subject = str(find_invoice(engine, reference).invoice.invoice_id)
    propose(kind, subject, {}, document, actor, dry_run, then=", then `tollbook stripe sync` tells Stripe")


def _told(sent: list[CorrectionSent]) -> None:
    for each in sent:
        if each.done:
            out.print(f"{each.correction.kind}: done in Stripe ({each.correction.stripe_id})")
    hindered = [f"{each.correction.kind}: {each.correction.state}: {each.reason}" for each in sent if each.reason]
    end_with(hindered)


def _again(engine: Engine, reference: str, actor: str, wanted: bool) -> None:
    if not wanted:
        return
    stored = find_invoice(engine, reference)
    for draft in reissue(engine, stored, now=session.clock(None), actor=actor):
        of = draft.identity
        out.print(f"drawn up anew: {of.kind} of {of.period.name}; `tollbook invoice send {of.period.name}` sends it")


def _amount(text: str) -> Decimal:
    return parse_decimal(text, decimals=LINE_DECIMALS)
