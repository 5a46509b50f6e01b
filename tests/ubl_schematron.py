"""Invoices and credit notes in UBL against CEN's own Schematron of EN 16931: `make test-ubl`, with the network.

The rules and Saxon, which runs them, come from Maven Central, by checksum, once (.tollbook/en16931): nothing of them is
part of this project or its tests. What every test run checks without them: `ubl_rules.py`. Exit code 1 if a document
breaks a rule, or if one that was damaged on purpose breaks none.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.commands.show_invoices import document_of
from billing.invoicing.invoice_file import invoice_file
from billing.invoicing.invoiced_fees import InvoicedFees
from billing.invoicing.party_store import Sides
from billing.presentation.ubl import ubl_of
from billing.rating.lines import LineKind
from tests.billing_builders import stored
from tests.unit.billing.test_invoiced_fees import fee, invoiced, noted, paper, unused
from tests.unit.billing.test_presentation import BUYER, GOLDEN, ISSUED, SELLER

CENTRAL: Final = "https://repo1.maven.org/maven2"
RULES: Final = "com/helger/phive/rules/phive-rules-en16931/3.2.5/phive-rules-en16931-3.2.5.jar"
JARS: Final = {
    RULES: "53de6220129c4a808a267faf43a9f6a4fe7e023a9d936a8931d6b670a1f9e004",
    "net/sf/saxon/Saxon-HE/12.5/Saxon-HE-12.5.jar": "98c3a91e6e5aaf9b3e2b37601e04b214a6e67098493cdd8232fcb705fddcb674",
    "org/xmlresolver/xmlresolver/5.2.2/xmlresolver-5.2.2.jar": (
        "efc92bd7ed32b3e57095e0b3e872051ccfbbdcc980831ef33e89e38161a85222"
    ),
}
SCHEMATRON: Final = "external/schematron/1.3.13/ubl/EN16931-UBL-validation.xslt"
FOLDER: Final = Path(".tollbook/en16931")
DAMAGED: Final = "damaged on purpose"
RATES: Final = {"std": Decimal("0.19"), "low": Decimal("0.07")}


def main() -> int:
    """Write the documents, run the rules over them, tell what each breaks."""
    given, said = FOLDER / "documents", FOLDER / "reports"
    for folder in (given, said):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
    jars = [fetched(path, digest) for path, digest in JARS.items()]
    rules = FOLDER / "rules.xslt"
    with zipfile.ZipFile(fetched(RULES, JARS[RULES])) as archive:
        rules.write_bytes(archive.read(SCHEMATRON))
    for name, text in documents():
        (given / f"{name}.xml").write_text(text)
    command = ["java", "-cp", ":".join(map(str, jars)), "net.sf.saxon.Transform"]
    subprocess.run([*command, f"-s:{given}", f"-o:{said}", f"-xsl:{rules}"], check=True)
    failed = False
    for report in sorted(said.iterdir()):
        broken = list(broken_in(report.read_text()))
        failed = failed or bool(broken) is not (report.stem == DAMAGED)
        print(f"{report.stem}: " + ("; ".join(broken) or "no rule is broken"))
    return int(failed or len(list(said.iterdir())) != len(list(given.iterdir())))


def fetched(path: str, digest: str) -> Path:
    """A jar of Maven Central; one with another checksum is refused."""
    file = FOLDER / path.rsplit("/", 1)[-1]
    if not file.exists():
        with urllib.request.urlopen(f"{CENTRAL}/{path}", timeout=120) as answer:
            file.write_bytes(answer.read())
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != digest:
        file.unlink()
        sys.exit(f"{path} has checksum {found}, not {digest}: it was not used")
    return file


def documents() -> Iterator[tuple[str, str]]:
    """Finished documents by name: those of the tests, and fees in advance with discounts, tax groups, credit notes."""
    for file in sorted(GOLDEN.glob("*.xml")):
        yield file.stem, file.read_text()
    for mode in (TaxMode.NONE, TaxMode.EXCLUSIVE, TaxMode.INCLUSIVE):
        rules = NO_TAX if mode is TaxMode.NONE else TaxRules(mode, RATES)
        one, other = fee("10", "a"), replace(fee("5.05", "b"), tax_group="low")
        less = replace(one, identity=replace(one.identity, kind=LineKind.INVOICE_DISCOUNT), amount=Decimal("-1.005"))
        original = invoiced([one, less, other], rules)
        made = document_of(stored(original, **ISSUED), Sides(SELLER, BUYER, 30), None)
        yield f"advance, {mode}", ubl_of(invoice_file(json.loads(json.dumps(made))))
        fees = InvoicedFees()
        fees.take_in(original)
        for number, at in enumerate((3, 4)):
            note = noted(fees, [unused(one, "4.003333333333", at)], at, rules)
            yield f"credit note {number + 1}, {mode}", ubl_of(paper(note))
    text = (GOLDEN / "taxed.xml").read_text()
    start = text.index("<cbc:PayableAmount"), text.index("</cbc:PayableAmount>")
    yield DAMAGED, text[: start[0]] + '<cbc:PayableAmount currencyID="USD">1.00' + text[start[1] :]


def broken_in(report: str) -> Iterator[str]:
    """The rules that a report (SVRL) says a document breaks."""
    for found in ElementTree.fromstring(report).iter("{http://purl.oclc.org/dsdl/svrl}failed-assert"):
        text = found.find("{http://purl.oclc.org/dsdl/svrl}text")
        yield f"{found.get('flag')} {' '.join((text.text or '').split()) if text is not None else found.get('id')}"


if __name__ == "__main__":
    sys.exit(main())
