"""Runs the crash matrix against a twin and the database, and checks what came of it: one right invoice each.

Each cell is an account with one draft. It is sent once with its faults and its kill; then two senders at once send all
that is left, like operators would, until nothing is left to do. `old` lets a day pass first, so that Stripe has
forgotten every key.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from billing.commands.send_invoices import Outcome, send_invoices
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice
from tests.billing_builders import NOW
from tests.fixtures_stripe_twin import StripeTwin, control
from tests.integration.billing.conftest import Crash, World
from tests.simulation.stripe.cells import READS, REQUESTS, Cell, seconds_of

LINES = {"cached": 20, "in": 60, "out": 500}
TOTAL = 580
PAUSE_S = 0.001
DAY_AND_AN_HOUR_S = 25 * 3600
RUNS_MAX = 4
WITHIN_S = 60.0


@dataclass(slots=True)
class Result:
    """What came of a matrix: how many cells ended right, by two things that say which; a text for each that did not."""

    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    killed: int = 0
    met: int = 0
    wrong: list[str] = field(default_factory=list)


def run(world: World, twin: StripeTwin, cells: Sequence[Cell], *, old: bool) -> Result:
    """Let every cell happen, mend, and check. `twin` is one of its own: its clock is moved."""
    gateway = StripeGateway(StripeSettings(twin.key, twin.url))
    names = [f"c{n:04d}" for n in range(len(cells))]
    world.customers(*names)
    for name in names:
        world.use(name, input_tokens=1000, cache_hit_tokens=400, output_tokens=2500)
    world.rate()
    world.draft()
    ids = dict(world.rows("select billing_account, invoice_id from ledger.invoices"))
    result = Result()
    for name, cell in zip(names, cells, strict=True):
        _happen(world, twin, gateway, ids[name], cell, result)
    if old:
        settle(twin)
        world.age_requests(hours=24)
        control(twin, "clock", advance=DAY_AND_AN_HOUR_S)
    _mend(world, gateway)
    settle(twin)
    _check(world, gateway, names, cells, result)
    return result


def settle(twin: StripeTwin) -> None:
    """Until Stripe has done all that nobody waits for any more."""
    until = time.monotonic() + WITHIN_S
    while twin.call("GET", "/_twin/faults")[2]["under_way"] and time.monotonic() < until:
        time.sleep(0.02)


def _mend(world: World, gateway: StripeGateway) -> None:
    """Two senders race, until nothing is left to do."""
    for _ in range(RUNS_MAX):
        with ThreadPoolExecutor(2) as racing:
            for run in [racing.submit(world.send, gateway, pause_s=PAUSE_S) for _ in range(2)]:
                run.result()
        if world.rows("select count(*) from ledger.invoices where state in ('draft', 'approved')") == [(0,)]:
            return
        world.age_requests(hours=1)  # a stored refusal or 5xx is looked up once the request can no longer be under way


def _happen(
    world: World, twin: StripeTwin, gateway: StripeGateway, invoice_id: uuid.UUID, cell: Cell, result: Result
) -> None:
    for request, kind in cell.faults:
        method, path = ("GET", READS[request]) if request in READS else ("POST", REQUESTS[request])
        seconds = seconds_of(kind)
        control(twin, "faults", kind=kind, key=twin.key, method=method, path=path, seconds=seconds, times=cell.times)
    left = [cell.nth]

    def checkpoint(_: uuid.UUID, reached: str) -> None:
        left[0] -= reached == cell.kill
        if left[0] == 0:
            raise Crash(reached)

    def send() -> None:
        send_invoices(
            world.engine, invoice_ids=[invoice_id], gateway=gateway, now=NOW, checkpoint=checkpoint, pause_s=PAUSE_S
        )

    with ThreadPoolExecutor(2) as senders:
        runs = [senders.submit(send) for _ in range(2 if cell.raced else 1)]
    result.killed += any(isinstance(each.exception(), Crash) for each in runs)
    for each in runs:
        if each.exception() is not None and not isinstance(each.exception(), Crash):
            each.result()
    _, _, faults = twin.call("GET", "/_twin/faults")
    result.met += sum(fault["met"] for fault in faults["data"])
    twin.call("DELETE", "/_twin/faults")


def _check(world: World, gateway: StripeGateway, names: Sequence[str], cells: Sequence[Cell], result: Result) -> None:
    there: dict[str, list[StripeInvoice]] = defaultdict(list)
    for invoice in gateway.invoices():
        there[invoice.seen.metadata["billing_account"]].append(invoice)
    ours = {invoice.billing_account: invoice for invoice in world.send(gateway).invoices}
    customers = Counter(customer["name"] for customer in gateway.customers(None))
    owed = dict(
        world.rows(
            "select a.subledger, sum(p.amount) * 100 from ledger.postings p join ledger.accounts a using (account_id)"
            " where a.code = 1100 group by 1"
        )
    )
    for name, cell in zip(names, cells, strict=True):
        found = there.pop(name, [])
        said = [] if ours[name].outcome is Outcome.FINALIZED else [f"{ours[name].outcome}: {ours[name].reason}"]
        if len(found) != 1:
            said.append(f"{len(found)} invoices")
        if customers[name] != 1:
            said.append(f"{customers[name]} customers")
        if owed.get(name) != TOTAL:
            said.append(f"{owed.get(name)} are receivable")
        for invoice in found:
            lines = sorted((line.line_key, line.amount) for line in invoice.lines or ())
            is_ours = (invoice.invoice_id, invoice.seen.number) == (ours[name].stripe_invoice_id, ours[name].number)
            if (invoice.seen.status, invoice.seen.total, lines) != ("open", TOTAL, sorted(LINES.items())):
                said.append(f"{invoice.invoice_id} is {invoice.seen.status} over {invoice.seen.total}: {lines}")
            if not is_ours:
                said.append(f"{invoice.invoice_id} is not the one that we know")
        if said:
            result.wrong.append(f"{name} {cell}: {'; '.join(said)}")
        else:
            raced = " raced" if cell.raced else ""
            met = " + ".join(f"{kind} at {request} x{cell.times}{raced}" for request, kind in cell.faults)
            result.right[cell.kill, met] += 1
    if there:
        result.wrong.append(f"invoices of nobody: {sorted(there)}")
    numbers = {str(invoice.number) for invoice in ours.values()}
    if numbers != {f"INV-{n:06d}" for n in range(1, len(names) + 1)}:
        result.wrong.append("the numbers have gaps")
