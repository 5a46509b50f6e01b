"""The readable summary of a pack: one page of what its content says, as HTML with plots, and the same as PDF."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from billing.ledger.journal import ACCOUNTS
from billing.money import ZERO, exactly, plain
from reconciliation.close.evidence import registers
from reconciliation.close.evidence.registers import Row
from reconciliation.close.gates.gate import TITLES, Gate

FOLDER: Final = "renderings"
PAGE, PRINTED = f"{FOLDER}/summary.html", f"{FOLDER}/summary.pdf"
BALANCES: Final = "trial_balance.csv"
READ: Final = ("accounts.jsonl", "gates.jsonl")
"""The files of the content, beside its tables, that the page is made of."""
LARGEST: Final = 10
"""Bars of a plot; the rest is one."""
BAR_WIDTH: Final = 300
_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
COUNTED: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a plot: its name, its amount as text, its width in units of the plot."""

    name: str
    amount: str
    width: int


def page_of(month: str, files: Mapping[str, bytes], accounts: Sequence[Row], gates: Iterable[Row]) -> str:
    """The page. The same content gives the same bytes. `files` has the content's tables by name."""
    lines = [line for account in accounts for line in _own(account, "rated_lines")]
    used = Counter[str]()
    for row in (row for account in accounts for row in _own(account, "usage")):
        used.update({name: row[name] for name in COUNTED})
    tables = {
        name: list(csv.DictReader(data.decode().splitlines(keepends=True)))
        for name, data in files.items()
        if name == BALANCES or name.startswith(registers.FOLDER)
    }
    documents = [document for account in accounts for document in account["documents"]]
    titles = {str(code): account.title for code, account in ACCOUNTS.items()}
    return _TEMPLATES.get_template("summary.html.j2").render(
        month=month,
        accounts=len(accounts),
        tenants=len({line["tenant_id"] for line in lines}),
        used=used,
        amounts=_summed((line["currency"], line["amount"]) for line in lines),
        accrued=_summed(
            (line["currency"], line["amount"])
            for account in accounts
            for line in _own(account, "rated_lines", of="accrued")
        ),
        invoices=_invoices(documents),
        plots=[
            (f"{title}, {currency}", bars)
            for title, name in (("Rated by tenant", "tenant_id"), ("Rated by model", "model"))
            for currency, bars in _bars(lines, name).items()
        ],
        gates=[_gate(each) for each in gates],
        registers=[(name.removeprefix(f"{registers.FOLDER}/"), len(tables[name])) for name in sorted(tables)
                   if name.startswith(registers.FOLDER)],
        numbers=_numbers(tables[registers.NUMBERS_FILE]),
        balances=[row | {"name": titles.get(row["code"], row["code"])} for row in tables[BALANCES]],
    )  # fmt: skip


def words(page: str) -> list[str]:
    """What a page says, without how it looks: its text, piece by piece."""
    reader = _Words()
    reader.feed(page)
    return reader.found


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._styled = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._styled = tag == "style"
        self.found += [f"bar {value}" for name, value in attrs if tag == "rect" and name == "width"]

    def handle_endtag(self, tag: str) -> None:
        self._styled = False

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._styled:
            self.found.append(" ".join(data.split()))


def _own(account: Row, name: str, of: str = "tenants") -> list[Row]:
    """Rows of tenants that this account pays for: one that several pay for in turn is with each of them as a whole."""
    return [
        row for tenant in account.get(of, ()) for row in tenant[name]
        if row["billing_account"] == account["billing_account"]
    ]  # fmt: skip


def _summed(amounts: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for key, amount in amounts:
            found[key] += Decimal(amount)
    return {key: plain(amount) for key, amount in sorted(found.items())}


def _bars(lines: Iterable[Row], name: str) -> dict[str, list[Bar]]:
    """By currency the largest amounts, and the rest as one; of what no model is named for, the words for it."""
    by_currency: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in lines:
        by_currency[line["currency"]].append((line[name] or "of no model", line["amount"]))
    found = {}
    for currency, amounts in sorted(by_currency.items()):
        ordered = sorted(_summed(amounts).items(), key=lambda item: (-Decimal(item[1]), item[0]))
        rest = _summed(("others", amount) for _, amount in ordered[LARGEST:])
        shown = ordered[:LARGEST] + list(rest.items())
        most = max(Decimal(amount) for _, amount in shown)
        found[currency] = [
            Bar(key, amount, int(max(Decimal(amount), ZERO) * BAR_WIDTH / most) if most > 0 else 0)
            for key, amount in shown
        ]
    return found


def _invoices(documents: Iterable[Row]) -> list[dict[str, Any]]:
    """Approved documents by kind and currency: how many, and their sums in minor units."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for document in documents:
        sums = {name: document[name] for name in ("net", "total", "amount_due")}
        found[document["kind"], document["currency"]].update({"count": 1, **sums})
    return [{"kind": kind, "currency": currency, **sums} for (kind, currency), sums in sorted(found.items())]


def _gate(found: Row) -> dict[str, Any]:
    waived = [each for each in found["differences"] if each["waived_by"]]
    return {
        "gate": found["gate"], "title": TITLES[Gate(found["gate"])], "compared": found["compared"],
        "open": len(found["differences"]) - len(waived), "waived": len(waived),
        "by": ", ".join(sorted({each["waived_by"] for each in waived})),
    }  # fmt: skip


def _numbers(rows: Iterable[Row]) -> list[dict[str, Any]]:
    series: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        series[row["legal_entity"], row["series"]].append(row)
    return [
        {"legal_entity": entity, "series": name, "first": listed[0]["written"], "last": listed[-1]["written"],
         "count": len(listed)}
        for (entity, name), listed in sorted(series.items())
    ]  # fmt: skip
