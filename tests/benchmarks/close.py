"""`make bench-close`: what closing a month costs, part by part."""

from __future__ import annotations

from tests.benchmarks import gates, ledger, rating, sending
from tests.benchmarks.databases import database
from tests.benchmarks.report import Report

if __name__ == "__main__":
    made = Report("bench-close", ledger.SEED, ledger.QUICK)
    ledger.main(made)
    with database() as url:
        rating.main(made, url)
    for size in gates.SIZES:
        with database() as url:
            gates.main(made, url, size)
    with database() as url:
        sending.main(made, url)
    made.write()
