"""What gates found, in the database: appended where it is not what was found last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing import tables
from reconciliation.close.gates.gate import Gate, Result, of_documents


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A gate's result as it was found at a time."""

    result: Result
    at: datetime


def keep(connection: Connection, month: str, found: Mapping[Gate, Result]) -> None:
    """Append results that differ from what was found last."""
    last = latest(connection, month)
    for gate, result in found.items():
        documents = [each.document() for each in result.found]
        known = last.get(gate)
        if known is None or (known.result.compared, [e.document() for e in known.result.found]) != (
            result.compared, documents
        ):  # fmt: skip
            connection.execute(
                tables.close_gate_results.insert().values(
                    month=month, gate=gate.value, compared=result.compared, differences=documents
                )
            )


def latest(connection: Connection, month: str) -> dict[Gate, StoredResult]:
    """What each gate found last, in the gates' order."""
    table = tables.close_gate_results
    query = (
        select(table)
        .where(table.c.month == month)
        .ext(distinct_on(table.c.gate))
        .order_by(table.c.gate, table.c.result_no.desc())
    )
    found = {
        Gate(row.gate): StoredResult(Result(Gate(row.gate), row.compared, of_documents(row.differences)), row.at)
        for row in connection.execute(query)
    }
    return {gate: found[gate] for gate in Gate if gate in found}
