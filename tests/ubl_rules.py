"""Rules of EN 16931 that an invoice in UBL must keep, checked on the finished text, apart from how it was made.

The sums (BR-CO-10 to BR-CO-17, BR-45), the terms that must be there, decimals and signs. Values in, values out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Final
from xml.etree import ElementTree

from billing.money import decimals_of, exactly, total
from billing.presentation.ubl import CAC, CBC, COMMERCIAL_INVOICE, CREDIT, Form

_NAMES: Final = {"cac": CAC, "cbc": CBC}
CENT: Final = Decimal("0.01")
MANDATORY: Final = {
    "BR-01": "cbc:CustomizationID",
    "BR-02": "cbc:ID",
    "BR-03": "cbc:IssueDate",
    "BR-05": "cbc:DocumentCurrencyCode",
    "BR-06": "cac:AccountingSupplierParty/cac:Party/cac:PartyLegalEntity/cbc:RegistrationName",
    "BR-07": "cac:AccountingCustomerParty/cac:Party/cac:PartyLegalEntity/cbc:RegistrationName",
    "BR-09": "cac:AccountingSupplierParty/cac:Party/cac:PostalAddress/cac:Country/cbc:IdentificationCode",
    "BR-11": "cac:AccountingCustomerParty/cac:Party/cac:PostalAddress/cac:Country/cbc:IdentificationCode",
}


def broken_rules(text: str) -> list[str]:
    """The rules that an invoice breaks, each by its name in the norm; empty where it keeps them."""
    root = ElementTree.fromstring(text)
    return [*_terms(root), *_sums(root), *_taxes(root), *_lines(root)]


def _terms(root: ElementTree.Element) -> Iterator[str]:
    name = _form(root).name
    terms = MANDATORY | {"BR-04": f"cbc:{name}TypeCode", "BR-16": f"cac:{name}Line"}
    yield from (rule for rule, path in terms.items() if root.find(path, _NAMES) is None)
    if _text(root, f"cbc:{name}TypeCode") != _form(root).code:
        yield f"the type of a {name}"
    if name == CREDIT.name and not _text(root, "cac:BillingReference/cac:InvoiceDocumentReference/cbc:ID"):
        yield "BR-55"
    seller = "cac:AccountingSupplierParty/cac:Party/"
    if not any(_text(root, f"{seller}cac:{part}/cbc:CompanyID") for part in ("PartyTaxScheme", "PartyLegalEntity")):
        yield "BR-CO-26"
    if _amount(root, "cac:LegalMonetaryTotal/cbc:PayableAmount") > 0 and not (
        _text(root, "cbc:DueDate") or _text(root, "cac:PaymentTerms/cbc:Note")
    ):
        yield "BR-CO-25"
    for amount in root.iter():
        if "currencyID" in amount.attrib:
            if amount.attrib["currencyID"] != _text(root, "cbc:DocumentCurrencyCode"):
                yield f"another currency than BT-5: {amount.tag}"
            if not amount.tag.endswith("PriceAmount") and decimals_of(Decimal(amount.text or "0")) > 2:
                yield f"BR-DEC: {amount.tag}"


def _sums(root: ElementTree.Element) -> Iterator[str]:
    def sums(name: str) -> Decimal:
        return _amount(root, f"cac:LegalMonetaryTotal/cbc:{name}")

    lines = total(_amount(line, "cbc:LineExtensionAmount") for line in _lines_of(root))
    tax = _amount(root, "cac:TaxTotal/cbc:TaxAmount")
    with exactly():
        if sums("LineExtensionAmount") != lines:
            yield "BR-CO-10"
        if sums("TaxExclusiveAmount") != lines - sums("AllowanceTotalAmount") + sums("ChargeTotalAmount"):
            yield "BR-CO-13"
        if sums("TaxInclusiveAmount") != sums("TaxExclusiveAmount") + tax:
            yield "BR-CO-15"
        if sums("PayableAmount") != sums("TaxInclusiveAmount") - sums("PrepaidAmount") + sums("PayableRoundingAmount"):
            yield "BR-CO-16"


def _taxes(root: ElementTree.Element) -> Iterator[str]:
    by_category: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for line in _lines_of(root):
        key = _category(line, "cac:Item/cac:ClassifiedTaxCategory")
        with exactly():
            by_category[key] += _amount(line, "cbc:LineExtensionAmount")
    subtotals = root.findall("cac:TaxTotal/cac:TaxSubtotal", _NAMES)
    if not subtotals:
        yield "BR-CO-18"
    if _amount(root, "cac:TaxTotal/cbc:TaxAmount") != total(_amount(s, "cbc:TaxAmount") for s in subtotals):
        yield "BR-CO-14"
    seen = [_category(subtotal, "cac:TaxCategory") for subtotal in subtotals]
    if sorted(seen) != sorted(by_category):
        yield "one subtotal for each category and rate of the lines"
    for key, subtotal in zip(seen, subtotals, strict=True):
        base, tax = _amount(subtotal, "cbc:TaxableAmount"), _amount(subtotal, "cbc:TaxAmount")
        if base != by_category.get(key):
            yield f"BR-{key[0]}-08"
        with exactly():
            exact = base * Decimal(key[1] or "0") / 100
        # Tax that prices contain was rounded from the gross: of the net it may be a cent off.
        if abs(abs(tax) - abs(exact).quantize(CENT, ROUND_HALF_UP)) > CENT:
            yield "BR-CO-17"
        if key[0] in ("AE", "E", "O") and not _text(subtotal, "cac:TaxCategory/cbc:TaxExemptionReason"):
            yield f"BR-{key[0]}-10"


def _lines(root: ElementTree.Element) -> Iterator[str]:
    ids = [_text(line, "cbc:ID") for line in _lines_of(root)]
    if len(set(ids)) < len(ids) or not all(ids):
        yield "BR-21"
    for line in _lines_of(root):
        if not _text(line, "cac:Item/cbc:Name"):
            yield "BR-25"
        if line.find("cac:Price/cbc:PriceAmount", _NAMES) is None:
            yield "BR-26"
        elif _amount(line, "cac:Price/cbc:PriceAmount") < 0:
            yield "BR-27"


def _form(root: ElementTree.Element) -> Form:
    return CREDIT if root.tag == f"{{{CREDIT.namespace}}}{CREDIT.name}" else COMMERCIAL_INVOICE


def _lines_of(root: ElementTree.Element) -> list[ElementTree.Element]:
    return root.findall(f"cac:{_form(root).line}", _NAMES)


def _category(of: ElementTree.Element, path: str) -> tuple[str, str]:
    return _text(of, f"{path}/cbc:ID"), _text(of, f"{path}/cbc:Percent")


def _text(of: ElementTree.Element, path: str) -> str:
    found = of.find(path, _NAMES)
    return "" if found is None else found.text or ""


def _amount(of: ElementTree.Element, path: str) -> Decimal:
    return Decimal(_text(of, path) or "0")
