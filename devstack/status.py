"""What runs, where, and how much it keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from devstack import ports
from devstack.service import Service
from devstack.stack import Stack, masked


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """`state`: running, not answering, stopped, never started, elsewhere."""

    service: str
    state: str
    pid: int | None
    address: str | None
    data_bytes: int
    data: str
    log: str


def status(stack: Stack) -> list[ServiceStatus]:
    elsewhere = stack.elsewhere()
    return [_of(service, elsewhere.get(service.name)) for service in stack.services]


def as_json(rows: Sequence[ServiceStatus]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def as_table(rows: Sequence[ServiceStatus]) -> str:
    titles = ("service", "state", "pid", "address", "data", "log")
    cells = [titles] + [
        (
            row.service,
            row.state,
            str(row.pid or "-"),
            (row.address or "-").partition("?")[0],
            _size(row.data_bytes),
            row.log,
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _of(service: Service, elsewhere: str | None) -> ServiceStatus:
    process = service.running()
    if elsewhere:
        state = "elsewhere"
    elif process is not None:
        state = "running" if service.port and ports.answers(service.port) else "not answering"
    else:
        state = "stopped" if service.data.exists() else "never started"
    address = masked(elsewhere) if elsewhere else (service.address() if service.port else None)
    return ServiceStatus(
        service.name,
        state,
        process.pid if process else None,
        address,
        service.data_size(),
        str(service.data),
        str(service.log),
    )


def _size(amount: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount} B"
