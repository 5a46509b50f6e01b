"""How a close is shown on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from billing.commands.close_month import MonthClosed
from billing.commands.send_invoices import Outcome
from billing.money import plain
from console.invoice_shown import note_told
from console.output import listing, out
from reconciliation.close.gates.gate import TITLES, Gate
from reconciliation.close.running import CloseRun
from reconciliation.close.signatures import SINCE
from reconciliation.close.states import State

DIFFERENCE_COLUMNS: Final = ("check", "accounts", "key", "left", "right", "waived_by")
EARLIER_USUAL: Final = 3
"""Earlier periods that a close rates again where books are closed in time: the horizon is a month and a half."""
GATE_COLUMNS: Final = ("gate", "what", "compared", "differences", "waived")


def show_dry_run(closed: MonthClosed) -> None:
    """What a run of the close would do, in a few lines."""
    would = closed.sent.having(Outcome.WOULD_BE_SENT)
    out.print(f"{closed.period.name}: dry run, nothing is changed")
    out.print(
        f"{closed.rated.lines_posted} rated lines would be posted; the drafts of {len(closed.accounts_to_redraw)}"
        " billing accounts would follow them"
    )
    out.print(
        f"of what is posted already {len(closed.drafted.changed)} invoices would be drawn up,"
        f" and {len(would)} of those drawn up would be sent"
    )


def show_run(run: CloseRun) -> None:
    """What a run of the close did, in a few lines, and what comes next."""
    name = run.month.name
    where = ", ".join(f"{count:,} {state}" for state, count in sorted(run.standing.items(), key=_order)) or "none"
    out.print(f"{name}: accounts: {where}")
    beside = [] if run.prepared is None else list(_beside(run.prepared))
    for line in beside:
        out.print(line)
    red = [gate for gate, result in run.results.items() if not result.is_green]
    if run.results:
        green = [gate for gate in run.results if gate not in red]
        out.print(f"gates: {', '.join(green) or 'none'} green" + (f"; {', '.join(red)} red" if red else ""))
    if run.books_closed:
        out.print(f"the book of {name} is closed")
    if not (run.moved or beside):
        out.print("nothing changed")
    if State.RECONCILED in run.standing:
        out.print(
            f"{run.standing[State.RECONCILED]:,} accounts wait for another person: `tollbook close approve {name}`,"
            " then run it again"
        )


def gate_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The gates of `close_status` as rows: `differences` are those that nobody has waived."""
    rows = []
    for each in found["gates"]:
        waived = sum(bool(one["waived_by"]) for one in each["differences"])
        rows.append(
            {"gate": each["gate"], "what": TITLES[Gate(each["gate"])], "compared": each["compared"],
             "differences": len(each["differences"]) - waived, "waived": waived}
        )  # fmt: skip
    return rows


def show_status(name: str, found: dict[str, Any]) -> None:
    """Where accounts stand, and the gates."""
    listing(found["accounts"], ("state", "accounts"), title=f"{name}: accounts", empty="its close has not begun")
    listing(gate_rows(found), GATE_COLUMNS, title="Gates", empty="no gate was asked yet")
    for each in found["parked"]:
        out.print(f"parked: {each['billing_account']}, by {each['actor']}: {each['reason']}")
    if found["since_signed"]:
        title = "Since the first signature of what was reopened"
        listing(found["since_signed"], SINCE, title=title)
    if found["to_sign"]:
        waiting = found["to_sign"]
        out.print(f"to sign: {waiting['accounts']:,} accounts, --hash {waiting['hash']}", soft_wrap=True)


def _beside(month: MonthClosed) -> Iterator[str]:
    """What a run did beside the month's own invoices, each in a line."""
    for in_advance in (*(each.in_advance for each in month.others), month.in_advance):
        yield from map(note_told, in_advance.billed.notes)
    yield from map(note_told, month.notes.notes)
    yield from month.late
    if len(month.earlier) > EARLIER_USUAL:
        yield (
            f"{len(month.earlier)} earlier periods were rated again, since late usage can still come to them: closing"
            " their books ends that (docs/late-usage.md)"
        )
    if month.expired:
        yield f"{len(month.expired)} credits expired"
    for bought in month.topped_up:
        yield f"{bought.billing_account}: {plain(bought.amount)} {bought.currency} of credit to be paid"


def _order(item: tuple[State, int]) -> int:
    return list(State).index(item[0])
