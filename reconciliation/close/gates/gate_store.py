"""What gates found, in the database: appended where it is not what was found last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing import tables
from billing.database import add_rows
from reconciliation.close.gates.gate import Gate, Result, of_documents


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A gate's result as it was found at a time."""

    result: Result
    at: datetime


def keep(connection: Connection, month: str, found: Mapping[Gate, Result]) -> None:
    """Append results that differ from what was found last; of what is asked in parts, part by part."""
    last = {key: (row.compared, row.differences, row.shown) for key, row in _stored(connection, month).items()}
    rows = []
    for gate, result in found.items():
        for part, of_part in _in_parts(result).items():
            said = of_part.compared, [each.document() for each in of_part.found], [dict(row) for row in of_part.shown]
            if last.get((gate, part)) != said:
                named = {"month": month, "gate": gate.value, "part": part}
                rows.append(named | {"compared": said[0], "differences": said[1], "shown": said[2]})
    add_rows(connection, tables.close_gate_results, rows)


def _in_parts(result: Result) -> dict[str, Result]:
    """A result by its parts; '' is what is of none."""
    compared = result.compared - sum(part.compared for part in result.parts.values())
    of_parts = {each for part in result.parts.values() for each in part.found}
    found = tuple(each for each in result.found if each not in of_parts)
    rest = Result(result.gate, compared, found, shown=result.shown)
    return {**result.parts, **({"": rest} if rest.compared or rest.found or not result.parts else {})}


def latest(connection: Connection, month: str) -> dict[Gate, StoredResult]:
    """What each gate found last, in the gates' order: of each tenant's period by its last cut, together."""
    parts: dict[Gate, dict[str, tuple[int, Row[Any]]]] = defaultdict(dict)
    for (gate, part), row in _stored(connection, month).items():
        of, _, cut = part.rpartition("/cut ")
        last = parts[gate].get(of)
        if last is None or int(cut or 0) >= last[0]:
            parts[gate][of] = int(cut or 0), row
    found = {}
    for gate, listed in parts.items():
        rows = [row for _, (_, row) in sorted(listed.items())]
        differences = tuple(dict.fromkeys(each for row in rows for each in of_documents(row.differences)))
        shown = tuple(each for row in rows for each in row.shown)
        result = Result(gate, sum(row.compared for row in rows), differences, shown=shown)
        found[gate] = StoredResult(result, max(row.at for row in rows))
    return {gate: found[gate] for gate in Gate if gate in found}


def _stored(connection: Connection, month: str) -> dict[tuple[Gate, str], Row[Any]]:
    """By gate and part what was stored last."""
    table = tables.close_gate_results
    query = (
        select(table)
        .where(table.c.month == month)
        .ext(distinct_on(table.c.gate, table.c.part))
        .order_by(table.c.gate, table.c.part, table.c.result_no.desc())
    )
    return {(Gate(row.gate), row.part): row for row in connection.execute(query)}
