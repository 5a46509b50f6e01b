"""A crash at every point of sending, resumed: one finalized invoice with the right lines, whatever happened before."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import stripe

from billing.commands.send_invoices import Outcome
from billing.commands.trial_balance import trial_balance
from billing.invoicing import sending
from billing.ledger.journal import AccountCode
from billing.stripe.stripe_gateway import StripeGateway
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import Crash, World, crash_at

REPOSITORY = Path(__file__).resolve().parents[3]

POINTS = [
    "stored frozen",
    *("sending customer 0", "unrecorded customer 0", "stored customer_known"),
    *("sending draft 0", "unrecorded draft 0", "stored draft_created"),
    *("sending lines 0", "unrecorded lines 0", "sending lines 1", "unrecorded lines 1"),
    *("stored compared", "stored released"),
    *("sending number 0", "unrecorded number 0", "stored numbered"),
    *("sending finalize 0", "unrecorded finalize 0", "stored finalized"),
]
SENDING = [point for point in POINTS if not point.startswith("stored")]
LINES = {"cached": 20, "in": 60, "out": 500}


@pytest.fixture(autouse=True)
def _two_requests_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LINES_PER_REQUEST", 2)


def drafted(world: World, count: int) -> list[str]:
    """So many accounts with the same draft of three lines."""
    names = [f"t{n:03d}" for n in range(count)]
    world.customers(*names)
    for name in names:
        world.use(name, input_tokens=1000, cache_hit_tokens=400, output_tokens=2500)
    world.rate()
    world.draft()
    return names


def crash(world: World, gateway: StripeGateway, account: str, point: str) -> None:
    with pytest.raises(Crash):
        world.send(gateway, billing_accounts=[account], checkpoint=crash_at(point))


def check(world: World, gateway: StripeGateway, twin: StripeTwin, names: list[str]) -> None:
    """Each account has exactly one invoice in Stripe, finalized, with the right lines; books and numbers agree."""
    final = world.send(gateway)
    assert {i.outcome for i in final.invoices} == {Outcome.FINALIZED}
    found: list[stripe.Invoice] = list(twin.client().v1.invoices.list({"limit": 100}).auto_paging_iter())
    assert Counter(i.metadata["billing_account"] for i in found if i.metadata) == Counter(names)
    for invoice in found:
        assert (invoice.status, invoice.total, invoice.amount_due) == ("open", 580, 580)
        assert {line.metadata["line_key"]: line.amount for line in invoice.lines.data} == LINES
        assert len(invoice.lines.data) == len(LINES)
    numbers = [f"INV-{n:06d}" for n in range(1, len(names) + 1)]
    assert sorted(str(invoice.number) for invoice in found) == numbers
    assert [row[0] for row in world.rows("select written from ledger.issued_numbers order by 1")] == numbers
    books = {row.code: row.debit - row.credit for row in trial_balance(world.engine).rows}
    assert books[AccountCode.ACCOUNTS_RECEIVABLE.code] * 100 == 580 * len(names)
    assert books[AccountCode.UNBILLED_RECEIVABLE.code] == 0
    assert world.count("ledger.journal_entries") == 2 * len(names)


def test_a_crash_at_any_point_is_resumed_to_exactly_one_invoice(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    names = drafted(world, len(POINTS))
    for name, point in zip(names, POINTS, strict=True):
        crash(world, gateway, name, point)
    check(world, gateway, stripe_twin, names)
    assert len(stripe_twin.client().v1.customers.list({"limit": 100}).data) == len(names)


def test_two_crashes_at_any_points_are_resumed_too(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    pairs = [
        (first, second) for i, first in enumerate(POINTS) for second in POINTS[i:] if not first.startswith("stored")
    ]
    # Reaching "stored …" a second time is impossible; a request may be reached again, its reply lost twice.
    pairs = random.Random(20261101).sample(pairs, 24)
    names = drafted(world, len(pairs))
    for name, (first, second) in zip(names, pairs, strict=True):
        crash(world, gateway, name, first)
        crash(world, gateway, name, second)
    check(world, gateway, stripe_twin, names)


def test_a_key_older_than_23_hours_is_never_resent_but_looked_up(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    """Resent, a key that Stripe has forgotten would make a second invoice or double the lines."""
    names = drafted(world, len(SENDING))
    for name, point in zip(names, SENDING, strict=True):
        crash(world, gateway, name, point)
    # In the last ten minutes before that it is not resent either: what is looked up must not be under way.
    world.age_requests(hours=22.9)
    resent = watch_keys(gateway)
    left = world.send(gateway)
    assert ({i.outcome for i in left.invoices}, resent) == ({Outcome.LATER}, [])
    assert all("in ten minutes it is looked up" in str(i.reason) for i in left.invoices)
    world.age_requests(hours=0.2)
    old = {row[0] for row in world.rows("select idempotency_key from ledger.stripe_requests where reply_id is null")}
    assert len(old) == len(SENDING)
    seen = watch_keys(gateway)
    check(world, gateway, stripe_twin, names)
    assert not old & set(seen), "an old key went out again"
    made = [customer.name for customer in stripe_twin.client().v1.customers.list({"limit": 100}).data]
    assert Counter(made) == Counter(names), "a customer that was made and not recorded is found again"


def watch_keys(gateway: StripeGateway) -> list[str]:
    """The keys of every request that goes out from here on."""
    seen: list[str] = []

    def watched(send: Callable[[sending.Request], object]) -> Callable[[sending.Request], object]:
        def watch(request: sending.Request) -> object:
            seen.append(request.idempotency_key)
            return send(request)

        return watch

    gateway.create_customer = watched(gateway.create_customer)  # type: ignore[method-assign,assignment]
    gateway.change_invoice = watched(gateway.change_invoice)  # type: ignore[method-assign,assignment]
    return seen


def test_a_refusal_that_stripe_stored_is_repeated_under_a_new_key_once_it_is_mended(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    (name,) = drafted(world, 1)
    crash(world, gateway, name, "stored released")
    client = stripe_twin.client()
    # Somebody takes our number for an invoice of their own: Stripe refuses it for ours.
    other = client.v1.invoices.create(
        {"customer": client.v1.customers.create({"name": "x"}).id, "number": "INV-000001"}
    )
    (sent,) = world.send(gateway).invoices
    assert sent.outcome is Outcome.PARKED
    assert sent.reason is not None
    assert sent.reason.startswith("Stripe: ")
    client.v1.invoices.delete(other.id)
    world.age_requests(hours=1)
    check(world, gateway, stripe_twin, [name])


def test_another_invoice_under_our_identity_is_never_adopted(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    (name,) = drafted(world, 1)
    crash(world, gateway, name, "unrecorded draft 0")
    (draft,) = stripe_twin.client().v1.invoices.list().data
    stripe_twin.client().v1.invoices.update(draft.id, {"metadata": {"lines_hash": "other"}})
    world.age_requests(hours=24)
    (sent,) = world.send(gateway).invoices
    assert sent.outcome is Outcome.PARKED
    assert f"say they are this one and are not: {draft.id}" in str(sent.reason)


SENDER = """
import sys
from datetime import UTC, datetime
from billing.invoicing import sending
from billing.commands.send_invoices import send_invoices
from billing.database import engine_for
from billing.periods import parse_period
from billing.settings import StripeSettings
from billing.stripe.rate_limits import Limits
from billing.stripe.stripe_gateway import StripeGateway
sending.LINES_PER_REQUEST = 2
url, key, api = sys.argv[1:]
print("begins", flush=True)
slow = StripeGateway(StripeSettings(key, api), Limits(100, 100))  # a fast machine is not through before it is killed
send_invoices(engine_for(url), period=parse_period("2026-10"), gateway=slow,
              now=datetime(2026, 12, 2, tzinfo=UTC), pause_s=0.05)
"""


def test_a_sender_that_is_killed_again_and_again_sends_each_invoice_once(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, own_database_url: str
) -> None:
    names = drafted(world, 24)
    chance = random.Random(7)
    kills = 0
    for _ in range(5):
        arguments = [sys.executable, "-c", SENDER, own_database_url, stripe_twin.key, stripe_twin.url]
        with subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            time.sleep(chance.uniform(0.05, 0.5))
            kills += process.poll() is None
            process.kill()
    assert kills >= 2, "it was never killed at work"
    check(world, gateway, stripe_twin, names)


def test_a_sender_whose_machine_is_gone_loses_its_locks_soon(world: World) -> None:
    ((idle_s, over_tcp),) = world.rows("select current_setting('tcp_keepalives_idle'), inet_client_addr() is not null")
    assert idle_s == ("5" if over_tcp else "0"), "a socket file has none"
