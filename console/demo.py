"""`make demo`: one real hour of traffic, from usage events to invoices in Stripe, and the proof that all agrees.

What is to go wrong on the way (a lost reply, a webhook told twice) must have gone wrong: it is checked like the rest.

Everything it does can be done by hand with the commands that it names. Run again, it changes no event, plan or invoice:
they are there already; the quotas of the day go on being spent.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

import psycopg
from sqlalchemy import Engine

from billing.commands.apply_plan import apply_plan
from billing.commands.close_month import StageProgress
from billing.commands.show_invoices import invoice_list
from billing.commands.start_subscription import start_subscriptions
from billing.database import transaction
from billing.invoicing.invoice_states import InvoiceState
from billing.money import currency, from_minor
from billing.periods import parse_period
from console import demo_lost_hours, demo_quotas, demo_webhooks, session
from console.close_shown import gate_rows
from console.demo_webhooks import Delivered
from console.main import run_with_messages
from console.output import out, problems, table
from console.progress import bars
from devstack.stack import STRIPE_API
from devstack.stripe_twin.faults import FaultKind
from devstack.traffic import azure_hour
from devstack.twin_control import ask
from reconciliation.close import close_store, deciding
from reconciliation.close.deciding import Worth
from reconciliation.close.gates.evaluating import evaluate_waivable
from reconciliation.close.gates.gate import Gate
from reconciliation.close.running import CloseRun, run_close
from reconciliation.close.status import close_status
from serving_adapter import ingest
from serving_adapter.producer import EventProducer
from serving_adapter.topics import USAGE
from streams import schema, tenants
from streams.database import connect
from streams.ingest import sources
from streams.usage import usage_store
from streams.workers import status

MONTHS: Final = ("2026-10", "2026-11")
NOW: Final = datetime(2026, 12, 2, tzinfo=UTC)
"""The demo's clock: both months have ended."""
ACTOR: Final = "demo"
APPROVER: Final = "another person"
"""Who signs what ACTOR has prepared: never the same."""
SHOWN: Final = 10
LOST: Final = {"kind": FaultKind.LOSE_REPLY.value, "method": "POST", "path": "/v1/invoices/*/finalize", "skip": 40}
"""What goes wrong at Stripe on the way; nothing where the invoices are there already."""
WORKER_LOOKED_AT_EVERY_S: Final = 0.1


@dataclass(slots=True)
class Steps:
    """What was done, and how long each step took."""

    done: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str, by_hand: str) -> Iterator[None]:
        """Announce a step and time it."""
        out.print(f"{len(self.done) + 1}. {title}", style="bold")
        out.print(f"   {by_hand}", style="dim", soft_wrap=True)
        begun = time.monotonic()
        yield
        self.done.append({"step": title, "seconds": f"{time.monotonic() - begun:.1f}"})


def main() -> None:
    """Run the demo; exit code 1 if anything does not agree."""
    session.fill_environment()
    steps = Steps()
    with steps.step("Bring the database's schema up", "tollbook db upgrade"):
        schema.upgrade(session.database().owner_url)
    with session.engine() as engine, connect(session.database().url) as connection, bars() as progress:
        with steps.step(
            "Register 500 tenants, a price plan, subscriptions",
            "tollbook tenant import · plan apply · subscription start",
        ):
            plan = _register(engine, connection)
        before = status.outcomes(connection)
        with steps.step(
            "Send a real hour of traffic, with duplicates, late and bad messages", "tollbook dev traffic --dirty --send"
        ):
            sent = _send(progress)
        with steps.step(
            "Two days of three replicas, of which two shippers drop six hours of three tenants, and nobody tells",
            "tollbook-adapter ship --archive …",
        ):
            served = demo_lost_hours.serve(engine, connection, plan, ACTOR)
        with steps.step("Apply it exactly once: Kafka → Faust → TimescaleDB", "tollbook streams run --drain"):
            _apply(connection, progress)
        after = status.outcomes(connection)
        with steps.step("Look for what does not agree, as is done each hour", "tollbook reconcile run"):
            lost_hours = demo_lost_hours.find(connection)
        with steps.step("Get back what was lost, once", "tollbook replay plan --spool ARCHIVE · replay apply PLAN"):
            back = demo_lost_hours.get_back(engine, connection, ACTOR) if lost_hours.findings else None
        with steps.step(
            "Let Stripe lose a reply: it finalizes an invoice, and the answer never arrives",
            f"tollbook dev twin fault {FaultKind.LOSE_REPLY} --path '{LOST['path']}' --skip {LOST['skip']}",
        ):
            _lose_a_reply()
        issued = _issued(engine)
        with steps.step(
            "Close October: cut, rate, compare; another person signs; invoice, compare again",
            f"tollbook close run {MONTHS[0]} --test --now {NOW:%Y-%m-%dT%H:%M:%SZ} · waive · approve · run again",
        ):
            closed = [_close(engine, MONTHS[0], progress)]
        lost, issued = _replies_lost(), _issued(engine) - issued
        with steps.step(
            "Let a payer pay, and Stripe tell it twice",
            "tollbook dev twin webhooks --repeat 1 · stripe listen · stripe status",
        ):
            told = demo_webhooks.pay_and_tell_twice(engine, MONTHS[0])
        with steps.step("Close November", f"tollbook close run {MONTHS[1]} --test … · waive · approve · run again"):
            closed.append(_close(engine, MONTHS[1], progress))
        with steps.step(
            "Ask before each request: one tenant meets a hard limit, one a soft one",
            "tollbook quota set · quota serve · quota why",
        ):
            asked = demo_quotas.ask_before_requests(connection, ACTOR)
        _show_messages(sent + served, before, after)
        _show_tenants(engine, connection)
        _show_invoices(engine)
        not_shown = [*_show_lost(lost, issued), *_show_told(told), *demo_lost_hours.show(served, lost_hours, back)]
        agree = _show_gates(engine)
    demo_quotas.show(asked)
    out.print(table(steps.done, ("step", "seconds"), "Time of each step"))
    _show_next()
    found = [*not_shown, *(problem for month in closed for problem in month.problems)]
    problems(found)
    if found or not agree:
        sys.exit(1)


def _register(engine: Engine, connection: psycopg.Connection) -> str:
    """Tenants, their plan and subscriptions; the plan's name."""
    tenants.register(connection, [(tenant, tenant) for tenant in azure_hour.TENANTS], actor=ACTOR)
    text = azure_hour.plan_text()
    plan = apply_plan(engine, text, file=azure_hour.PLAN, actor=ACTOR, now=session.clock(None)).plan
    starts_at = parse_period(MONTHS[0]).start
    start_subscriptions(
        engine, tenant_ids=azure_hour.TENANTS, plan=plan.name, starts_at=starts_at, actor=ACTOR,
        email="billing@tenants.example",
    )  # fmt: skip
    return plan.name


def _send(progress: StageProgress) -> int:
    kafka = session.kafka()
    producer = EventProducer(kafka, USAGE.name(kafka.topic_prefix))
    lines = [line.encode() for line in azure_hour.lines(dirty=True)]
    stream = io.BytesIO(b"\n".join(lines))
    tell: Callable[[int], None] = lambda done: progress("send", done, len(lines))  # noqa: E731
    sent = ingest.ingest_raw(stream, producer, progress=tell).sent
    tell(sent)
    return sent


def _apply(connection: psycopg.Connection, progress: StageProgress) -> None:
    """Run a worker as an operator would, and watch the lag go down."""
    log = session.usage_log()
    sources.register(connection, log)
    waiting = sources.lag(connection, log)
    command = [sys.executable, "-m", "console.main", "streams", "run", "--drain"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as worker:
        while worker.poll() is None:
            progress("apply", waiting - sources.lag(connection, log), waiting)
            time.sleep(WORKER_LOOKED_AT_EVERY_S)
        progress("apply", waiting - sources.lag(connection, log), waiting)
        if worker.returncode:
            message = worker.stderr.read() if worker.stderr else ""
            sys.exit(f"demo: the worker ended with {worker.returncode}: {message.strip()}")


def _close(engine: Engine, month: str, progress: StageProgress) -> CloseRun:
    """Close a month by two people; it is left alone where that is done."""
    period = parse_period(month)

    def tell(stage: str, done: int, total: int) -> None:
        progress(f"{stage} {month}", done, total)

    def run() -> CloseRun:
        gateway = session.stripe(test=True)
        return run_close(
            engine, period, gateway=gateway, log=session.usage_log, now=NOW, actor=ACTOR, test=True, progress=tell
        )

    with transaction(engine) as connection:
        is_closed = any(not each.billing_account for each in close_store.standings(connection, month).values())
    if not is_closed:
        waiting = evaluate_waivable(engine, period, now=NOW)
        worth = Worth(Decimal(0), Decimal(1), "USD")
        for gate, reason in ((Gate.R1, "the demo's clock is ahead"), (Gate.R9, "made bad by the demo")):
            deciding.waive(engine, period, gate, waiting, keys=None, reason=reason, worth=worth, actor=APPROVER)
        run()
    deciding.approve(engine, period, actor=APPROVER)
    return run()


def _lose_a_reply() -> None:
    """Where Stripe is the local twin: Stripe itself loses replies when it likes."""
    if STRIPE_API in os.environ:
        ask("DELETE", "faults")
        ask("POST", "faults", LOST)


def _issued(engine: Engine) -> int:
    """How many of the first month's invoices Stripe has finalized."""
    states = [InvoiceState.FINALIZED, InvoiceState.PAID]
    return len(invoice_list(engine, within=parse_period(MONTHS[0]), states=states))


def _replies_lost() -> int:
    return sum(fault["met"] for fault in ask("DELETE", "faults")["forgotten"]) if STRIPE_API in os.environ else 0


def _show_messages(sent: int, before: dict[str, int], after: dict[str, int]) -> None:
    rows: list[dict[str, Any]] = [{"messages": "sent", "count": sent}]
    rows += [{"messages": name, "count": count - before.get(name, 0)} for name, count in after.items()]
    out.print(table(rows, ("messages", "count"), "\nWhat became of the messages"))


def _show_tenants(engine: Engine, connection: psycopg.Connection) -> None:
    """The tenants with the largest bills over both months."""
    billed: dict[str, int] = {}
    for month in MONTHS:
        for invoice in invoice_list(engine, period=parse_period(month)):
            billed[invoice["billing_account"]] = billed.get(invoice["billing_account"], 0) + invoice["total"]
    usd = currency("USD", date(2026, 12, 1))
    rows = []
    for tenant, minor in sorted(billed.items(), key=lambda item: -item[1])[:SHOWN]:
        start, end = parse_period(MONTHS[0]).start, parse_period(MONTHS[1]).end
        used = usage_store.usage_of(connection, tenant, start, end, ())[0].totals
        rows.append(
            {"tenant": tenant, "requests": used.requests, "input_tokens": used.input_tokens,
             "cached": used.cache_hit_tokens, "output_tokens": used.output_tokens, "USD": from_minor(minor, usd)}
        )  # fmt: skip
    out.print(table(rows, tuple(rows[0]), f"\nThe {SHOWN} largest of {len(billed)} tenants"))


def _show_invoices(engine: Engine) -> None:
    """The largest invoices, and how many there are in which state."""
    found = [invoice for month in MONTHS for invoice in invoice_list(engine, period=parse_period(month))]
    usd = currency("USD", date(2026, 12, 1))
    rows = [
        {"account": invoice["billing_account"], "period": invoice["period"], "number": invoice["number"],
         "exact": invoice["exact_total"], "USD": from_minor(invoice["total"], usd),
         "stripe": invoice["stripe_invoice_id"]}
        for invoice in sorted(found, key=lambda invoice: -invoice["total"])[:SHOWN]
    ]  # fmt: skip
    out.print(table(rows, tuple(rows[0]), f"\nThe {SHOWN} largest of {len(found)} invoices"))
    states = sorted({invoice["state"] for invoice in found})
    counts = ", ".join(f"{sum(i['state'] == state for i in found)} {state}" for state in states)
    out.print(f"{counts}; together {from_minor(sum(i['total'] for i in found), usd):,} USD")


def _show_lost(lost: int, issued: int) -> list[str]:
    """What became of the reply that was lost, of so many invoices that were issued; what is wrong with that."""
    if STRIPE_API not in os.environ:
        out.print("no reply was lost: Stripe itself was asked, not the twin")
    elif not issued:
        out.print("no reply was lost: the invoices were there already")
    elif lost:
        out.print(
            f"{lost} reply of Stripe was lost after it had finalized an invoice: it was asked again under the same key,"
            " and there is one invoice, as the gates below say",
            soft_wrap=True,
        )
    else:
        return [
            f"no reply was lost, though {issued} invoices were finalized: the demo has not shown what it is to show"
        ]
    return []


def _show_told(told: Delivered | None) -> list[str]:
    """What became of the webhooks that came twice; what is wrong with that."""
    if told is None:
        out.print("no webhook came twice: the invoice was paid already, or Stripe itself was asked")
        return []
    came = f"{told.webhooks} webhooks for {told.events} events"
    booked = f"of {told.moved} balance transactions in Stripe {told.booked} are booked"
    if not told.exact:
        return [f"{told.number} was paid, and Stripe was to tell each event of it twice: {came}; {booked}"]
    paid = f"{told.number} was paid, and Stripe told it twice"
    out.print(f"{paid}: {came}; each event was kept once; {booked}", soft_wrap=True)
    return []


def _show_gates(engine: Engine) -> bool:
    """What each gate of both closes compared and found; whether all agree, but for what was waived."""
    found = {month: close_status(engine, parse_period(month)) for month in MONTHS}
    rows = [{"month": month} | row for month, status_ in found.items() for row in gate_rows(status_)]
    out.print(table(rows, tuple(rows[0]), "\nThe gates of the closes"))
    agree = all(status_["books"] for status_ in found.values()) and not any(row["differences"] for row in rows)
    verdict = "everything agrees, both books are closed" if agree else "NOT everything agrees"
    out.print(f"{verdict}\n", style="bold green" if agree else "bold red")
    return agree


def _show_next() -> None:
    out.print("\nWhat to try next", style="bold")
    for command, why in (
        ("tollbook usage show tenant_003 --period 2026-10 --by model,region", "what a tenant used"),
        ("tollbook invoice list --period 2026-10", "then: tollbook invoice show NUMBER"),
        ("tollbook events quarantine list", "the 40 bad messages with their reasons; show ID has the whole"),
        (f"tollbook quota show {demo_quotas.HARD}", "where its quota stands"),
        ("tollbook streams status", "lag and counts of each partition"),
        ("tollbook reconcile list --all", "what was lost and is healed; then: tollbook replay list"),
        ("tollbook close status 2026-10", "where the close stands; --gate R9: what was waived, by whom"),
        ("tollbook close evidence 2026-10 evidence", "for auditors; then: tollbook close verify evidence"),
        ("tollbook ledger trial-balance", "the books"),
        ("make demo", "again: events, plans and invoices stay as they are"),
        ("make down", "stop the services; make clean removes everything"),
    ):
        prefix = "" if command.startswith("make") else ".venv/bin/"
        out.print(f"  {prefix}{command:<75} {why}", soft_wrap=True)


if __name__ == "__main__":
    run_with_messages(main)
