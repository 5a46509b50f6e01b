"""`close run`: takes every account of a month, and then the book, as far as they may go. Safe to repeat and to kill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, Engine

from billing.commands.close_month import MonthClosed, StageProgress, finalize_month, prepare_month
from billing.commands.close_other_periods import Choice
from billing.commands.seal_journal import seal_journals
from billing.commands.send_invoices import InvoicesSent, send_invoices
from billing.database import transaction
from billing.errors import ProposalRefused
from billing.invoicing import invoice_store, rated_line_store
from billing.invoicing.invoice_states import ISSUED
from billing.invoicing.sending import SendingStep
from billing.ledger import journal_chain_store
from billing.periods import BillingPeriod
from billing.posting.fee_recognition import recognise_fees
from billing.posting.period_closing import close_book
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.close import close_store, gate_store
from reconciliation.close.close_store import Standing, book_key
from reconciliation.close.collecting import Account, held_back, participants
from reconciliation.close.contents import APPROVED, contents
from reconciliation.close.evaluating import Outside, drafts_in_stripe, evaluate
from reconciliation.close.freezing import keeping
from reconciliation.close.gates import AFTER_SENDING, BEFORE_APPROVAL, OF_BOOK, Gate, Result, results
from reconciliation.close.states import CUT, Event, State
from streams.ingest.logs import Log

Checkpoint = Callable[[str], None]
"""Told the name of each step once it is committed."""


@dataclass
class CloseRun:
    """What a run of the close did and found.

    `moved`: how many accounts (and books) came to which state; `held`: why accounts go no further, each in a line;
    `results`: the gates that were asked.
    """

    month: BillingPeriod
    moved: dict[State, int] = field(default_factory=dict)
    held: dict[str, list[str]] = field(default_factory=dict)
    results: dict[Gate, Result] = field(default_factory=dict)
    prepared: MonthClosed | None = None
    book: list[str] = field(default_factory=list)
    standing: dict[State, int] = field(default_factory=dict)
    books_closed: int = 0

    @property
    def problems(self) -> list[str]:
        """What waits for a person or a later run, but for the approval."""
        told = [f"{name}: {why}" for name, reasons in sorted(self.held.items()) for why in reasons]
        return [*(self.prepared.problems if self.prepared else ()), *told, *self.book]


def run_close(
    engine: Engine,
    month: BillingPeriod,
    *,
    gateway: StripeGateway,
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
    run = _Run(engine, month, gateway, log, now, actor, progress, checkpoint)
    run.collect()
    run.freeze_and_draft(test)
    run.reconcile()
    run.finalize()
    run.close_accounts()
    run.close_books()
    return run.done()


class _Run:
    def __init__(
        self,
        engine: Engine,
        month: BillingPeriod,
        gateway: StripeGateway,
        log: Callable[[], Log],
        now: datetime,
        actor: str,
        progress: StageProgress | None,
        checkpoint: Checkpoint,
    ) -> None:
        self._engine = engine
        self._month = month
        self._gateway = gateway
        self._log = log
        self._now = now
        self._actor = actor
        self._progress = progress
        self._checkpoint = checkpoint
        self._found = CloseRun(month)
        self._held: dict[str, list[str]] = defaultdict(list)
        with transaction(engine) as connection:
            self._accounts = participants(connection, month)

    def collect(self) -> None:
        """What is OPEN begins to collect, once the month has ended."""
        if self._now < self._month.end:
            return  # `prepare_month` says so
        with transaction(self._engine) as connection:
            close_store.lock(connection, self._month.name)
            known = close_store.standings(connection, self._month.name)
            new = [
                Standing(self._month.name, account.legal_entity, name)
                for name, account in self._accounts.items()
                if name not in known
            ]
            self._move(connection, new, Event.COLLECT)
        self._checkpoint("collected")

    def freeze_and_draft(self, test: bool) -> None:
        """Rate what is not cut; cut whose gate is open, in the rating's transaction; draw up what is cut."""
        with transaction(self._engine) as connection:
            standings = self._standings(connection)
            waived = {each.key for each in close_store.waivers(connection, self._month.name)}
            collecting = [self._accounts[n] for n in self._in(standings, State.COLLECTING)]
            waiting = held_back(connection, self._month, collecting, self._now, waived)
        for name, missing in waiting.items():
            self._held[name] += [f"not frozen: {each.key}: {each.right}" for each in missing]
        ready = [account for account in collecting if account.name not in waiting]
        self._found.prepared = prepare_month(
            self._engine, period=self._month, gateway=self._gateway, now=self._now, actor=self._actor, test=test,
            progress=self._progress, until=SendingStep.COMPARED, of=partial(self._choice, ready),
        )  # fmt: skip
        self._checkpoint("drafted")
        blocked = dict(self._found.prepared.drafted.blocked)
        for other in self._found.prepared.others:
            blocked |= dict(other.drafted.blocked) if other.drafted is not None else {}
        with transaction(self._engine) as connection:
            standings = self._standings(connection)
            frozen = self._in(standings, State.FROZEN)
            self._move(connection, [standings[n] for n in frozen if n not in blocked], Event.DRAFT)
            recognise_fees(connection, self._month, now=self._now)
        for name in frozen:
            if name in blocked:
                self._held[name].append(f"no invoice: {blocked[name]}")
        self._checkpoint("fees recognised")

    def _choice(self, ready: Collection[Account], period: BillingPeriod) -> Choice:
        """What of a period is rated: not what a close has cut and not closed, which would then have two ratings."""
        earlier = period.end <= self._month.start
        with transaction(self._engine) as connection:
            standings = close_store.standings(connection, period.name if earlier else self._month.name)
            cut = {n for n, s in standings.items() if s.state in CUT or s.parked_from in CUT}
            tenants: set[str] | None = None
            if cut:
                accounts = participants(connection, self._month)
                left_out = {t for name in cut if name in accounts for t in accounts[name].tenants}
                known = {t for account in accounts.values() for t in account.tenants}
                tenants = (known | rated_line_store.posted(connection, period).keys()) - left_out
        if earlier or period.end > self._month.end:
            return Choice(tenants)
        own = {t for account in ready for t in account.tenants}
        freeze = partial(self._freeze, ready) if period == self._month else _nothing
        return Choice(tenants, keeping(self._month, own, self._actor, freeze), self._to_draft)

    def _freeze(self, ready: Collection[Account], connection: Connection) -> None:
        """In the transaction of the month's rating: accounts of which every tenant could be rated are FROZEN."""
        problems = dict(rated_line_store.problems_in(connection, self._month))
        standings = close_store.standings(connection, self._month.name)
        frozen = []
        for account in ready:
            why = [f"not frozen: tenant {t}: {problems[t]}" for t in account.tenants if t in problems]
            self._held[account.name] += why
            frozen += [] if why else [standings[account.name]]
        self._move(connection, frozen, Event.FREEZE)

    def _to_draft(self) -> list[str]:
        self._checkpoint("frozen")
        with transaction(self._engine) as connection:
            return self._in(self._standings(connection), State.FROZEN)

    def reconcile(self) -> None:
        """Ask the gates about what is DRAFTED; what is green is built in Stripe, compared, and put before a person."""
        with transaction(self._engine) as connection:
            drafted = self._in(self._standings(connection), State.DRAFTED)
        if not drafted:
            return
        outside = Outside(log=self._log())
        found = evaluate(self._engine, self._month, now=self._now, outside=outside, rated_again=drafted)
        stripe_drafts = drafts_in_stripe(()).name
        green = [name for name in drafted if not self._why(found, BEFORE_APPROVAL, name, but=stripe_drafts, hold=True)]
        self._send(green, SendingStep.COMPARED, "draft")
        self._checkpoint("built")
        with transaction(self._engine) as connection:
            invoices = invoice_store.listed(connection, of_month=self._month, as_stored=True)
            names = {str(s.stored_id): s.invoice.identity.billing_account for s in invoices}
            again = results([drafts_in_stripe(invoices)], names, {})
            found[Gate.R5A] = _merged(found[Gate.R5A], again[Gate.R5A], stripe_drafts)
            green = [name for name in green if not self._why(again, [Gate.R5A], name, hold=True)]
            close_store.lock(connection, self._month.name)
            texts = contents(connection, self._month, {name: self._accounts[name] for name in green})
            close_store.add_contents(connection, self._month.name, texts, self._actor)
            standings = self._standings(connection)
            self._move(connection, [standings[name] for name in green], Event.RECONCILE)
            self._keep(connection, {gate: found[gate] for gate in BEFORE_APPROVAL if gate in found})
        self._checkpoint("reconciled")

    def finalize(self) -> None:
        """Issue what is approved, as long as it is what was approved."""
        with transaction(self._engine) as connection:
            close_store.lock(connection, self._month.name)
            standings = self._standings(connection)
            approved = self._in(standings, State.APPROVED)
            texts = contents(connection, self._month, {name: self._accounts[name] for name in approved})
            signed = {
                each.billing_account: each
                for each in close_store.latest_contents(connection, self._month.name, approved)
            }
            changed = [
                name
                for name in approved
                if self._nothing_issued(connection, name) and signed[name].content != texts[name]
            ]
            self._move(
                connection, [standings[name] for name in changed], Event.RETURN, "not what was approved any more"
            )
        for name in changed:
            self._held[name].append("its content is not what was approved: it is reconciled again")
        accounts = [name for name in approved if name not in changed]
        if not accounts:
            return
        prepared = self._found.prepared
        assert prepared is not None, "rated before"
        self._send(accounts, SendingStep.FINALIZED, "send", only_others=True)
        self._found.prepared = finalize_month(
            self._engine, prepared, gateway=self._gateway, now=self._now, actor=self._actor, progress=self._progress,
            billing_accounts=accounts,
        )  # fmt: skip
        self._checkpoint("sent")
        with transaction(self._engine) as connection:
            standings = self._standings(connection)
            parked, open_ = self._not_issued(connection)
            done = [standings[n] for n in accounts if n not in parked and n not in open_]
            self._move(connection, done, Event.FINALIZE)
            for name in accounts:
                if name in parked:
                    self._move(connection, [standings[name]], Event.PARK, parked[name])
                    self._held[name].append(f"parked: {parked[name]}")
        self._checkpoint("finalized")

    def _nothing_issued(self, connection: Connection, account: str) -> bool:
        listed = invoice_store.listed(connection, of_month=self._month, billing_account=account)
        return not any(s.state in ISSUED and s.invoice.identity.kind in APPROVED for s in listed)

    def _not_issued(self, connection: Connection) -> tuple[dict[str, str], set[str]]:
        listed = invoice_store.listed(connection, of_month=self._month) + invoice_store.open_adjustments(
            connection, before=self._month
        )
        open_ = [s for s in listed if s.state not in ISSUED and s.invoice.identity.kind in APPROVED]
        parked = {s.invoice.identity.billing_account: s.parked_because for s in open_ if s.parked_because}
        return parked, {s.invoice.identity.billing_account for s in open_} - parked.keys()

    def close_accounts(self) -> None:
        """Compare what is final with Stripe; what is green is CLOSED."""
        with transaction(self._engine) as connection:
            standings = self._standings(connection)
            finalized = self._in(standings, State.FINALIZED)
            waits_for_books = not self._found.results and self._books_that_could_close(standings)
        if not finalized and not waits_for_books:
            return
        seal_journals(self._engine)
        outside = Outside(self._gateway, self._log())
        found = evaluate(self._engine, self._month, now=self._now, outside=outside, rated_again=())
        with transaction(self._engine) as connection:
            standings = self._standings(connection)
            green = [n for n in finalized if not self._why(found, AFTER_SENDING, n, hold=True)]
            self._move(connection, [standings[name] for name in green], Event.CLOSE)
            self._keep(connection, {gate: found[gate] for gate in (*AFTER_SENDING, Gate.R4, *OF_BOOK) if gate in found})
        self._checkpoint("accounts closed")

    def close_books(self) -> None:
        """A book is closed when all its accounts are, or are left by an approval, and its own gates are green."""
        with transaction(self._engine) as connection:
            entities = self._books_that_could_close(self._standings(connection))
        if not entities or Gate.R6 not in self._found.results:
            return
        red = [
            f"{gate}: {len(result.open)} differences: `tollbook close status {self._month.name} --gate {gate}`"
            for gate in (Gate.R4, *OF_BOOK)
            if (result := self._found.results[gate]).open
        ]
        if red:
            self._found.book += red
            return
        for entity, parked in sorted(entities.items()):
            try:
                with transaction(self._engine) as connection:
                    close_book(connection, entity, self._month.name, self._now, parked=parked)
                    book = Standing(self._month.name, entity, close_store.BOOK)
                    seal = journal_chain_store.last_seal(connection, entity)
                    detail = {"position": seal.last_position, "chain_hash": seal.chain_hash.hex(), "parked": parked}
                    close_store.move(connection, [book], Event.CLOSE, self._actor, details={close_store.BOOK: detail})
                self._found.books_closed += 1
            except ProposalRefused as error:
                self._found.book.append(f"the book of {entity}: {error}")
        self._checkpoint("books closed")

    def _books_that_could_close(self, standings: Mapping[str, Standing]) -> dict[str, list[str]]:
        """Legal entities that are open and all whose accounts are closed or parked, with those that are parked."""
        found: dict[str, list[str]] = {}
        states = {name: standings[name].state for name in self._accounts if name in standings}
        for entity in sorted({account.legal_entity for account in self._accounts.values()}):
            own = [n for n, account in self._accounts.items() if account.legal_entity == entity]
            if book_key(entity) not in standings and all(
                states.get(name) in (State.CLOSED, State.PARKED) for name in own
            ):
                found[entity] = [name for name in own if states[name] is State.PARKED]
        return found

    def done(self) -> CloseRun:
        """What all of it came to."""
        found = self._found
        found.held = {name: why for name, why in self._held.items() if why}
        with transaction(self._engine) as connection:
            for standing in self._standings(connection).values():
                if standing.billing_account:
                    found.standing[standing.state] = found.standing.get(standing.state, 0) + 1
        return found

    def _send(self, accounts: Collection[str], until: SendingStep, stage: str, *, only_others: bool = False) -> None:
        """Send what is open of some accounts: the month's invoices, and those of other periods that end in it."""
        if not accounts:
            return
        progress = self._progress
        told = (lambda done, total: progress(stage, done, total)) if progress else None
        others = [o.period for o in self._found.prepared.others if o.drafted] if self._found.prepared else []
        for period in [*others, *([] if only_others else [self._month])]:
            _: InvoicesSent = send_invoices(
                self._engine, period=period, gateway=self._gateway, now=self._now, actor=self._actor, progress=told,
                billing_accounts=accounts, until=until,
            )  # fmt: skip

    def _why(
        self,
        found: Mapping[Gate, Result],
        gates: Collection[Gate],
        account: str,
        *,
        but: str = "",
        hold: bool = False,
    ) -> list[str]:
        """What of some gates holds an account up, each in a line."""
        why = [
            f"{gate}: {each.check}: {each.key}: {each.left} / {each.right}"
            for gate in gates
            if gate in found
            for each in found[gate].held(account)
            if each.check != but
        ]
        if hold:
            self._held[account] += why
        return why

    def _standings(self, connection: Connection) -> dict[str, Standing]:
        return close_store.standings(connection, self._month.name)

    def _in(self, standings: Mapping[str, Standing], state: State) -> list[str]:
        return [name for name in self._accounts if name in standings and standings[name].state is state]

    def _move(self, connection: Connection, standings: Collection[Standing], event: Event, reason: str = "") -> None:
        for moved in close_store.move(connection, standings, event, self._actor, reason=reason):
            self._found.moved[moved.state] = self._found.moved.get(moved.state, 0) + 1

    def _keep(self, connection: Connection, found: Mapping[Gate, Result]) -> None:
        self._found.results |= found
        gate_store.keep(connection, self._month.name, found)


def _merged(first: Result, again: Result, check: str) -> Result:
    """A gate of which one comparison was made again."""
    return Result(first.gate, first.compared, (*(e for e in first.found if e.check != check), *again.found))


def _nothing(_: Connection) -> None:
    """Other periods are cut, and their accounts frozen with the month's rating."""
