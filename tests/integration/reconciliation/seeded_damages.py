"""Damage to a row and a field that a seed chooses, of a closed month: whatever a row may have happen to it, by kind.

Like `damages.py` drawn up from the rules and the tables alone, but of every row and every field that money hangs on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from reconciliation.close.gates.gate import Gate
from tests.integration.reconciliation.damages import (
    CHUNKS,
    ENTRIES,
    EVENTS,
    FROZEN,
    HOURS,
    INVOICES,
    LINES,
    MINUTES,
    POSTINGS,
    RATED,
    TAXES,
    Damage,
    alter_row,
    delete_row,
    double_row,
    window,
)

Expected = tuple[Gate, str]
"""A gate, and in SQL over the row what it must name."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table that `where` takes in, and what may happen to any of them.

    `columns`: by column (or several) what it becomes, `{n}` a number from 1 to 999, and who must tell of it; `gone`
    and `twice` likewise; `again`: the key of a double.
    """

    table: str
    where: str
    columns: Mapping[str, tuple[str, Expected]]
    gone: Expected | None = None
    twice: Expected | None = None
    again: Mapping[str, Any] = field(default_factory=dict)


def _more(names: Sequence[str], expected: Expected) -> dict[str, tuple[str, Expected]]:
    return {name: (f"{name} + {{n}}", expected) for name in names}


def _other(names: Sequence[str], expected: Expected, value: str = "'x{n}'") -> dict[str, tuple[str, Expected]]:
    return dict.fromkeys(names, (value, expected))


COUNTS: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
KEYS: Final = ("model", "adapter", "region", "tier")
CUSTOMERS: Final = "tenant_id in ('acme', 'beta')"
_EVENT: Final = Gate.R2, "'event ' || request_id || '#'"
_WINDOW: Final = Gate.R2, window("requests")
_CUT_ROW: Final = Gate.R2, "tenant_id || '/cut ' || cut_id || '/row ' || row_no"
_FROZEN: Final = (
    Gate.R2,
    "concat_ws('/', tenant_id, segment_no, version, model, adapter, region, tier, status, fault, usage_source,"
    " 'requests')",
)
_RATED: Final = Gate.R3, "tenant_id || '/2026-10/' || charge_key"
_BILLED: Final = Gate.R5A, "billing_account || '/' || tenant_id || '/' || plan || '/' || version || '/' || charge_key"
_INVOICE: Final = Gate.R5A, "invoice_id::text"
_LINE: Final = Gate.R5A, "tenant_id || '/' || plan || '/' || version || '/' || charge_key"
_ACCOUNT: Final = (
    Gate.R4,
    "(select code || '/' || subledger || '/' from ledger.accounts as a where a.account_id = r.account_id)",
)

ROWS: Final = (
    Rows(EVENTS, CUSTOMERS, {
        **_more(("input_tokens", "output_tokens", "gpu_us", "attempt"), _EVENT),
        **_other((*KEYS, "fault", "status", "usage_source"), _EVENT),
        "cache_hit_tokens": ("cache_hit_tokens - 1", _EVENT),
        "completed_at": ("completed_at - {n} * interval '1 second'", _EVENT),
        "tenant_id": ("case tenant_id when 'acme' then 'beta' else 'acme' end", _EVENT),
        "purpose": ("'x{n}'", _EVENT),
        "raw": ("raw || '!'::bytea", _EVENT),
    }, gone=(Gate.R1, "source || '@' || position || '/event'"), twice=_EVENT),
    *(
        Rows(table, CUSTOMERS, {
            **{name: (f"{name} + {{n}}", (Gate.R2, window(name))) for name in COUNTS},
            **_other(("adapter", "region", "tier", "fault", "status", "usage_source"), _WINDOW),
        }, gone=_WINDOW, twice=(Gate.R2, window("requests", region="'again'")), again={"region": "again"})
        for table in (HOURS, MINUTES)
    ),
    Rows(FROZEN, CUSTOMERS, {
        **_more(COUNTS, _CUT_ROW), **_other((*KEYS, "fault", "status", "usage_source", "version"), _CUT_ROW),
    }, gone=_FROZEN),
    Rows(RATED, f"{CUSTOMERS} and amount <> 0", {
        "amount": ("amount + {n} * 0.000000000001", _RATED), "quantity": ("quantity + {n}", _RATED),
        "charge_key": ("'x{n}'", _RATED), "tax_group": ("'x{n}'", _RATED),
        "unit_price": ("unit_price * (1 + {n})", _BILLED),
        "billing_account": ("case billing_account when 'acme' then 'beta' else 'acme' end", _BILLED),
    }, gone=_RATED, twice=_BILLED, again={"rated_line_no": 9999, "rating_no": 9}),
    Rows(POSTINGS, "entry_id in (select entry_id from ledger.journal_entries where kind in ('accrual', 'invoice'))"
         " and account_id in (select account_id from ledger.accounts where code in (1100, 1150, 2200))", {
        "amount": ("amount + {n} * 0.01", _ACCOUNT),
    }, gone=_ACCOUNT, twice=_ACCOUNT, again={"seq": 99}),
    Rows(ENTRIES, "kind in ('accrual', 'invoice')", {
        **_other(("source",), (Gate.R10, "legal_entity"), "source || '{{\"x\": {n}}}'"),
        "effective_at": ("effective_at + {n} * interval '1 second'", (Gate.R10, "legal_entity")),
        "input_hash": ("sha256(input_hash)", (Gate.R10, "legal_entity")),
    }),
    Rows(INVOICES, "kind = 'usage'", {
        "(net_minor, total_minor)": ("(net_minor + {n}, total_minor + {n})", _INVOICE),
        "(tax_minor, total_minor)": ("(tax_minor + {n}, total_minor + {n})", _INVOICE),
        "exact_total": ("exact_total + {n}", _INVOICE), "amount_due_minor": ("amount_due_minor + {n}", _INVOICE),
        "lines_hash": ("md5(lines_hash)", _INVOICE),
        "rounding": ("rounding + {n}", (Gate.R8, "invoice_id::text")),
        "number": ("number || '{n}'", (
            Gate.R9,
            "legal_entity || '/invoice/' || (select number from ledger.issued_numbers as n"
            " where n.invoice_id = r.invoice_id)",
        )),
        "state": ("'void'", (Gate.R5B, "stripe_invoice_id")),
        "stripe_customer_id": ("'cus_{n}'", (Gate.R5B, "billing_account || '/customer'")),
    }),
    Rows(LINES, f"{CUSTOMERS} and amount_exact <> 0 and metric in ('input', 'cached_input', 'output')", {
        "amount_minor": ("amount_minor + {n}", _INVOICE), "amount_exact": ("amount_exact + {n}", _INVOICE),
        "charge_key": ("'x{n}'", _LINE), "unit_price": ("unit_price + {n}", _LINE),
        "tax_group": ("'x{n}'", _INVOICE), "quantity": ("quantity + {n}", _INVOICE),
    }, gone=_INVOICE, twice=_LINE, again={"line_key": "again"}),
    Rows(TAXES, "tax_minor <> 0", {"tax_minor": ("tax_minor + {n}", _INVOICE)}, gone=_INVOICE),
    Rows(CHUNKS, "applied > 0 and next_position = first_position + 4", {},
         gone=(Gate.R1, "source || '@' || next_position"),
         twice=(Gate.R1, "source || '@1000'"), again={"first_position": 1000, "next_position": 1004}),
)  # fmt: skip


def drawn(opened: Connection, seed: int, count: int) -> Iterator[Damage]:
    """So many damages by a seed: kinds of damage in turn, each to any of its rows, by any amount."""
    dice = random.Random(seed)
    kinds = [(rows, kind) for rows in ROWS for kind in _kinds(rows)]
    chosen = [kind for _ in range(1 + count // len(kinds)) for kind in dice.sample(kinds, len(kinds))][:count]
    for rows, (operation, column, (gate, names)) in chosen:
        found = opened.exec_driver_sql(
            f"select r.tableoid::int8, r.ctid::text, {names} from {rows.table} as r where {rows.where} order by 1, 2"
        ).all()
        of, at, named = dice.choice(found)
        row = f"(tableoid, ctid) = ({of}, '{at}'::tid)"
        why = f"seed {seed}"
        if operation == "delete":
            yield delete_row(rows.table, row, why, gate, named)
        elif operation == "double":
            yield double_row(rows.table, row, dict(rows.again), why, gate, named)
        else:
            value = rows.columns[column][0].format(n=dice.randint(1, 999))
            yield alter_row(rows.table, row, column, value, why, gate, named)


def _kinds(rows: Rows) -> Iterator[tuple[str, str, Expected]]:
    yield from (("alter", column, expected) for column, (_, expected) in rows.columns.items())
    if rows.gone:
        yield "delete", "", rows.gone
    if rows.twice:
        yield "double", "", rows.twice
