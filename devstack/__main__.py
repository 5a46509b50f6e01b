"""`python3 -m devstack up|down|status|env|clean`: the local services, also where the Python environment is missing.

Only `up` needs the environment (it speaks to the services it started). `tollbook dev` (commands.py) is the same.
"""

from __future__ import annotations

import argparse
import sys

from devstack import verbs
from devstack.errors import DevstackError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devstack", description="Kafka, TimescaleDB and the Stripe twin.")
    parser.add_argument("--home", help="folder of the services (default: TOLLBOOK_HOME or .tollbook)")
    chosen = parser.add_subparsers(dest="verb", required=True)
    chosen.add_parser("up", help="start what does not run and wait until it works")
    chosen.add_parser("down", help="stop the services; their data stays")
    chosen.add_parser("status", help="what runs, and where").add_argument("--json", action="store_true")
    chosen.add_parser("env", help="the variables by which programs find the services, as export lines")
    chosen.add_parser("clean", help="stop the services and remove their data")
    given = parser.parse_args()
    try:
        if given.verb == "status":
            print(verbs.status(given.home, given.json))
        elif given.verb == "env":
            print(verbs.env(given.home))
        else:
            {"up": verbs.up, "down": verbs.down, "clean": verbs.clean}[given.verb](given.home)
    except DevstackError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
