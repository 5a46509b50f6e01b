"""After the approval: issue, compare with Stripe, close the accounts, close the book."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from billing.commands.close_month import finalize_month
from billing.commands.remeasure_balances import remeasure_balances
from billing.commands.seal_journal import seal_journals
from billing.database import transaction
from billing.errors import ProposalRefused
from billing.invoicing import invoice_store, rated_line_store
from billing.invoicing.invoice_states import ISSUED
from billing.invoicing.sending import SendingStep
from billing.ledger import journal_chain_store
from billing.periods import BillingPeriod
from billing.posting.fee_recognition import recognise_fees
from billing.posting.period_closing import close_book
from billing.usage import unbillable_store
from reconciliation.close import close_store, signature_store
from reconciliation.close.close_store import APPROVED, Standing, book_key
from reconciliation.close.contents import contents
from reconciliation.close.evidence import stripe_read
from reconciliation.close.gates.evaluating import Outside, evaluate
from reconciliation.close.gates.gate import AFTER_SENDING, OF_BOOK, OF_LEDGER, Gate
from reconciliation.close.run_context import Run
from reconciliation.close.states import Event, State

BY_SENDING: Final = "sending"
"""What is parked since Stripe needs a person is left by nobody yet, so that its book waits."""
APPLIED_WITHIN_S: Final = 30.0
"""What is in Kafka is applied within a second or two; a stream that is longer behind is told."""


class Issuing:
    """Takes accounts from APPROVED to CLOSED, and books after them."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def finalize(self) -> None:
        """Issue what is approved, as long as it is what was approved."""
        with transaction(self._run.engine) as connection:
            close_store.lock(connection, self._run.month.name)
            standings = self._run.standings(connection)
            approved = self._run.of_state(standings, State.APPROVED)
            texts = contents(connection, self._run.month, {name: self._run.accounts[name] for name in approved})
            signed = {
                each.billing_account: each
                for each in close_store.latest_contents(connection, self._run.month.name, approved)
            }
            issued = self._issued(connection)
            altered = {
                each.key.split("/")[0] for each in signature_store.as_signed(connection, self._run.month).differences
            }
            changed = [
                name
                for name in approved
                if name in altered or (name not in issued and signed[name].content != texts[name])
            ]
            self._run.move(
                connection, [standings[name] for name in changed], Event.RETURN, "not what was approved any more"
            )
        for name in changed:
            self._run.held[name].append("its content is not what was approved: it is reconciled again")
        accounts = [name for name in approved if name not in changed]
        if not accounts:
            return
        run = self._run
        assert run.found.prepared is not None, "rated before"
        run.send(accounts, SendingStep.FINALIZED, "send", only_others=True)
        run.found.prepared = finalize_month(
            run.engine, run.found.prepared, gateway=run.gateway, now=run.now, actor=run.actor, progress=run.progress,
            billing_accounts=accounts,
        )  # fmt: skip
        self._run.checkpoint("sent")
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
            parked, open_ = self._not_issued(connection)
            done = [standings[n] for n in accounts if n not in parked and n not in open_]
            told = signature_store.issued_with(connection, [signed[each.billing_account] for each in done])
            self._run.move(connection, done, Event.FINALIZE, details=told)
            for name in accounts:
                if name in parked:
                    why = {name: {"parked_by": BY_SENDING}}
                    self._run.move(connection, [standings[name]], Event.PARK, parked[name], details=why)
                    self._run.held[name].append(f"parked: {parked[name]}")
        self._run.checkpoint("finalized")

    def _issued(self, connection: Connection) -> set[str]:
        """Accounts of which something that was approved is issued already."""
        listed = invoice_store.listed(connection, of_month=self._run.month, as_stored=True)
        return {
            s.invoice.identity.billing_account
            for s in listed
            if s.state in ISSUED and s.invoice.identity.kind in APPROVED
        }

    def _not_issued(self, connection: Connection) -> tuple[dict[str, str], set[str]]:
        listed = invoice_store.listed(connection, of_month=self._run.month, as_stored=True)
        listed += invoice_store.open_adjustments(connection, before=self._run.month)
        open_ = [s for s in listed if s.state not in ISSUED and s.invoice.identity.kind in APPROVED]
        parked = {s.invoice.identity.billing_account: s.parked_because for s in open_ if s.parked_because}
        return parked, {s.invoice.identity.billing_account for s in open_} - parked.keys()

    def close_accounts(self) -> None:
        """Compare what is final with Stripe; what is green is CLOSED."""
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
            finalized = self._run.of_state(standings, State.FINALIZED)
            waits_for_books = self._books_that_could_close(standings)
        if not finalized and not waits_for_books:
            return
        seal_journals(self._run.engine)
        with transaction(self._run.engine) as connection:
            ids = _in_stripe(connection, self._run.month)
        read: dict[tuple[str, str], str] = {}
        reading = self._run.gateway.wrapped(
            lambda gateway: stripe_read.ReadingGateway(gateway, self._run.month, ids, read)
        )
        outside = Outside(reading, self._run.log, APPLIED_WITHIN_S)
        found = evaluate(self._run.engine, self._run.month, now=self._run.now, outside=outside, rated_again=())
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
            green = [n for n in finalized if not self._run.hold(found, AFTER_SENDING, n)]
            late = {n: standings[n] for n in green if book_key(standings[n].legal_entity) in standings}
            waiting = [name for name, standing in late.items() if not self._is_sealed(connection, standing)]
            done = [standings[name] for name in green if name not in waiting]
            # Of what was parked when its book was closed the evidence has its own journal's end
            ends = {name: _journal_end(connection, standing.legal_entity) for name, standing in late.items()}
            self._run.move(connection, done, Event.CLOSE, details=ends)
            books = {account.legal_entity for account in self._run.accounts.values()}
            is_open = any(book_key(entity) not in standings for entity in books)
            of_books = (*OF_LEDGER, *OF_BOOK) if is_open else ()  # of a closed one they were asked when it was closed
            asked = dict.fromkeys((*AFTER_SENDING, *of_books))
            self._run.keep(connection, {gate: found[gate] for gate in asked if gate in found})
            stripe_read.keep(connection, self._run.month.name, read)
        self._run.checkpoint("accounts closed")

    def _is_sealed(self, connection: Connection, standing: Standing) -> bool:
        """Whether all that was booked for the month, or of its invoices, is sealed; what is not is told."""
        month = self._run.month.name
        documents = map(str, _issued_by(connection, month))
        waiting = journal_chain_store.waiting(connection, standing.legal_entity, up_to=month, documents=list(documents))
        if waiting:
            self._run.held[standing.billing_account].append(f"{waiting} entries of it are not sealed yet: run it again")
        return not waiting

    def close_books(self) -> None:
        """A book is closed when all its accounts are, or are left by an approval, and its own gates are green."""
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
        entities = self._books_that_could_close(standings)
        if not entities or Gate.R6 not in self._run.found.results:
            return
        green = dict(sorted(entities.items()))
        for entity, parked in entities.items():
            for name in (each for each in parked if standings[each].detail.get("parked_by") == BY_SENDING):
                self._run.found.book.append(
                    f"the book of {entity}: {name} is parked, and nobody has left it: mend that and release it, or"
                    f" `tollbook close approve {self._run.month.name} --leave {name} --reason …`"
                )
                green.pop(entity, None)
        legal_entities = {name: account.legal_entity for name, account in self._run.accounts.items()}
        for gate in (*OF_LEDGER, *OF_BOOK):
            held = self._run.found.results[gate].held_books(legal_entities)
            if red := [entity for entity in entities if entity in held]:
                count = len({each.key for entity in red for each in held[entity]})
                self._run.found.book.append(
                    f"{gate}: {count} differences hold up the book of {', '.join(sorted(red))}: `tollbook close status"
                    f" {self._run.month.name} --gate {gate}`"
                )
            green = {entity: parked for entity, parked in green.items() if entity not in held}
        with transaction(self._run.engine) as connection:
            problems = dict(rated_line_store.problems_in(connection, self._run.month))
        for entity, parked in list(green.items()):
            for name in parked:
                if why := [f"tenant {t}: {problems[t]}" for t in self._run.accounts[name].tenants if t in problems]:
                    self._run.found.book.append(
                        f"the book of {entity}: {name} is parked, and its usage is not accrued: {'; '.join(why)}: mend"
                        " that and run it again, it stays parked"
                    )
                    green.pop(entity, None)
        if not green:
            return
        self._book_what_closes()
        for entity, parked in green.items():
            try:
                with transaction(self._run.engine) as connection:
                    close_book(connection, entity, self._run.month.name, self._run.now, parked=parked)
                    documents = list(map(str, _issued_by(connection, self._run.month.name)))
                    if waiting := journal_chain_store.waiting(
                        connection, entity, up_to=self._run.month.name, documents=documents
                    ):
                        raise ProposalRefused(f"{waiting} entries of it are not sealed yet: run it again")
                    book = Standing(self._run.month.name, entity, close_store.BOOK)
                    detail = _journal_end(connection, entity) | {
                        "parked": parked, "unbillable_no": unbillable_store.last(connection),
                    }  # fmt: skip
                    close_store.move(
                        connection, [book], Event.CLOSE, self._run.actor, details={close_store.BOOK: detail}
                    )
                self._run.found.books_closed += 1
            except ProposalRefused as error:
                self._run.found.book.append(f"the book of {entity}: {error}")
        self._run.checkpoint("books closed")

    def _book_what_closes(self) -> None:
        """Book and seal what closing a book would book itself, so that what is closed is sealed to its last entry."""
        with transaction(self._run.engine) as connection:
            recognise_fees(connection, self._run.month, now=self._run.now)
        remeasure_balances(self._run.engine, self._run.month, now=self._run.now)  # `close_book` says what hinders
        seal_journals(self._run.engine)

    def _books_that_could_close(self, standings: Mapping[str, Standing]) -> dict[str, list[str]]:
        """Legal entities that are open and all whose accounts are closed or parked, with those that are parked."""
        found: dict[str, list[str]] = {}
        states = {name: standings[name].state for name in self._run.accounts if name in standings}
        for entity in sorted({account.legal_entity for account in self._run.accounts.values()}):
            own = [n for n, account in self._run.accounts.items() if account.legal_entity == entity]
            if book_key(entity) not in standings and all(
                states.get(name) in (State.CLOSED, State.PARKED) for name in own
            ):
                found[entity] = [name for name in own if states[name] is State.PARKED]
        return found


def _journal_end(connection: Connection, entity: str) -> dict[str, Any]:
    """How far a legal entity's journal is sealed."""
    seal = journal_chain_store.last_seal(connection, entity)
    return {"position": seal.last_position, "chain_hash": seal.chain_hash.hex()}


def _issued_by(connection: Connection, month: str) -> list[uuid.UUID]:
    """The invoices that a month's close issues: what it has put before a person."""
    put = [json.loads(each.content)["documents"] for each in close_store.latest_contents(connection, month)]
    return [uuid.UUID(document["invoice_id"]) for documents in put for document in documents]


def _in_stripe(connection: Connection, month: BillingPeriod) -> set[str]:
    """Stripe's ids of them."""
    listed = invoice_store.listed(connection, invoice_ids=_issued_by(connection, month.name), as_stored=True)
    return {s.stripe_invoice_id for s in listed if s.stripe_invoice_id}
