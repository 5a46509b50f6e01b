"""An invoice as EN 16931 in UBL 2.1 (ISO/IEC 19845). Values in, text out.

Which business term (BT) stands where is EN 16931-3-2; what is checked of it: tests/ubl_rules.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple
from xml.etree import ElementTree

from msgspec import structs

from billing.bills.tax import TaxMode
from billing.errors import DocumentRefused
from billing.invoicing.invoice_file import InvoiceFile, LineFile, TaxFile, number_of
from billing.invoicing.parties import Party
from billing.money import Currency, exactly, from_minor, plain, quantise_line, quantise_pieces, spread
from billing.plans.price_plans import Metric
from billing.presentation.view import row_of, view_of

INVOICE: Final = "urn:oasis:names:specification:ubl:schema:xsd:Invoice-2"
CREDIT_NOTE: Final = "urn:oasis:names:specification:ubl:schema:xsd:CreditNote-2"
CAC: Final = "urn:oasis:names:specification:ubl:schema:xsd:CommonAggregateComponents-2"
CBC: Final = "urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2"
CUSTOMIZATION: Final = "urn:cen.eu:en16931:2017"
CREDIT_TRANSFER: Final = "30"
UNITS: Final = {Metric.GPU_SECOND: "SEC"}
ONE: Final = "C62"
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ElementTree.register_namespace("cac", CAC)
ElementTree.register_namespace("cbc", CBC)


class Form(NamedTuple):
    """How UBL names what invoices and credit notes have in common; `code` is their type (UNTDID 1001)."""

    namespace: str
    name: str
    code: str
    quantity: str

    @property
    def line(self) -> str:
        """An element of the document's lines."""
        return f"{self.name}Line"


COMMERCIAL_INVOICE: Final = Form(INVOICE, "Invoice", "380", "InvoicedQuantity")
CREDIT: Final = Form(CREDIT_NOTE, "CreditNote", "381", "CreditedQuantity")


class Category(NamedTuple):
    """A VAT category (UNCL 5305) with its rate in percent, None where it has none, and why nothing is charged."""

    code: str
    percent: str | None
    reason: str = ""


NOT_SUBJECT: Final = Category("O", None, "Not subject to VAT")


class _Element:
    """An element that is written from top to bottom."""

    def __init__(self, element: ElementTree.Element) -> None:
        self.element = element

    def text(self, name: str, value: str, **attributes: str) -> None:
        """A basic component; none where there is nothing to say."""
        if value:
            ElementTree.SubElement(self.element, f"{{{CBC}}}{name}", attributes).text = _NOT_XML.sub("\ufffd", value)

    def part(self, *names: str) -> _Element:
        """An aggregate, or several one within the other."""
        held = self.element
        for name in names:
            held = ElementTree.SubElement(held, f"{{{CAC}}}{name}")
        return _Element(held)


def ubl_of(invoice: InvoiceFile) -> str:
    """The invoice as XML, a credit note with what it takes back as positive amounts.

    Raises DocumentRefused, which names what is missing for it.
    """
    problems = list(_missing(invoice))
    if problems:
        raise DocumentRefused("no EN 16931 invoice: " + "; ".join(problems))
    form = CREDIT if invoice.is_credit_note else COMMERCIAL_INVOICE
    notes = " ".join(view_of(invoice).notes)
    if invoice.is_credit_note:
        invoice = _negated(invoice)
    root = _Element(ElementTree.Element(f"{{{form.namespace}}}{form.name}"))
    _head(root, invoice, form, notes)
    _party(root.part("AccountingSupplierParty", "Party"), invoice.seller, _vat_ids_stand(invoice))
    _party(root.part("AccountingCustomerParty", "Party"), invoice.buyer, _vat_ids_stand(invoice))
    if invoice.seller.iban and not invoice.received:
        means = root.part("PaymentMeans")
        means.text("PaymentMeansCode", CREDIT_TRANSFER)
        means.text("PaymentID", invoice.number or "")
        account = means.part("PayeeFinancialAccount")
        account.text("ID", invoice.seller.iban)
        if invoice.seller.bic:
            account.part("FinancialInstitutionBranch").text("ID", invoice.seller.bic)
    if not invoice.received:
        root.part("PaymentTerms").text("Note", f"{invoice.payment_terms_days} days net")
    _tax(root, invoice)
    net = _net_amounts(invoice)
    _sums(root.part("LegalMonetaryTotal"), invoice, net)
    for number, (line, amount) in enumerate(zip(invoice.lines, net, strict=True), start=1):
        _line(root.part(form.line), invoice, number, line, amount, form)
    ElementTree.indent(root.element)
    ElementTree.register_namespace("", form.namespace)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root.element, encoding="unicode") + "\n"


def _missing(invoice: InvoiceFile) -> Iterator[str]:
    if not invoice.number or invoice.issue_date is None:
        yield "it has no number and issue date: it is issued when it is finalized"
    if not invoice.lines:
        yield "it has no lines (BR-16)"
    for side, party, term in (("seller", invoice.seller, "BT-40"), ("buyer", invoice.buyer, "BT-55")):
        if not party.country:
            yield f"{side}.country is not known ({term}): `tollbook account add … --country`"
    if not (invoice.seller.tax_id or invoice.seller.registration):
        yield "seller.tax_id or seller.registration is not known (BR-CO-26)"
    elif not _vat_ids_stand(invoice) and not invoice.seller.registration:
        yield "seller.registration is not known: without VAT no VAT number may stand for it (BR-CO-26, BR-O-02)"
    elif any(row.mode is TaxMode.REVERSE_CHARGE for row in invoice.tax) and not (
        invoice.seller.tax_id and invoice.buyer.tax_id
    ):
        yield "seller.tax_id and buyer.tax_id are needed for reverse charge (BR-AE-02)"
    elif any(_category(row).code in "SZE" for row in invoice.tax) and not invoice.seller.tax_id:
        yield "seller.tax_id is not known (BR-S-02, BR-Z-02, BR-E-02)"


def _negated(invoice: InvoiceFile) -> InvoiceFile:
    """The same with the sign of every amount and quantity turned."""

    def turned(text: str) -> str:
        number = number_of(text)
        return text if number is None else plain(-number)

    return structs.replace(
        invoice,
        lines=[structs.replace(line, amount=-line.amount, quantity=turned(line.quantity)) for line in invoice.lines],
        tax=[structs.replace(row, base=-row.base, amount=-row.amount) for row in invoice.tax],
        credits=[structs.replace(credit, amount=-credit.amount) for credit in invoice.credits],
        net=-invoice.net,
        total=-invoice.total,
        amount_due=-invoice.amount_due,
    )


def _head(root: _Element, invoice: InvoiceFile, form: Form, notes: str) -> None:
    assert invoice.issue_date is not None, "checked before"
    root.text("CustomizationID", CUSTOMIZATION)
    root.text("ID", invoice.number or "")
    root.text("IssueDate", invoice.issue_date.isoformat())
    root.text("DueDate", "" if invoice.due_date is None else invoice.due_date.isoformat())
    root.text(f"{form.name}TypeCode", form.code)
    root.text("Note", notes)
    root.text("DocumentCurrencyCode", invoice.currency)
    root.text("BuyerReference", invoice.buyer.reference)
    _period(root.part("InvoicePeriod"), invoice.service_start.date(), _last_day(invoice))
    if invoice.buyer.purchase_order:
        root.part("OrderReference").text("ID", invoice.buyer.purchase_order)
    if invoice.credits_invoice is not None:
        reference = root.part("BillingReference", "InvoiceDocumentReference")
        reference.text("ID", invoice.credits_invoice.number or "")
        if invoice.credits_invoice.issue_date is not None:
            reference.text("IssueDate", invoice.credits_invoice.issue_date.isoformat())


def _period(of: _Element, first: date, last: date) -> None:
    of.text("StartDate", first.isoformat())
    of.text("EndDate", last.isoformat())


def _last_day(invoice: InvoiceFile) -> date:
    return (invoice.service_end - timedelta(microseconds=1)).date()


def _party(of: _Element, party: Party, vat_ids_stand: bool) -> None:
    address = of.part("PostalAddress")
    address.text("StreetName", party.street)
    address.text("AdditionalStreetName", party.street_2)
    address.text("CityName", party.city)
    address.text("PostalZone", party.postal_code)
    address.text("CountrySubentity", party.region)
    address.part("Country").text("IdentificationCode", party.country)
    if party.tax_id and vat_ids_stand:
        scheme = of.part("PartyTaxScheme")
        scheme.text("CompanyID", party.tax_id.replace(" ", ""))
        scheme.part("TaxScheme").text("ID", "VAT")
    legal = of.part("PartyLegalEntity")
    legal.text("RegistrationName", party.name)
    legal.text("CompanyID", party.registration)
    if party.email:
        of.part("Contact").text("ElectronicMail", party.email)


def _vat_ids_stand(invoice: InvoiceFile) -> bool:
    """What is not subject to VAT names no VAT numbers (BR-O-02 to BR-O-04)."""
    return bool(invoice.tax) and all(_category(row) != NOT_SUBJECT for row in invoice.tax)


def _category(row: TaxFile) -> Category:
    with exactly():
        percent = plain(row.rate * 100)
    match row.mode:
        case TaxMode.NONE:
            return NOT_SUBJECT
        case TaxMode.REVERSE_CHARGE:
            return Category("AE", "0", "Reverse charge")
        case TaxMode.EXEMPT:
            return Category("E", "0", "Exempt from VAT")
        case _:
            return Category("S" if row.rate else "Z", percent)


def _tax(root: _Element, invoice: InvoiceFile) -> None:
    """One subtotal per category and rate (BR-45 to BR-47)."""
    sums: dict[Category, list[int]] = {}
    for row in invoice.tax:
        held = sums.setdefault(_category(row), [0, 0])
        held[0] += row.base
        held[1] += row.amount
    if not sums:
        sums[NOT_SUBJECT] = [invoice.net, 0]
    total = root.part("TaxTotal")
    _amount(total, "TaxAmount", sum(tax for _, tax in sums.values()), invoice)
    for category, (base, tax) in sums.items():
        subtotal = total.part("TaxSubtotal")
        _amount(subtotal, "TaxableAmount", base, invoice)
        _amount(subtotal, "TaxAmount", tax, invoice)
        _tax_category(subtotal.part("TaxCategory"), category, category.reason)


def _tax_category(of: _Element, category: Category, reason: str = "") -> None:
    of.text("ID", category.code)
    of.text("Percent", category.percent or "")
    of.text("TaxExemptionReason", reason)
    of.part("TaxScheme").text("ID", "VAT")


def _net_amounts(invoice: InvoiceFile) -> list[int]:
    """Each line without the tax that it contains: its part of its group's base, by largest remainder."""
    found = [line.amount for line in invoice.lines]
    for row in invoice.tax:
        of = [n for n, line in enumerate(invoice.lines) if line.tax_group == row.tax_group] if row.inclusive else []
        gross = sum(found[n] for n in of)
        if gross:
            shares = quantise_pieces(Fraction(row.base * found[n], gross) for n in of)
            exact = {f"{n:06}": share for n, share in zip(of, shares, strict=True)}
            for key, amount in spread(Decimal(row.base), exact, Decimal(1)).items():
                found[int(key)] = int(amount)
    return found


def _sums(of: _Element, invoice: InvoiceFile, net: Sequence[int]) -> None:
    prepaid = sum(credit.amount for credit in invoice.payments) + invoice.received - invoice.carried_in
    _amount(of, "LineExtensionAmount", sum(net), invoice)
    _amount(of, "TaxExclusiveAmount", invoice.net, invoice)
    _amount(of, "TaxInclusiveAmount", invoice.total, invoice)
    if prepaid:
        _amount(of, "PrepaidAmount", prepaid, invoice)
    _amount(of, "PayableAmount", invoice.amount_due, invoice)


def _line(of: _Element, invoice: InvoiceFile, number: int, line: LineFile, net: int, form: Form) -> None:
    row = next((row for row in invoice.tax if row.tax_group == line.tax_group), None)
    contained = row.rate if row is not None and row.inclusive else Decimal(0)
    quantity, price = _quantity_and_price(line, net, contained, invoice.money)
    unit = UNITS.get(Metric(line.token_class), ONE) if line.token_class in list(Metric) else ONE
    words = row_of(invoice, line)
    of.text("ID", str(number))
    of.text(form.quantity, plain(quantity), unitCode=unit)
    _amount(of, "LineExtensionAmount", net, invoice)
    item = of.part("Item")
    item.text("Description", words.detail)
    item.text("Name", words.what)
    item.part("SellersItemIdentification").text("ID", line.line_key)
    _tax_category(item.part("ClassifiedTaxCategory"), NOT_SUBJECT if row is None else _category(row))
    of.part("Price").text("PriceAmount", plain(price), currencyID=invoice.currency)


def _quantity_and_price(line: LineFile, net: int, contained: Decimal, money: Currency) -> tuple[Decimal, Decimal]:
    """A price is never negative (BR-27): what is taken off has a negative quantity. `contained`: the rate in it."""
    quantity, price = number_of(line.quantity), number_of(line.unit_price or "n/d")
    if quantity is not None and price is not None and quantity and price >= 0:
        return quantity, quantise_line(Fraction(price) / (1 + Fraction(contained))) if contained else price
    amount = from_minor(net, money)
    return Decimal(-1 if amount < 0 else 1), abs(amount)


def _amount(of: _Element, name: str, minor: int, invoice: InvoiceFile) -> None:
    """Two decimals at most (BR-DEC); none where the currency has none."""
    of.text(name, _two_decimals(from_minor(minor, invoice.money)), currencyID=invoice.currency)


def _two_decimals(amount: Decimal) -> str:
    return f"{amount:.2f}"
