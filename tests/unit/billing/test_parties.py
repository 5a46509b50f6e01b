"""Who is on a document: checked by field."""

from __future__ import annotations

import pytest

from billing.errors import PartyRefused
from billing.invoicing.parties import Party, changed


def test_fields_are_set_one_by_one_and_tidied() -> None:
    party = changed(Party("Acme"), {"country": "de", "iban": "de89 3704 0044 0532 0130 00", "city": " Berlin "})
    assert (party.name, party.country, party.iban, party.city) == ("Acme", "DE", "DE89370400440532013000", "Berlin")
    assert changed(party, {"city": ""}).address == ("DE",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("country", "Germany"), ("country", "D1"), ("tax_id", "?"), ("email", "nobody"),
        ("iban", "DE89370400440532013001"), ("bic", "COBA"), ("name", ""), ("street", "x" * 201), ("city", "a\nb"),
    ],
)  # fmt: skip
def test_a_field_at_fault_is_named(field: str, value: str) -> None:
    with pytest.raises(PartyRefused, match=f"^{field}: "):
        changed(Party("Acme"), {field: value})


def test_every_field_at_fault_is_named() -> None:
    with pytest.raises(PartyRefused, match=r"country: .*; bic: "):
        changed(Party("Acme"), {"bic": "1", "country": "1"})
