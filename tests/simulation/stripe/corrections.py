"""The crash matrix of corrections: what is done to finalized invoices, killed at each step, with Stripe failing.

Each cell is an account with one finalized invoice and one correction of it. It is told once with its fault and its
kill; then two senders at once tell all that is open, like operators would, until nothing is left to do.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from billing.commands.correct_invoice import credit_invoice, void_invoice
from billing.commands.decide_proposal import decide, propose
from billing.commands.dispute_evidence import dispute_list, submit_evidence
from billing.commands.refund_invoice import refund_invoice
from billing.commands.send_corrections import send_corrections
from billing.commands.show_invoices import invoice_list
from billing.commands.sync_stripe import sync_stripe
from billing.database import transaction
from billing.invoicing import correction_store
from billing.invoicing.correcting import CorrectionState
from billing.posting.proposal_store import ProposalKind
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from devstack.stripe_twin.faults import FaultKind
from tests.billing_builders import NOW
from tests.fixtures_stripe_twin import StripeTwin, act, control
from tests.integration.billing.conftest import Crash, World
from tests.simulation.stripe.cells import seconds_of
from tests.simulation.stripe.matrix import DAY_AND_AN_HOUR_S, PAUSE_S, Result, settle

RUNS_MAX: Final = 5


REQUESTS: Final = {
    "credit_note": "/v1/credit_notes",
    "refund": "/v1/refunds",
    "void": "/v1/invoices/*/void",
    "mark_uncollectible": "/v1/invoices/*/mark_uncollectible",
    "pay_elsewhere": "/v1/invoices/*/pay",
    "move_balance": "/v1/customers/*/balance_transactions",
    "submit_evidence": "/v1/disputes/*",
}
"""Every request that tells a correction, as the path of its address at the twin."""
MENDED: Final = ("credit_note", "move_balance")
"""What is refused of these is asked for again; of all others it is over, and nothing was done."""


@dataclass(frozen=True, slots=True)
class Done:
    """How an account must stand in the end: its invoice's status and what is due of it there, and what our books owe
    (1100) and hold (2150). `made`: how many credit notes, refunds, balance moves and submissions of evidence Stripe has
    of it."""

    status: str
    due: int
    owed: int
    held: int = 0
    made: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Story:
    """A correction: what is paid before, how it ends, and the requests that do it, in order."""

    paid: int
    done: Done
    requests: tuple[str, ...]


STORIES: Final = {
    "note": Story(0, Done("open", 1500, 1500, made=(1, 0, 0, 0)), ("credit_note",)),
    "note, paid": Story(1800, Done("paid", 1800, 0, -300, (1, 0, 0, 0)), ("credit_note",)),
    "note, given back": Story(2000, Done("paid", 2000, 0, 0, (1, 1, 0, 0)), ("refund", "credit_note")),
    "void": Story(0, Done("void", 2000, 0), ("void",)),
    "write off": Story(500, Done("uncollectible", 2000, 0), ("mark_uncollectible",)),
    "paid elsewhere": Story(500, Done("paid", 2000, 0), ("pay_elsewhere",)),
    "refund": Story(2000, Done("paid", 2000, 0, 0, (0, 1, 0, 0)), ("refund",)),
    "overpayment": Story(2600, Done("paid", 2000, 0, -600, (0, 0, 1, 0)), ("move_balance",)),
    "evidence": Story(2000, Done("paid", 2000, 0, 0, (0, 0, 0, 1)), ("submit_evidence",)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """A story with the checkpoint at which it is killed first, and what goes wrong at Stripe at one of its requests."""

    story: str
    kill: str
    at: str
    fault: FaultKind


def every_cell() -> Iterator[Cell]:
    """Each story, killed nowhere and at each of its checkpoints, with each fault at each of its requests."""
    for name, story in STORIES.items():
        kills = ["never", *(f"{when} {request} 0" for request in story.requests for when in ("sending", "unrecorded"))]
        for kill, at, fault in itertools.product(kills, story.requests, FaultKind):
            if fault is not FaultKind.REFUSED or at in MENDED:
                yield Cell(name, kill, at, fault)


def some_cells(seed: int, count: int) -> list[Cell]:
    """So many cells, among them each story's kills and each fault at each request as far as they fit."""
    cells = list(every_cell())
    random.Random(seed).shuffle(cells)
    kills = {(cell.story, cell.kill) for cell in cells}
    faults = {(cell.at, cell.fault) for cell in cells}
    first = [c for c in cells if _taken(kills, (c.story, c.kill)) | _taken(faults, (c.at, c.fault))]
    return (first + [cell for cell in cells if cell not in first])[:count]


def _taken(wanted: set[Any], one: Any) -> bool:
    found = one in wanted
    wanted.discard(one)
    return found


def run(world: World, twin: StripeTwin, cells: Sequence[Cell], *, old: bool = False) -> Result:
    """Let every cell happen, mend, check. `old`: a day passes first, so that Stripe has forgotten every key."""
    gateway = StripeGateway(StripeSettings(twin.key, twin.url))
    names = [f"c{n:04d}" for n in range(len(cells))]
    world.customers(*names)
    for name in names:
        world.use(name, output_tokens=10_000)
    world.rate()
    world.draft()
    sent = {i.billing_account: str(i.stripe_invoice_id) for i in world.send(gateway, pause_s=PAUSE_S).invoices}
    for name, cell in zip(names, cells, strict=True):
        if paid := STORIES[cell.story].paid:
            charge = act(twin, "pay", invoice=sent[name], amount=paid, overpay=paid > 2000)["id"]
            if cell.story == "evidence":
                act(twin, "dispute", charge=charge)
    _sync_but_tell_nothing(world, gateway)
    result = Result()
    for name, cell in zip(names, cells, strict=True):
        _happen(world, twin, gateway, sent[name], cell, result)
    if old:
        settle(twin)
        world.age_requests(hours=24)
        control(twin, "clock", advance=DAY_AND_AN_HOUR_S)
    _mend(world, gateway)
    settle(twin)
    _check(world, twin, gateway, sent, dict(zip(names, cells, strict=True)), result)
    return result


def _sync_but_tell_nothing(world: World, gateway: StripeGateway) -> None:
    """Take in what was paid; what that makes us tell (an overpayment) waits for its cell."""
    crashing = _Untold(gateway)
    sync_stripe(world.engine, gateway=crashing, now=NOW)  # type: ignore[arg-type]


class _Untold:
    """A gateway that refuses to change anything: what is to be told stays open."""

    def __init__(self, gateway: StripeGateway) -> None:
        self._gateway = gateway

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gateway, name)

    def of(self, _: str) -> _Untold:
        return self

    def change(self, _: object) -> Any:
        from billing.errors import StripeBusy

        raise StripeBusy("not now")


def _begin(world: World, gateway: StripeGateway, invoice: str, story: str) -> None:
    said: dict[str, Any] = {"reason": "r", "actor": "ada"}
    engine = world.engine
    match story:
        case "note" | "note, paid":
            credit_invoice(engine, invoice, {"std": Decimal(5)}, now=NOW, **said)
        case "note, given back":
            credit_invoice(engine, invoice, {"std": Decimal(5)}, now=NOW, refund_from=gateway, **said)
        case "void":
            void_invoice(engine, invoice, now=NOW, **said)
        case "refund":
            refund_invoice(engine, invoice, None, gateway=gateway, **said)
        case "evidence":
            (invoice_id,) = [i["invoice_id"] for i in invoice_list(engine) if i["stripe_invoice_id"] == invoice]
            (dispute,) = [d["dispute_id"] for d in dispute_list(engine) if d["invoice_id"] == str(invoice_id)]
            submit_evidence(engine, dispute, {"product_description": "tokens"}, actor="ada")
        case "write off" | "paid elsewhere":
            kind = ProposalKind.WRITE_OFF if story == "write off" else ProposalKind.PAID_ELSEWHERE
            number = propose(engine, kind, invoice, {}, document="d", now=NOW, actor="ada")
            decide(engine, number, approved=True, now=NOW, actor="bob")


def _happen(world: World, twin: StripeTwin, gateway: StripeGateway, invoice: str, cell: Cell, result: Result) -> None:
    _begin(world, gateway, invoice, cell.story)
    invoice_id = world.rows("select invoice_id from ledger.invoices where stripe_invoice_id = :i", i=invoice)[0][0]
    with transaction(world.engine) as connection:
        numbers = [c.correction_no for c in correction_store.listed(connection, invoice_ids=[invoice_id])]
    path = REQUESTS[cell.at]
    control(twin, "faults", kind=cell.fault, key=twin.key, method="POST", path=path, seconds=seconds_of(cell.fault))
    try:
        send_corrections(
            world.engine, gateway=gateway, now=NOW, correction_nos=numbers, checkpoint=_killed_at(cell.kill),
            pause_s=PAUSE_S,
        )  # fmt: skip
    except Crash:
        result.killed += 1
    _, _, faults = twin.call("DELETE", "/_twin/faults")
    result.met += sum(fault["met"] for fault in faults["forgotten"])


def _killed_at(kill: str) -> Callable[[uuid.UUID, str], None]:
    def checkpoint(_: uuid.UUID, reached: str) -> None:
        if reached == kill:
            raise Crash(reached)

    return checkpoint


def _mend(world: World, gateway: StripeGateway) -> None:
    """Two senders at once, until nothing is open."""
    for _ in range(RUNS_MAX):
        with ThreadPoolExecutor(2) as racing:
            runs = [
                racing.submit(send_corrections, world.engine, gateway=gateway, now=NOW, pause_s=PAUSE_S)
                for _ in range(2)
            ]
            for each in runs:
                each.result()
        with transaction(world.engine) as connection:
            if not correction_store.listed(connection, state=CorrectionState.OPEN):
                return
        world.age_requests(hours=1)


def _check(
    world: World, twin: StripeTwin, gateway: StripeGateway, sent: dict[str, str], cells: dict[str, Cell], result: Result
) -> None:
    found = sync_stripe(world.engine, gateway=gateway, now=NOW)
    result.wrong += [*found.problems, *(["events wait"] if found.waiting else [])]
    with transaction(world.engine) as connection:
        corrections = correction_store.listed(connection)
        result.wrong += [
            f"{c.kind}: {c.state} {c.told_because}" for c in corrections if c.state is not CorrectionState.DONE
        ]
    owed, held = (_by_account(world, code) for code in (1100, 2150))
    theirs = {invoice.invoice_id: invoice for invoice in gateway.invoices()}
    notes = Counter(str(note["invoice"]) for note in gateway.pages("/v1/credit_notes"))
    intents = {str(p["payment"]["payment_intent"]): str(p["invoice"]) for p in gateway.pages("/v1/invoice_payments")}
    refunds = Counter(intents[str(refund["payment_intent"])] for refund in gateway.pages("/v1/refunds"))
    submitted: Counter[str] = Counter()
    for dispute in gateway.pages("/v1/disputes"):
        submitted[intents[str(dispute["payment_intent"])]] += dispute["evidence_details"]["submission_count"]
    for name, cell in cells.items():
        invoice = theirs[sent[name]]
        moves = [
            move
            for move in gateway.pages("/v1/customers/{}/balance_transactions", invoice.seen.customer)
            if move["type"] == "adjustment"
        ]
        lowered = sum(n["pre_payment_amount"] for n in gateway.pages("/v1/credit_notes", invoice=sent[name]))
        stands = Done(
            invoice.seen.status, invoice.seen.amount_due - lowered, owed.get(name, 0), held.get(name, 0),
            (notes[sent[name]], refunds[sent[name]], len(moves), submitted[sent[name]]),
        )  # fmt: skip
        if stands == STORIES[cell.story].done:
            result.right[cell.story, cell.kill] += 1
            result.right[cell.story, f"{cell.fault.value} at {cell.at}"] += 1
        else:
            result.wrong.append(f"{name} {cell}: {stands}, not {STORIES[cell.story].done}")
    booked = sum(row[0] for row in world.rows("select net from ledger.stripe_balance_transactions"))
    moved = sum(each["net"] for each in gateway.pages("/v1/balance_transactions"))
    if booked != moved:
        result.wrong.append(f"{booked} are booked of Stripe's balance of {moved}")


def _by_account(world: World, code: int) -> dict[str, int]:
    """What is on an account's subledgers, in minor units."""
    rows = world.rows(
        "select a.subledger, sum(p.amount) * 100 from ledger.postings p join ledger.accounts a using (account_id)"
        " where a.code = :code group by 1",
        code=code,
    )
    return {name: int(amount) for name, amount in rows if amount}
