"""Up to the approval: collect, cut, draft, ask the gates, build in Stripe, put before a person."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from sqlalchemy import Connection

from billing.commands.close_month import prepare_month
from billing.commands.close_other_periods import Choice
from billing.database import transaction
from billing.invoicing import rated_line_store
from billing.invoicing.sending import SendingStep
from billing.periods import INSTANT, BillingPeriod, accounting_month, parse_period
from billing.posting.fee_recognition import recognise_fees
from reconciliation.close import close_store, priced_events
from reconciliation.close.close_store import Standing
from reconciliation.close.contents import contents, signed_cuts
from reconciliation.close.freezing import keeping, keeping_late
from reconciliation.close.gates.collecting import Account, held_back, participants
from reconciliation.close.gates.evaluating import Outside, drafts_in_stripe, evaluate, evaluate_late, owners
from reconciliation.close.gates.gate import BEFORE_APPROVAL, Gate, Result, results
from reconciliation.close.run_context import Run
from reconciliation.close.states import CUT, Event, State
from reconciliation.period import documents_of_month


class Preparing:
    """Takes accounts from OPEN to RECONCILED."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def collect(self) -> None:
        """What is OPEN begins to collect, once the month has ended."""
        if self._run.now < self._run.month.end:
            return  # `prepare_month` says so
        with transaction(self._run.engine) as connection:
            close_store.lock(connection, self._run.month.name)
            known = close_store.standings(connection, self._run.month.name)
            new = [
                Standing(self._run.month.name, account.legal_entity, name)
                for name, account in self._run.accounts.items()
                if name not in known
            ]
            self._run.move(connection, new, Event.COLLECT)
        self._run.checkpoint("collected")

    def freeze_and_draft(self, test: bool) -> None:
        """Rate what is not cut; cut whose gate is open, in the rating's transaction; draw up what is cut."""
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
            waived = close_store.waived(connection, self._run.month.name)
            collecting = [self._run.accounts[n] for n in self._run.of_state(standings, State.COLLECTING)]
            waiting = held_back(connection, self._run.month, collecting, self._run.now, waived)
        for name, missing in waiting.items():
            self._run.held[name] += [f"not frozen: {each.key}: {each.right}" for each in missing]
        ready = [account for account in collecting if account.name not in waiting]
        run = self._run
        run.found.prepared = prepared = prepare_month(
            run.engine, period=run.month, gateway=run.gateway, now=run.now, actor=run.actor, test=test,
            progress=run.progress, until=SendingStep.COMPARED, of=partial(self._choice, ready),
            accounts=self._to_draft, credited=self._to_credit,
        )  # fmt: skip
        self._run.checkpoint("drafted")
        blocked = dict(prepared.drafted.blocked)
        for other in prepared.others:
            blocked |= dict(other.drafted.blocked) if other.drafted is not None else {}
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
            frozen = self._run.of_state(standings, State.FROZEN)
            self._run.move(connection, [standings[n] for n in frozen if n not in blocked], Event.DRAFT)
            recognise_fees(connection, self._run.month, now=self._run.now)
        self._run.checkpoint("fees recognised")

    def _choice(self, ready: Collection[Account], period: BillingPeriod) -> Choice:
        """What of a period is rated: not what a close has cut and not closed, which would then have two ratings. Of one
        that goes on nothing that this close has cut: the next month accrues what comes after."""
        earlier = period.end <= self._run.month.start
        month = parse_period(accounting_month(period.end - INSTANT)) if earlier else self._run.month
        with transaction(self._run.engine) as connection:
            standings = close_store.standings(connection, month.name)
            done = CUT | {State.CLOSED} if period.end > self._run.month.end else CUT
            cut = {n for n, s in standings.items() if s.state in done or s.parked_from in CUT}
            tenants: set[str] | None = None
            if cut:
                accounts = participants(connection, month)
                left_out = {t for name in cut if name in accounts for t in accounts[name].tenants}
                known = {t for account in accounts.values() for t in account.tenants}
                tenants = (known | rated_line_store.posted(connection, period).keys()) - left_out
        if earlier:
            return Choice(tenants, keeping_late(self._run.month, self._run.actor))
        own = {t for account in ready for t in account.tenants}
        freeze = partial(self._freeze, ready) if period == self._run.month else _nothing
        return Choice(tenants, keeping(self._run.month, own, self._run.actor, freeze))

    def _freeze(self, ready: Collection[Account], connection: Connection) -> None:
        """In the transaction of the month's rating: accounts of which every tenant could be rated are FROZEN."""
        problems = dict(rated_line_store.problems_in(connection, self._run.month))
        standings = close_store.standings(connection, self._run.month.name)
        frozen = []
        for account in ready:
            why = [f"not frozen: tenant {t}: {problems[t]}" for t in account.tenants if t in problems]
            self._run.held[account.name] += why
            frozen += [] if why else [standings[account.name]]
        self._run.move(connection, frozen, Event.FREEZE)

    def _to_draft(self) -> list[str]:
        """What is cut and not compared: what a draft follows from (tax rules, earlier months) may change meanwhile."""
        self._run.checkpoint("frozen")
        with transaction(self._run.engine) as connection:
            standings = self._run.standings(connection)
        return [*self._run.of_state(standings, State.FROZEN), *self._run.of_state(standings, State.DRAFTED)]

    def _to_credit(self) -> list[str] | None:
        """Who may get credit notes: nobody of whom the gates of what came late find a difference."""
        found = evaluate_late(self._run.engine, self._run.month, self._run.accounts)
        red = {name for name in self._run.accounts if self._run.hold(found, found, name)}
        return [name for name in self._run.accounts if name not in red] if red else None

    def reconcile(self) -> None:
        """Ask the gates about what is DRAFTED; what is green is built in Stripe, compared, and put before a person."""
        with transaction(self._run.engine) as connection:
            drafted = self._run.of_state(self._run.standings(connection), State.DRAFTED)
        if not drafted:
            return
        run = self._run
        found = evaluate(run.engine, run.month, now=run.now, outside=Outside(), rated_again=drafted)
        stripe_drafts = drafts_in_stripe(()).name
        green = [name for name in drafted if not self._run.hold(found, BEFORE_APPROVAL, name, but=stripe_drafts)]
        self._run.send(green, SendingStep.COMPARED, "draft")
        self._run.checkpoint("built")
        with transaction(self._run.engine) as connection:
            invoices = documents_of_month(connection, self._run.month)
            owned = owners(connection, self._run.month, self._run.accounts, invoices)
            again = results([drafts_in_stripe(invoices)], owned, {})
            found[Gate.R5A] = _merged(found[Gate.R5A], again[Gate.R5A], stripe_drafts)
            green = [name for name in green if not self._run.hold(again, [Gate.R5A], name)]
            close_store.lock(connection, self._run.month.name)
            accounts = {name: self._run.accounts[name] for name in green}
            priced_events.keep(connection, signed_cuts(connection, self._run.month, accounts))
            texts = contents(connection, self._run.month, accounts)
            close_store.add_contents(connection, self._run.month.name, texts, self._run.actor)
            standings = self._run.standings(connection)
            self._run.move(connection, [standings[name] for name in green], Event.RECONCILE)
            self._run.keep(connection, {gate: found[gate] for gate in BEFORE_APPROVAL if gate in found})
        self._run.checkpoint("reconciled")


def _merged(first: Result, again: Result, check: str) -> Result:
    """A gate of which one comparison was made again."""
    return Result(first.gate, first.compared, (*(e for e in first.found if e.check != check), *again.found))


def _nothing(_: Connection) -> None:
    """Other periods are cut, and their accounts frozen with the month's rating."""
