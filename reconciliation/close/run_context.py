"""What every step of a close's run needs: where accounts stand, and ways to let them go on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from billing.commands.close_month import MonthClosed, StageProgress
from billing.commands.send_invoices import send_invoices
from billing.database import transaction
from billing.invoicing.sending import SendingStep
from billing.periods import BillingPeriod
from billing.stripe.stripe_accounts import Stripe
from reconciliation.close import close_store
from reconciliation.close.close_store import Standing
from reconciliation.close.gates import gate_store
from reconciliation.close.gates.collecting import participants
from reconciliation.close.gates.gate import Gate, Result
from reconciliation.close.states import Event, State
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


class Run:
    """One run of a month's close."""

    def __init__(
        self,
        engine: Engine,
        month: BillingPeriod,
        gateway: Stripe,
        log: Callable[[], Log],
        now: datetime,
        actor: str,
        progress: StageProgress | None,
        checkpoint: Checkpoint,
    ) -> None:
        self.engine = engine
        self.month = month
        self.gateway = gateway
        self.log = log
        self.now = now
        self.actor = actor
        self.progress = progress
        self.checkpoint = checkpoint
        self.found = CloseRun(month)
        self.held: dict[str, list[str]] = defaultdict(list)
        with transaction(engine) as connection:
            self.accounts = participants(connection, month)

    def done(self) -> CloseRun:
        """What all of it came to."""
        found = self.found
        found.held = {name: why for name, why in self.held.items() if why}
        with transaction(self.engine) as connection:
            for standing in self.standings(connection).values():
                if standing.billing_account:
                    found.standing[standing.state] = found.standing.get(standing.state, 0) + 1
        return found

    def send(self, accounts: Collection[str], until: SendingStep, stage: str, *, only_others: bool = False) -> None:
        """Send what is open of some accounts: the month's invoices, and those of other periods that end in it."""
        if not accounts:
            return
        progress = self.progress
        told = (lambda done, total: progress(stage, done, total)) if progress else None
        others = [o.period for o in self.found.prepared.others if o.drafted] if self.found.prepared else []
        for period in [*others, *([] if only_others else [self.month])]:
            send_invoices(
                self.engine, period=period, gateway=self.gateway, now=self.now, actor=self.actor, progress=told,
                billing_accounts=accounts, until=until,
            )  # fmt: skip

    def hold(self, found: Mapping[Gate, Result], gates: Collection[Gate], account: str, *, but: str = "") -> list[str]:
        """What of some gates holds an account up, each in a line, as the run tells it; `but` one comparison."""
        why = [
            f"{gate}: {each.check}: {each.key}: {each.left} / {each.right}"
            for gate in gates
            if gate in found
            for each in found[gate].held(account)
            if each.check != but
        ]
        self.held[account] += why
        return why

    def standings(self, connection: Connection) -> dict[str, Standing]:
        """Where the month's accounts and books stand."""
        return close_store.standings(connection, self.month.name)

    def of_state(self, standings: Mapping[str, Standing], state: State) -> list[str]:
        """The accounts in a state."""
        return [name for name in self.accounts if name in standings and standings[name].state is state]

    def move(
        self,
        connection: Connection,
        standings: Collection[Standing],
        event: Event,
        reason: str = "",
        details: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Let the same happen to accounts, by who runs the close. `details` are by account."""
        for moved in close_store.move(connection, standings, event, self.actor, reason=reason, details=details):
            self.found.moved[moved.state] = self.found.moved.get(moved.state, 0) + 1

    def keep(self, connection: Connection, found: Mapping[Gate, Result]) -> None:
        """Keep what gates found."""
        self.found.results |= found
        gate_store.keep(connection, self.month.name, found)
