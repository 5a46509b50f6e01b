"""Invoices on paper: HTML and UBL against golden texts, PDF by the text that can be read out of it.

`TOLLBOOK_WRITE_GOLDEN=1 pytest …` writes the golden texts anew: look at them as a page before they are committed.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
from collections.abc import Callable
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pypdf
import pytest

from billing.commands.show_invoices import document_of
from billing.errors import DocumentRefused
from billing.invoicing.invoice_check import check_document
from billing.invoicing.invoice_file import InvoiceFile, invoice_file
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.parties import Party
from billing.invoicing.party_store import Sides
from billing.money import currency, from_minor
from billing.plans.price_plans import Metric
from billing.presentation.pages import html_of, pdf_of
from billing.presentation.ubl import CBC, ubl_of
from billing.presentation.view import view_of
from billing.usage.usage_digest_store import UsageCounted
from tests.billing_builders import OCTOBER, bill, charge, stored, usage, version
from tests.ubl_rules import broken_rules
from tests.unit.billing.test_usage_digest import counted

GOLDEN = Path(__file__).parent / "papers"
SELLER = Party(
    "Tollbook Łódź GmbH & Co. KG", street="Unter den Linden 1", postal_code="10117", city="Berlin", country="DE",
    tax_id="DE123456789", registration="HRB 12345 B", email="billing@tollbook.example",
    iban="DE89370400440532013000", bic="COBADEFFXXX",
)  # fmt: skip
BUYER = Party(
    "Acme <Inc> & Söhne", street="1 Main Street", street_2="Accounts payable", postal_code="95014", city="Cupertino",
    region="California", country="US", tax_id="US12-3456789", purchase_order="PO-2026-17", reference="cost centre 4711",
)  # fmt: skip
ISSUED: dict[str, Any] = {
    "state": InvoiceState.FINALIZED, "number": "INV-000123", "issue_date": date(2026, 11, 2),
    "due_date": date(2026, 12, 2),
}  # fmt: skip


def document(code: str = "USD", models: int = 2, **changed: Any) -> dict[str, Any]:
    """An issued invoice over some models in a currency, without tax."""
    names = [f"meta-llama/Llama-3.3-70B-Instruct-{n}" for n in range(models)]
    charges = [charge(f"in{n}", Metric.INPUT, "0.0000005", model=name) for n, name in enumerate(names)]
    charges += [charge(f"gpu{n}", Metric.GPU_SECOND, "0.0011", model=name) for n, name in enumerate(names)]
    used = [usage(model=name, input_tokens=123_456_789 * (n + 1), gpu_us=90_500_000) for n, name in enumerate(names)]
    invoice = bill(version(*charges, currency=code), used, currency=code)
    empty = UsageCounted((counted(tenant_id="tenant_1"),))
    made: dict[str, Any] = document_of(stored(invoice, **(ISSUED | changed)), Sides(SELLER, BUYER, 30), empty)
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def taxed(mode: str = "exclusive", rate: str = "0.19") -> dict[str, Any]:
    """The same with tax on all of it."""
    made = document()
    tax = round(made["net"] * Decimal(rate))
    row = {"tax_group": "std", "mode": mode, "rate": rate, "base": made["net"], "amount": tax}
    return made | {"tax_mode": mode, "tax": [row], "total": made["net"] + tax, "amount_due": made["net"] + tax}


def with_lines(made: dict[str, Any], *changes: dict[str, Any]) -> InvoiceFile:
    """The document with further lines like its last one, its sums brought up to date."""
    made = copy.deepcopy(made)
    for change in changes:
        made["lines"].append(made["lines"][-1] | change)
    made["net"] = made["total"] = made["amount_due"] = sum(line["amount"] for line in made["lines"])
    return invoice_file(made)


FEE = {"line_key": "base.fee", "kind": "fee", "charge": "base", "token_class": "", "model": "", "quantity": "1",
       "unit_price": None, "counted": "0", "amount_exact": "49", "amount": 4900}  # fmt: skip
DISCOUNT = FEE | {"line_key": "off", "kind": "invoice_discount", "amount_exact": "-12.5", "amount": -1250}


def golden(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("TOLLBOOK_WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def page_text(invoice: InvoiceFile) -> str:
    """What a reader finds in the PDF, with single spaces."""
    pages = pypdf.PdfReader(io.BytesIO(pdf(invoice))).pages
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pages))


def pdf(invoice: InvoiceFile) -> bytes:
    """The PDF; without Pango there is none."""
    try:
        return pdf_of(invoice)
    except DocumentRefused as error:
        pytest.skip(str(error))


CASES: dict[str, Callable[[], InvoiceFile]] = {
    "taxed": lambda: invoice_file(taxed()),
    "not_subject": lambda: with_lines(document(), FEE, DISCOUNT),
    "reverse_charge": lambda: invoice_file(taxed("reverse_charge", "0")),
    "exempt": lambda: invoice_file(taxed("exempt", "0")),
    "three_decimals": lambda: invoice_file(document("KWD")),
    "no_decimals": lambda: invoice_file(document("JPY")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_as_it_was_looked_at(name: str) -> None:
    golden(f"{name}.html", html_of(CASES[name]()))


@pytest.mark.parametrize("name", CASES)
def test_the_norm_s_rules_hold_and_its_amounts_are_the_invoice_s(name: str) -> None:
    invoice = CASES[name]()
    text = ubl_of(invoice)
    golden(f"{name}.xml", text)
    assert broken_rules(text) == []
    amounts = re.findall(r"<cbc:(\w+) currencyID=\"\w+\">([-\d.]+)<", text)
    money = currency(invoice.currency, OCTOBER.end.date())
    for name, minor in (("TaxExclusiveAmount", invoice.net), ("TaxInclusiveAmount", invoice.total),
                        ("PayableAmount", invoice.amount_due)):  # fmt: skip
        assert [Decimal(value) for key, value in amounts if key == name] == [from_minor(minor, money)]


@pytest.mark.parametrize("gross", [*range(-2, 24), 59, 123_457])
def test_lines_that_contain_tax_are_told_net_and_add_up(gross: int) -> None:
    made = taxed("inclusive", "0.19")
    amounts = [gross, 2 * gross, -gross + 1, *(0 for _ in made["lines"][3:])][: len(made["lines"])]
    made["lines"] = [line | {"amount": amount} for line, amount in zip(made["lines"], amounts, strict=True)]
    total = sum(amounts)
    tax = int((Decimal(total) * 19 / 119).quantize(Decimal(1), ROUND_HALF_UP))
    made["tax"] = [made["tax"][0] | {"base": total - tax, "amount": tax}]
    made |= {"net": total - tax, "total": total, "amount_due": total, "credits": [], "carried": []}
    text = ubl_of(invoice_file(made))
    assert broken_rules(text) == []
    assert re.findall(r"<cbc:PayableAmount[^>]*>([-\d.]+)<", text) == [f"{Decimal(total) / 100:.2f}"]


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (r"(<cbc:PayableAmount[^>]*>)", r"\g<1>9", "BR-CO-16"),
        (r"(<cbc:TaxInclusiveAmount[^>]*>)", r"\g<1>9", "BR-CO-15"),
        (r"(<cbc:TaxExclusiveAmount[^>]*>)", r"\g<1>9", "BR-CO-13"),
        (r"(</cac:Price>\s*</cac:InvoiceLine>.*?<cbc:LineExtensionAmount[^>]*>)", r"\g<1>9", "BR-CO-10"),
        (r"(<cac:TaxTotal>\s*<cbc:TaxAmount[^>]*>)", r"\g<1>9", "BR-CO-14"),
        (r"(<cbc:TaxableAmount[^>]*>)", r"\g<1>9", "BR-S-08"),
        (r"<cbc:Percent>19<", "<cbc:Percent>20<", "BR-CO-17"),
        (r"<cbc:ID>INV-000123</cbc:ID>\s*<cbc:IssueDate>", "<cbc:IssueDate>", "BR-02"),
        (r"<cbc:IssueDate>[^<]*</cbc:IssueDate>", "", "BR-03"),
        (r"<cbc:IdentificationCode>DE</cbc:IdentificationCode>", "", "BR-09"),
        (r"<cbc:IdentificationCode>US</cbc:IdentificationCode>", "", "BR-11"),
        (r"(<cbc:PriceAmount[^>]*>)", r"\g<1>-", "BR-27"),
        (r"<cac:Price>.*?</cac:Price>", "", "BR-26"),
        (r"<cbc:ID>2</cbc:ID>", "<cbc:ID>1</cbc:ID>", "BR-21"),
        (r"(<cbc:PayableAmount[^>]*>\d+\.\d\d)", r"\g<1>1", f"BR-DEC: {{{CBC}}}PayableAmount"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named(old: str, new: str, rule: str) -> None:
    text = ubl_of(invoice_file(taxed()))
    broken, changes = re.subn(old, new, text, count=1, flags=re.DOTALL)
    assert changes == 1
    assert rule in broken_rules(broken)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"number": None}, "no number"),
        ({"seller": {"country": ""}}, "seller.country"),
        ({"buyer": {"country": ""}}, "buyer.country"),
        ({"seller": {"tax_id": "", "registration": ""}}, "BR-CO-26"),
        ({"seller": {"tax_id": ""}}, "BR-S-02"),
        ({"tax": {"mode": "reverse_charge"}, "buyer": {"tax_id": ""}}, "buyer.tax_id"),
        ({"lines": []}, "BR-16"),
    ],
)
def test_what_the_norm_asks_for_and_is_not_known_is_named(changed: dict[str, Any], named: str) -> None:
    made = taxed()
    for name, value in changed.items():
        if name == "tax":
            made["tax"][0] |= value
        else:
            made[name] = made[name] | value if isinstance(value, dict) else value
    with pytest.raises(DocumentRefused, match=named):
        ubl_of(invoice_file(made))


def test_the_pdf_says_what_finance_looks_for_and_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1793500000")
    invoice = invoice_file(taxed() | {"credits": [{"credit_id": "g-1", "amount": 1000, "left": "90.0000005"}]})
    text = page_text(invoice)
    for expected in (
        "Invoice INV-000123", "2 Nov 2026", "2 Dec 2026", "30 days net", "PO-2026-17", "cost centre 4711",
        "1 Oct 2026 – 31 Oct 2026", "Tollbook Łódź GmbH & Co. KG", "DE123456789", "Acme <Inc> & Söhne", "US12-3456789",
        "123,456,789", "0.5 per 1M", "61.73", "Tax 19 % on 185.38", "35.22", "220.60", "Paid by credit g-1",
        "\u221210.00", "Credit g-1: 10.00 used here, 90.0000005 USD left.",
        "IBAN DE89370400440532013000",
    ):  # fmt: skip
        assert expected in text
    assert pdf(invoice) == pdf(invoice)


def test_many_lines_go_over_pages_with_their_heads() -> None:
    pages = pypdf.PdfReader(io.BytesIO(pdf(invoice_file(document(models=40))))).pages
    assert len(pages) > 3
    assert all("Amount (USD)" in page.extract_text() for page in pages[:-1])
    assert f"Page 2 of {len(pages)}" in pages[1].extract_text()


def test_nothing_negative_and_three_decimals_are_written_out() -> None:
    empty = invoice_file(
        document() | {"lines": [], "net": 0, "total": 0, "amount_due": 0, "state": "zero", "number": None}
    )
    assert "No charges in this period." in html_of(empty)
    assert (view_of(empty).title, view_of(empty).warning) == ("Statement", "Nothing is due")
    rows = view_of(with_lines(document(), FEE, DISCOUNT)).groups[0].rows
    assert [row.what for row in rows[-2:]] == ["Base · fee", "Base · discount on the invoice"]
    assert [row.amount for row in rows[-2:]] == ["49.00", "\u221212.50"]
    assert view_of(invoice_file(document("KWD"))).totals[-1].amount == "KWD 185.380"
    assert view_of(invoice_file(document("JPY"))).totals[-1].amount == "JPY 185"


def test_what_is_no_invoice_says_so() -> None:
    for state, number in (("preview", None), ("draft", None), ("void", "INV-1")):
        assert view_of(invoice_file(document() | {"state": state, "number": number})).warning


def test_names_cannot_write_into_the_page() -> None:
    made = document()
    made["buyer"]["name"] = made["lines"][0]["model"] = "<img src=x onerror=alert(1)>"
    assert "<img" not in html_of(invoice_file(made))


@pytest.mark.parametrize("made", [taxed(), taxed("reverse_charge", "0"), document("KWD")])
def test_the_documents_here_add_up(made: dict[str, Any]) -> None:
    assert check_document(invoice_file(made | {"usage": None, "usage_digest": None})) == []


def test_tax_that_is_not_the_rate_s_is_found() -> None:
    made = taxed() | {"usage": None, "usage_digest": None}
    made["tax"][0]["amount"] += 1
    made["total"] += 1
    made["amount_due"] += 1
    assert [found.what for found in check_document(invoice_file(made))] == ["tax group std: amount"]
