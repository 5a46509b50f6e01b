"""An invoice as a page: HTML from one template, and PDF from that HTML."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from billing.errors import DocumentRefused
from billing.invoicing.invoice_file import InvoiceFile
from billing.presentation.view import view_of

_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def html_of(invoice: InvoiceFile) -> str:
    """The page. The same document gives the same bytes."""
    return _TEMPLATES.get_template("invoice.html.j2").render(v=view_of(invoice))


def pdf_of(invoice: InvoiceFile) -> bytes:
    """The page as PDF; its date is the issue date. As `printed`."""
    return printed(html_of(invoice))


def printed(page: str) -> bytes:
    """A page as PDF, whose id says of which: `identifier`.

    With SOURCE_DATE_EPOCH set, which the fonts within are dated by, the same page and fonts give the same bytes.
    Raises DocumentRefused where the system has no Pango.
    """
    try:
        from weasyprint import HTML  # it loads Pango: half a second, and only here
    except OSError as error:
        raise DocumentRefused(
            "PDF needs Pango, which this system lacks (Debian: apt-get install libpango-1.0-0 libpangoft2-1.0-0"
            f" libharfbuzz-subset0 fonts-dejavu-core; HTML works without): {error}"
        ) from None
    made = HTML(string=page).write_pdf(pdf_identifier=identifier(page))
    assert isinstance(made, bytes), "without a target the bytes are returned"
    return made


def identifier(page: str) -> bytes:
    """What a PDF says which page it was made of: the first half of its SHA-256, in hex."""
    return hashlib.sha256(page.encode()).hexdigest()[:32].encode()
