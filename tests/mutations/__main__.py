"""`python -m tests.mutations [AREA] [number …]`: deliberate errors, each of which a test must catch; areas: `AREAS`.

Every error is made in a copy of the tree, and the tests that should see it are run there. Prints a table; exit code 1
if one survives, or if its text is no longer there. The tests of ledger and streams need the local services (`make up`,
then `eval "$(.venv/bin/tollbook dev env)"`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mutations import ledger, rating, streams
from tests.mutations.mutation import Outcome, copy_tree, judged

AREAS = {"rating": rating.MUTATIONS, "ledger": ledger.MUTATIONS, "streams": streams.MUTATIONS}


def main() -> int:
    """Make each error, and say which test caught it."""
    arguments = argparse.ArgumentParser(description="Deliberate errors, each of which a test must catch.")
    arguments.add_argument("area", nargs="?", choices=sorted(AREAS), help="default: all")
    arguments.add_argument("numbers", nargs="*", type=int, help="default: all of the area")
    given = arguments.parse_args()
    chosen = [
        (area, number, mutation)
        for area, mutations in AREAS.items()
        for number, mutation in enumerate(mutations, start=1)
        if given.area in (None, area) and (not given.numbers or number in given.numbers)
    ]
    caught = 0
    with tempfile.TemporaryDirectory(prefix="tollbook-mutations-") as folder:
        copy_tree(Path(folder))
        for area, number, mutation in chosen:
            verdict = judged(mutation, Path(folder))
            caught += verdict.outcome is Outcome.CAUGHT
            print(f"{area:<7} {number:>2}  {verdict.outcome:<9} {mutation.what:<76} {verdict.by}", flush=True)
            if verdict.output:
                print(verdict.output)
    print(f"{caught} of {len(chosen)} deliberate errors caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
