"""`make simulate`: processes killed in dirty traffic, requests against quotas, random bills rated twice; seeded.

    KILLS=200         kills in all; one in four is of a whole worker (0: none)
    QUOTAS=60000      requests against quotas, in virtual time; and two minutes of them on the real parts, while Kafka
                      lags (0: none)
    SENDINGS=all      cells of the crash matrix of sending to Stripe, each twice (0: none)
    FAULTS=100        damage one row between any two stages of a closed month, and ask the gates: those that are listed,
                      and so many that the seed chooses (0: none)
    INVOICES=300000   invoices to rate by the product and by the second rating (0: none)
    QUICK=1           60 kills, 6,000 requests, no faults and 2,000 invoices, for a first look
    TOLLBOOK_SEED     repeats a run

Prints for people, writes `build/simulate.json` for machines. Exit code 1 if anything was lost, doubled or differs.

A `__main__`: the processes that are killed do not import it, as they would any other module that runs.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from typing import Final

from devstack.stack import environment
from tests.benchmarks.report import QUICK, Report
from tests.integration.reconciliation.damages import TOLD
from tests.simulation import kills, quota_kinds, quota_lag, quotas
from tests.simulation.kills import Figures
from tests.simulation.money import run as money
from tests.simulation.stripe.run import corrections_matrix, crash_matrix, random_months, webhook_matrix

KILLS: Final = 200
KILLS_QUICK: Final = 60
OF_WORKERS: Final = 4
"""One kill in so many is of a whole worker, which takes some five seconds: with QUICK=1, one in OF_WORKERS_QUICK."""
OF_WORKERS_QUICK: Final = 15
FAULTS: Final = 100
INVOICES: Final = 300_000
INVOICES_QUICK: Final = 2_000
QUOTAS: Final = 60_000
QUOTAS_QUICK: Final = 6_000
OF_A_KIND: Final = 6_000
"""Requests for each tenant of each kind of quota, who make some 900 of their own."""
SENDINGS_QUICK: Final = "90"
MONTHS: Final = 10
MONTHS_QUICK: Final = 2
DAMAGES: Final = "tests/integration/reconciliation/test_damages.py"


def main() -> int:
    """Run all parts."""
    os.environ.update(environment())
    seed = int(os.environ.get("TOLLBOOK_SEED") or random.SystemRandom().randrange(2**32))
    to_kill = int(os.environ.get("KILLS") or (KILLS_QUICK if QUICK else KILLS))
    invoices = int(os.environ.get("INVOICES") or (INVOICES_QUICK if QUICK else INVOICES))
    sendings = os.environ.get("SENDINGS") or (SENDINGS_QUICK if QUICK else "all")
    faults = int(os.environ.get("FAULTS") or (0 if QUICK else FAULTS))
    requests = int(os.environ.get("QUOTAS") or (QUOTAS_QUICK if QUICK else QUOTAS))
    print(f"seed {seed} (TOLLBOOK_SEED={seed} repeats it), {to_kill} kills, {invoices:,} invoices", flush=True)
    report = Report("simulate", seed, QUICK)
    wrong = 0
    if to_kill:
        of_workers = max(1, to_kill // (OF_WORKERS_QUICK if QUICK else OF_WORKERS))
        wrong += _tell_kills(kills.killed(seed, to_kill, of_workers=of_workers), report)
    if requests:
        wrong += _limit_requests(seed, requests, report)
    if sendings != "0":
        wrong += _kill_senders(seed, 0 if sendings == "all" else int(sendings), report)
    if months := int(os.environ.get("MONTHS") or (MONTHS_QUICK if QUICK else MONTHS)):
        wrong += _live_months(seed, months, 60 if QUICK else 0, report)
    if faults:
        wrong += _damage_months(seed, faults, report)
    if invoices:
        wrong += _rate_bills(seed, invoices, report)
    report.write()
    return 1 if wrong else 0


def _kill_senders(seed: int, cells: int, report: Report) -> int:
    result = crash_matrix(seed, cells)
    report.add("sendings_right", "invoices", [result.right.total()])
    report.add("sendings_killed", "senders", [result.killed])
    report.add("sendings_wrong", "invoices", [len(result.wrong)], goal=0)
    return len(result.wrong)


def _live_months(seed: int, months: int, cells: int, report: Report) -> int:
    """What comes back from Stripe: corrections killed at each step, webhooks gone wrong, random months with faults."""
    wrong = [*corrections_matrix(seed, cells), *webhook_matrix(seed), *random_months(seed, months)]
    for text in wrong[:20]:
        print(f"WRONG {text}", flush=True)
    report.add("stripe_months", "months", [months])
    report.add("stripe_months_wrong", "differences", [len(wrong)], goal=0)
    return len(wrong)


def _damage_months(seed: int, count: int, report: Report) -> int:
    """The damages of the close's test and `count` that the seed chooses, each of which a gate must name; prints what
    each does, and which gate."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--timeout=1800", DAMAGES]
    given = os.environ | {"TOLLBOOK_SEED": str(seed), "FAULTS": str(count)}
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=given)
    print(told.stdout, flush=True)
    counts = re.search(TOLD, told.stdout)
    if counts is None:
        print("the damages could not be tried", flush=True)
        return 1
    injected, caught = map(int, counts.groups())
    report.add("faults_injected", "rows", [injected])
    report.add("faults_caught", "rows", [caught])
    return int(told.returncode != 0)


def _limit_requests(seed: int, requests: int, report: Report) -> int:
    figures = quotas.simulate(seed, tenants=max(requests // 15, 20), requests=requests, say=print)
    figures |= quota_kinds.simulate(seed, each=max(requests // OF_A_KIND, 1), say=print)
    figures |= quota_lag.simulate(seed, quick=QUICK, say=print)
    zero = (*quotas.ZERO, *quota_kinds.ZERO, *quota_lag.ZERO)
    for key, value in figures.items():
        report.add(key, "", [value], goal=0 if key in zero else None)
    return sum(bool(figures[key]) for key in zero)


def _tell_kills(figures: Figures, report: Report) -> int:
    wrong = figures.lost + figures.doubled
    for key, value, unit, goal in (
        ("kills", figures.kills, "processes", KILLS),
        ("events_sent", figures.sent, "messages", None),
        ("events_applied", figures.rows, "events", None),
        ("events_lost", figures.lost, "events", 0),
        ("events_doubled", figures.doubled, "events", 0),
        ("kills_of_workers", figures.of_workers, "processes", None),
    ):
        report.add(key, unit, [value], goal=goal)
    return wrong


def _rate_bills(seed: int, invoices: int, report: Report) -> int:
    """Random bills, rated twice on all cores; what differs is shown with its case, shrunk."""
    began = time.monotonic()
    total = money.rated(seed, invoices, os.cpu_count() or 1, alone=False)
    money.print_coverage(total)
    money.print_features(total)
    if total.kinds:
        money.print_differences(total, seed, alone=False, shrinking=True)
    report.add("invoices", "documents", [total.invoices], goal=INVOICES)
    report.add("invoice_mismatches", "cases", [sum(total.kinds.values())], goal=0)
    report.add("invoice_combinations", "model x event x boundary", [len(total.met)])
    report.add("invoices_per_s", "documents/s", [total.invoices / (time.monotonic() - began)])
    return sum(total.kinds.values())


if __name__ == "__main__":
    sys.exit(main())
