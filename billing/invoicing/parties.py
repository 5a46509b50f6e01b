"""Who invoices and who pays, as it stands on documents: names, addresses, tax ids, references. Values in, values out.

The fields are those of EN 16931 (BG-4 seller, BG-7 buyer), as far as invoices here need them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from billing.errors import PartyRefused

LONGEST: Final = 200
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_COUNTRY: Final = re.compile(r"[A-Z]{2}")
_TAX_ID: Final = re.compile(r"[A-Z0-9][A-Z0-9./-]{1,29}")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_IBAN: Final = re.compile(r"[A-Z]{2}\d{2}[A-Z0-9]{8,30}")
_BIC: Final = re.compile(r"[A-Z]{6}[A-Z0-9]{2}([A-Z0-9]{3})?")


@dataclass(frozen=True, slots=True)
class Party:
    """One side of an invoice; '' stands for what is not known.

    `country` is ISO 3166-1 alpha-2, `tax_id` a VAT number with its prefix or whatever the country has, `registration`
    the number in a register of companies. A seller has `iban` and `bic`, a buyer `purchase_order` and `reference`
    (BT-10, who ordered).
    """

    name: str
    street: str = ""
    street_2: str = ""
    postal_code: str = ""
    city: str = ""
    region: str = ""
    country: str = ""
    tax_id: str = ""
    registration: str = ""
    email: str = ""
    iban: str = ""
    bic: str = ""
    purchase_order: str = ""
    reference: str = ""

    @property
    def address(self) -> tuple[str, ...]:
        """The lines of its address, without those that are empty."""
        town = " ".join(part for part in (self.postal_code, self.city) if part)
        return tuple(line for line in (self.street, self.street_2, town, self.region, self.country) if line)


FIELDS: Final = tuple(field.name for field in fields(Party))


def changed(party: Party, values: Mapping[str, str]) -> Party:
    """The party with some fields set anew, each checked. Raises PartyRefused, which names every field at fault."""
    tidy = {name: " ".join(value.split(" ")).strip() for name, value in values.items()}
    for name in ("country", "tax_id", "iban", "bic"):
        if name in tidy:
            tidy[name] = tidy[name].upper()
    if "iban" in tidy:
        tidy["iban"] = tidy["iban"].replace(" ", "")
    result = replace(party, **tidy)
    problems = [f"{name}: {reason}" for name in FIELDS if (reason := _fault(name, getattr(result, name)))]
    if problems:
        raise PartyRefused("; ".join(problems))
    return result


def party_document(party: Party) -> dict[str, Any]:
    """As it stands in an invoice's document."""
    return {name: getattr(party, name) for name in FIELDS}


def _fault(name: str, value: str) -> str | None:
    if _CONTROL.search(value):
        return "control characters are not printed"
    if len(value) > LONGEST:
        return f"{len(value)} characters, at most {LONGEST}"
    if not value:
        return "an invoice names who is on it" if name == "name" else None
    if name == "country" and not _COUNTRY.fullmatch(value):
        return f"{value!r} is no ISO 3166 code of two letters, such as DE"
    if name == "tax_id" and not _TAX_ID.fullmatch(value.replace(" ", "")):
        return f"{value!r} is no tax id: letters, digits, and . / - between them"
    if name == "email" and not _EMAIL.fullmatch(value):
        return f"{value!r} is no e-mail address"
    if name == "iban" and not (_IBAN.fullmatch(value) and _iban_adds_up(value)):
        return f"{value!r} is no IBAN: its check digits do not fit"
    if name == "bic" and not _BIC.fullmatch(value):
        return f"{value!r} is no BIC of 8 or 11 characters"
    return None


def _iban_adds_up(iban: str) -> bool:
    """ISO 13616: the number with its first four characters behind it, letters as 10 to 35, is 1 modulo 97."""
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1
