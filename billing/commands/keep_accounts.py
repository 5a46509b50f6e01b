"""Billing accounts and legal entities: make one, and say how it stands on documents."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine

from billing.database import raw, transaction
from billing.errors import PartyRefused, UnknownCurrency
from billing.invoicing import number_store, party_store
from billing.invoicing.parties import Party, changed, party_document
from billing.invoicing.party_store import PartyKey
from billing.money import CURRENCIES, Rounding
from billing.plans import account_store
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY, BillingAccount
from streams import audit

TERMS_DAYS_MAX: Final = 365


@dataclass(frozen=True, slots=True)
class AccountShown:
    """A billing account (with what it is by itself) or a legal entity (without), and how it stands on documents."""

    name: str
    account: BillingAccount | None
    party: Party


def add_account(
    engine: Engine,
    *,
    name: str,
    actor: str,
    currency: str | None = None,
    legal_entity: str = DEFAULT_LEGAL_ENTITY,
    payment_terms_days: int | None = None,
    rounding: Rounding | None = None,
    values: Mapping[str, str],
    dry_run: bool = False,
) -> AccountShown:
    """Make a billing account, or say of one that is there how it stands on documents from now on. Safe to repeat.

    `rounding`: which way its contracts round an invoice's net, half-even unless said.

    Raises PartyRefused, UnknownCurrency.
    """
    if not account_store.ACCOUNT_NAME.fullmatch(name):
        raise PartyRefused(f"{name!r} is no name of a billing account: letters, digits, . _ : - (not first), up to 127")
    with transaction(engine, dry_run=dry_run) as connection:
        known = account_store.accounts(connection, [name]).get(name)
        if known is None:
            if currency is None:
                raise PartyRefused(f"there is no billing account {name}: say --currency to make it")
            if currency not in {row.code for row in CURRENCIES}:
                raise UnknownCurrency(f"{currency!r} is no currency that is known")
            if legal_entity not in account_store.legal_entities(connection):
                raise PartyRefused(f"there is no legal entity {legal_entity}")
            days = 30 if payment_terms_days is None else payment_terms_days
            if not 0 <= days <= TERMS_DAYS_MAX:
                raise PartyRefused(f"payment terms of {days} days: 0 to {TERMS_DAYS_MAX}")
            named, how = values.get("name") or name, rounding or Rounding.HALF_EVEN
            known = BillingAccount(name, legal_entity, named, currency, how, days)
            account_store.add_account(connection, known)
            detail = {"legal_entity": legal_entity, "currency": currency}
            audit.record(raw(connection), actor, "account.add", name, detail)
        elif (
            currency not in (None, known.currency)
            or payment_terms_days not in (None, known.payment_terms_days)
            or rounding not in (None, known.rounding)
        ):
            raise PartyRefused(
                f"{name} is there with {known.currency}, {known.payment_terms_days} days, and rounded {known.rounding}:"
                " they stay"
            )
        return AccountShown(name, known, describe(connection, (None, name), known.name, values, actor))


def add_entity(
    engine: Engine, *, name: str, actor: str, currency: str | None = None, values: Mapping[str, str],
    dry_run: bool = False,
) -> AccountShown:  # fmt: skip
    """Make a legal entity, or say of one that is there how it stands on documents from now on. Safe to repeat.

    A new one has its books in `currency`, and numbers of its own, which begin with its name in capitals. Raises
    PartyRefused, UnknownCurrency.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        known = account_store.legal_entities(connection)
        if name not in known:
            _check_entity(name, currency, known)
            account_store.add_legal_entity(connection, name, values.get("name") or name, currency or "")
            audit.record(raw(connection), actor, "account.add_entity", name, {"currency": currency})
        elif currency not in (None, account_store.functional_currency(connection, name)):
            raise PartyRefused(f"the books of {name} are kept in another currency than {currency}, and stay so")
        named = known.get(name) or values.get("name") or name
        return AccountShown(name, None, describe(connection, (name, None), named, values, actor))


def _check_entity(name: str, currency: str | None, known: Collection[str]) -> None:
    if not account_store.ENTITY_NAME.fullmatch(name):
        raise PartyRefused(f"{name!r} is no name of a legal entity: letters, digits, . _ - (not first), up to 40")
    if name.upper() in {other.upper() for other in known}:
        raise PartyRefused(f"{name} would have the numbers of a legal entity of this name in other letters")
    for other in known:
        if same := number_store.prefixes(name) & number_store.prefixes(other):
            raise PartyRefused(
                f"numbers of {name} would begin with {min(same)}, as those of {other}: name it otherwise"
            )
    if currency is None:
        raise PartyRefused(f"there is no legal entity {name}: say --currency, in which its books are, to make it")
    if currency not in {row.code for row in CURRENCIES}:
        raise UnknownCurrency(f"{currency!r} is no currency that is known")


def shown(engine: Engine, name: str | None = None) -> list[AccountShown]:
    """Legal entities, then billing accounts: all of them, or those of a name. Raises PartyRefused if there is none."""
    with transaction(engine) as connection:
        entities = {n: full for n, full in account_store.legal_entities(connection).items() if name in (None, n)}
        accounts = account_store.accounts(connection, None if name is None else [name])
        keys: list[PartyKey] = [*((n, None) for n in entities), *((None, n) for n in accounts)]
        found = party_store.versions(connection, keys)
    if name is not None and not keys:
        raise PartyRefused(f"there is no billing account and no legal entity {name}")

    def last(key: PartyKey, otherwise: str) -> Party:
        return found[key][0][1] if key in found else Party(otherwise)

    return [
        *(AccountShown(n, None, last((n, None), full)) for n, full in entities.items()),
        *(AccountShown(n, account, last((None, n), account.name)) for n, account in accounts.items()),
    ]


def describe(connection: Connection, key: PartyKey, named: str, values: Mapping[str, str], actor: str) -> Party:
    """As `add_account` says how a party stands on documents, in the caller's transaction. Raises PartyRefused."""
    before = party_store.present(connection, key, named)
    party = changed(before, values)
    if party != before:
        party_store.add(connection, key, party, actor)
        said = {name: value for name, value in party_document(party).items() if name in values}
        audit.record(raw(connection), actor, "account.describe", key[0] or key[1] or "", said)
    return party
