"""How a close is shown on a terminal, and how its month is named."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from billing.periods import BillingPeriod, parse_period
from console.output import listing, out
from reconciliation.close.gates import TITLES, Gate
from reconciliation.close.running import CloseRun
from reconciliation.close.states import State

Month = Annotated[str, typer.Argument(metavar="MONTH", help="e.g. 2026-10")]
DIFFERENCE_COLUMNS: Final = ("check", "account", "key", "left", "right", "waived_by")
GATE_COLUMNS: Final = ("gate", "what", "compared", "differences", "waived")


def month_of(text: str) -> BillingPeriod:
    """The month that is closed. Raises typer.BadParameter for another period."""
    period = parse_period(text)
    if period.months != 1:
        raise typer.BadParameter(f"{text}: a month is closed, e.g. 2026-10")
    return period


def show_run(run: CloseRun) -> None:
    """What a run of the close did, in a few lines, and what comes next."""
    name = run.month.name
    where = ", ".join(f"{count:,} {state}" for state, count in sorted(run.standing.items(), key=_order)) or "none"
    out.print(f"{name}: accounts: {where}")
    if run.prepared is not None:
        for late in run.prepared.late:
            out.print(late)
    red = [gate for gate, result in run.results.items() if not result.is_green]
    if run.results:
        green = [gate for gate in run.results if gate not in red]
        out.print(f"gates: {', '.join(green) or 'none'} green" + (f"; {', '.join(red)} red" if red else ""))
    if run.books_closed:
        out.print(f"the book of {name} is closed")
    if not run.moved:
        out.print("nothing changed")
    if State.RECONCILED in run.standing:
        out.print(
            f"{run.standing[State.RECONCILED]:,} accounts wait for another person: `tollbook close approve {name}`,"
            " then run it again"
        )


def show_status(name: str, found: dict[str, Any]) -> None:
    """Where accounts stand, and the gates."""
    listing(found["accounts"], ("state", "accounts"), title=f"{name}: accounts", empty="its close has not begun")
    rows = [
        {"gate": each["gate"], "what": TITLES[Gate(each["gate"])], "compared": each["compared"],
         "differences": len(each["differences"]), "waived": sum(bool(d["waived_by"]) for d in each["differences"])}
        for each in found["gates"]
    ]  # fmt: skip
    listing(rows, GATE_COLUMNS, title="Gates", empty="no gate was asked yet")
    for each in found["parked"]:
        out.print(f"parked: {each['billing_account']}, by {each['actor']}: {each['reason']}")


def _order(item: tuple[State, int]) -> int:
    return list(State).index(item[0])
