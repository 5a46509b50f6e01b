"""`tollbook dev twin`: look into the local Stripe twin, let things go wrong in it, move its clock."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final

import typer

from devstack.stripe_twin.faults import FaultKind
from devstack.twin_control import ask

twin_app = typer.Typer(no_args_is_help=True, help="The local Stripe twin: its faults, its clock, what it has.")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d+)([smhd])")


@twin_app.command()
def fault(
    kind: Annotated[FaultKind, typer.Argument(help="What goes wrong.")],
    path: Annotated[str, typer.Option(help="Of requests to these addresses, e.g. '/v1/invoices/*/finalize'.")] = "*",
    method: Annotated[str, typer.Option(help="Of requests with this method.")] = "POST",
    times: Annotated[int, typer.Option(min=1, help="So many of them.")] = 1,
    skip: Annotated[int, typer.Option(min=0, help="After so many that go well.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Wait so long first.")] = 0.0,
    probability: Annotated[float, typer.Option(help="Only this share of them, at random by --seed.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Where the chance begins.")] = 0,
    code: Annotated[str | None, typer.Option(help="The error code of a refused_400, e.g. account_closed.")] = None,
) -> None:
    """Let requests to the twin go wrong."""
    given = {"kind": kind.value, "path": path, "method": method, "times": times, "skip": skip, "code": code}
    _print(ask("POST", "faults", given | {"seconds": seconds, "probability": probability, "seed": seed}))


@twin_app.command()
def webhooks(
    lose: Annotated[float, typer.Option(min=0, max=1, help="Share of deliveries that are lost.")] = 0.0,
    repeat: Annotated[float, typer.Option(min=0, max=1, help="Share that comes twice.")] = 0.0,
    delay: Annotated[
        float, typer.Option(min=0, help="Each waits up to so many seconds: they come in any order.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Where the chance begins.")] = 0,
) -> None:
    """Let webhooks be lost, repeated, late; without options they come well again."""
    _print(ask("POST", "webhooks", {"lose": lose, "repeat": repeat, "delay_s": delay, "seed": seed}))


@twin_app.command()
def faults(clear: Annotated[bool, typer.Option("--clear", help="Forget all of them.")] = False) -> None:
    """The faults that wait for requests, and how many each has met."""
    _print(ask("DELETE" if clear else "GET", "faults"))


@twin_app.command()
def clock(
    advance: Annotated[str | None, typer.Option(help="Let so much time pass, e.g. 90s, 24h, 3d.")] = None,
) -> None:
    """The twin's time; it can be moved forward."""
    if advance is None:
        _print(ask("GET", "clock"))
        return
    found = _DURATION.fullmatch(advance)
    if found is None:
        raise typer.BadParameter(f"{advance!r} is no duration such as 90s, 30m, 24h or 3d")
    _print(ask("POST", "clock", {"advance": int(found[1]) * _UNITS[found[2]]}))


@twin_app.command()
def limits(
    all_per_s: Annotated[float | None, typer.Option("--all", help="Requests a second, of all endpoints.")] = None,
    endpoint_per_s: Annotated[float | None, typer.Option("--endpoint", help="And of each one.")] = None,
    none: Annotated[bool, typer.Option("--none", help="No limits.")] = False,
) -> None:
    """The rate limits that the twin holds its callers to; none unless they are set."""
    if none:
        all_per_s = endpoint_per_s = None
    elif (all_per_s is None) != (endpoint_per_s is None):
        raise typer.BadParameter("--all and --endpoint go together")
    given = {"all_per_s": all_per_s, "endpoint_per_s": endpoint_per_s}
    _print(ask("POST", "limits", given) if none or all_per_s is not None else ask("GET", "limits"))


@twin_app.command()
def show(
    kind: Annotated[str, typer.Argument(help="An object's type: invoice, customer, event, … or `requests`.")],
    object_id: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many, the newest first.")] = 10,
) -> None:
    """What the twin has, or what it was asked."""
    if kind == "requests":
        wanted = f"&id={object_id}" if object_id else ""
        _print(ask("GET", f"requests?limit={limit}{wanted}"))
        return
    _print(ask("GET", f"objects/{kind}{f'/{object_id}' if object_id else ''}?limit={limit}"))


def _print(found: Any) -> None:
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
