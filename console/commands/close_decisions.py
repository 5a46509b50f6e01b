"""The verbs of `tollbook close` by which people decide: waive, explain, approve, release, reopen."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.money import parse_decimal
from console import session
from console.output import out
from reconciliation.close import close_store, deciding
from reconciliation.close.deciding import Worth
from reconciliation.close.gates.evaluating import evaluate_waivable
from reconciliation.close.gates.gate import Gate

Reason = Annotated[str, typer.Option(help="Why. The evidence shows it.")]
Keys = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY]...", help="Differences, as `close status` names them.")
]
AccountName = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The billing account.")]


def waive(
    month: session.Month,
    gate: Annotated[Gate, typer.Argument(help="R1 (gaps) or R9; R11 is explained.")],
    actor: session.Actor,
    reason: Reason,
    keys: Keys = None,
    every: Annotated[bool, typer.Option("--all", help="All that the gate finds now and that can be waived.")] = False,
    low: Annotated[str | None, typer.Option(help="What it may be worth at least, in major units.")] = None,
    high: Annotated[str | None, typer.Option(help="At most.")] = None,
    currency: Annotated[str | None, typer.Option(help="Their currency.")] = None,
) -> None:
    """Let differences stay that nobody can mend: gaps of R1, what waits in R9. In your name, with what it may cost."""
    worth = None
    if low is not None and high is not None and currency is not None:
        worth = Worth(parse_decimal(low, decimals=12), parse_decimal(high, decimals=12), currency)
    _waive(month, gate, keys, every, reason, worth, actor, "waived")


def explain(
    month: session.Month,
    actor: session.Actor,
    reason: Reason,
    keys: Keys = None,
    every: Annotated[bool, typer.Option("--all", help="All that moved beyond the threshold.")] = False,
) -> None:
    """Explain what moved against the month before (R11), by tenant and model as `close status --gate R11` names it."""
    _waive(month, Gate.R11, keys, every, reason, None, actor, "explained")


def _waive(
    month: str,
    gate: Gate,
    keys: list[str] | None,
    every: bool,
    reason: str,
    worth: Worth | None,
    actor: str,
    done: str,
) -> None:
    period = session.month_of(month)
    if bool(keys) == every:
        raise typer.BadParameter("name the differences, or say --all")
    with session.engine() as engine:
        found = evaluate_waivable(engine, period, now=session.clock(None))
        waived = deciding.waive(engine, period, gate, found, keys=keys or None, reason=reason, worth=worth, actor=actor)
    out.print(f"{period.name} {gate}: {len(waived)} differences {done} by {actor}")


def approve(
    month: session.Month,
    actor: session.Actor,
    leave: Annotated[
        list[str] | None, typer.Option(help="Park this account instead; the book closes without it.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why it is left.")] = "",
    hash_: Annotated[
        str | None, typer.Option("--hash", help="What `close status` shows to sign: refused if that is other by now.")
    ] = None,
) -> None:
    """Sign what every reconciled account comes to. Never the person who ran the close (TOLLBOOK_TEAM_OF_ONE)."""
    period = session.month_of(month)
    with session.engine() as engine:
        signed = deciding.approve(engine, period, actor=actor, leave=leave or (), reason=reason, seen=hash_)
    out.print(f"{period.name}: {len(signed)} accounts approved by {actor}" + (f", {len(leave)} left" if leave else ""))
    if signed:
        out.print(f"  signed {close_store.signed(signed)}", soft_wrap=True)


def release(month: session.Month, account: AccountName, actor: session.Actor, reason: Reason) -> None:
    """Let a parked account go on where it was parked."""
    period = session.month_of(month)
    with session.engine() as engine:
        standing = deciding.release(engine, period, account, actor=actor, reason=reason)
    out.print(f"{period.name}: {account} is {standing.state}")


def reopen(month: session.Month, account: AccountName, actor: session.Actor, reason: Reason) -> None:
    """Propose to cut an account's month anew, before its book is closed. Another person approves it."""
    period = session.month_of(month)
    with session.engine() as engine:
        number = deciding.propose_reopening(
            engine, period, account, actor=actor, reason=reason, now=session.clock(None)
        )
    out.print(f"proposal {number}: another person approves it (`tollbook approval approve {number}`)")
