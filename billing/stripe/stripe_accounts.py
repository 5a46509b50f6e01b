"""Which account of Stripe's is whose: each legal entity has one, with a key of its own (docs/spec/money.md 1)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.errors import NoStripeAccount, OtherStripeAccount
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.settings import StripeSettings
from billing.stripe import returns_store
from billing.stripe.returns_store import Followed
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice
from serving_adapter.settings import SettingsError

KEY: Final = "TOLLBOOK_STRIPE_KEY"
SECRET: Final = "TOLLBOOK_STRIPE_WEBHOOK_SECRET"
API: Final = "TOLLBOOK_STRIPE_API"


class Stripe(Protocol):
    """Stripe for every legal entity: an account of each (`StripeAccounts`), or one that all share (a gateway)."""

    def of(self, legal_entity: str) -> StripeGateway:
        """The account to which an entity's invoices go. Raises NoStripeAccount."""

    @property
    def each(self) -> tuple[StripeGateway, ...]:
        """Every account, once."""

    def wrapped(self, wrap: Callable[[StripeGateway], StripeGateway]) -> Stripe:
        """The same accounts, each through another gateway."""


@dataclass(frozen=True)
class StripeAccounts:
    """An account of each legal entity's own. Entities with the same gateway share its account."""

    gateways: Mapping[str, StripeGateway]

    def of(self, legal_entity: str) -> StripeGateway:
        """The account to which an entity's invoices go. Raises NoStripeAccount."""
        if legal_entity not in self.gateways:
            name = variable(KEY, legal_entity)
            raise NoStripeAccount(
                f"legal entity {legal_entity} has no account of Stripe's: set {name} to a key of it (the key of another"
                " entity, if the two are to share one account)"
            )
        return self.gateways[legal_entity]

    @property
    def each(self) -> tuple[StripeGateway, ...]:
        """Every account, once."""
        return tuple(dict.fromkeys(self.gateways.values()))

    def wrapped(self, wrap: Callable[[StripeGateway], StripeGateway]) -> Stripe:
        """The same accounts, each through another gateway."""
        made = {gateway: wrap(gateway) for gateway in self.each}
        return StripeAccounts({entity: made[gateway] for entity, gateway in self.gateways.items()})


def variable(name: str, legal_entity: str) -> str:
    """The environment variable with an entity's key or secret: `TOLLBOOK_STRIPE_KEY_EU` for `eu`, and without anything
    after it for `default`."""
    if legal_entity == DEFAULT_LEGAL_ENTITY:
        return name
    return f"{name}_{re.sub('[^A-Z0-9]', '_', legal_entity.upper())}"


def settings_in(environ: Mapping[str, str] = os.environ) -> dict[str, StripeSettings]:
    """By variable every key that is set, with the twin's address. Raises SettingsError: none is, or not all are of one
    mode."""
    api = environ.get(API) or None
    names = sorted(name for name, value in environ.items() if value and (name == KEY or name.startswith(f"{KEY}_")))
    found = {name: StripeSettings(environ[name], api) for name in names}
    if not found:
        found[KEY] = StripeSettings("", api)
    if len({each.is_live for each in found.values()}) > 1:
        raise SettingsError(f"{' and '.join(found)} are live and test keys: set keys of one mode")
    return found


def of_entities(entities: Collection[str], found: Mapping[str, StripeSettings]) -> StripeAccounts:
    """The accounts of legal entities that have a key. Raises SettingsError for a key of no entity, or of two at once.

    What belongs to no customer (payouts, Stripe's own fees) goes to the books of the first that has a key.
    """
    by_variable: dict[str, str] = {}
    for entity in sorted(entities, key=lambda each: (each != DEFAULT_LEGAL_ENTITY, each)):
        name = variable(KEY, entity)
        if name in found and name in by_variable:
            raise SettingsError(f"{name} would be the key of {by_variable[name]} and of {entity}: rename one of them")
        by_variable[name] = entity
    if unknown := sorted(found.keys() - by_variable.keys()):
        raise SettingsError(f"{unknown[0]} is a key of no legal entity: `tollbook account list` has their names")
    made: dict[str, StripeGateway] = {}
    gateways: dict[str, StripeGateway] = {}
    for name, entity in by_variable.items():
        if name in found:
            key = found[name].key
            made.setdefault(key, StripeGateway(found[name], legal_entity=entity))
            gateways[entity] = made[key]
    return StripeAccounts(gateways)


def secrets_of(stripe: Stripe, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """By legal entity whose account it is the secret of its webhooks' endpoint; "" where none is set."""
    entities = [gateway.legal_entity for gateway in stripe.each]
    return {entity: environ.get(variable(SECRET, entity), "") for entity in entities}


def followed(engine: Engine | Connection, stripe: Stripe, legal_entity: str, *, dry_run: bool = False) -> StripeGateway:
    """The gateway of an entity, once it is known to be of the account and mode that its books follow: the first one.

    Raises OtherStripeAccount, NoStripeAccount; StripeError where Stripe cannot say whose the key is.
    """
    gateway = stripe.of(legal_entity)
    home, account, live = gateway.legal_entity, gateway.account_id, gateway.live
    with transaction(engine) as connection:
        _check(connection, Followed(home, account, live), dry_run)
        if legal_entity != home:
            _check(connection, Followed(legal_entity, account, live, home), dry_run)
    return gateway


def all_followed(engine: Engine | Connection, stripe: Stripe, *, dry_run: bool = False) -> None:
    """Raises OtherStripeAccount where a gateway is not of the account and mode that its books follow."""
    for gateway in stripe.each:
        followed(engine, gateway, gateway.legal_entity, dry_run=dry_run)


def _check(connection: Connection, asked: Followed, dry_run: bool) -> None:
    there = {each.legal_entity: each for each in returns_store.all_followed(connection)}
    known = there.get(asked.legal_entity)
    if known is None:
        known = asked if dry_run else returns_store.follow(connection, asked)
    name = variable(KEY, asked.legal_entity)
    if known is None:
        raise OtherStripeAccount(
            f"{name} is of Stripe's account {asked.account_id}, which another entity's books follow: set a key of an"
            " account of its own (for both to share one, the same key)"
        )
    if known != asked:
        raise OtherStripeAccount(
            f"the books of {asked.legal_entity} follow Stripe's account {_told(known)}, and {name} is of"
            f" {_told(asked)}: set a key of the former, or use another database"
        )


def _told(one: Followed) -> str:
    shared = f", shared with {one.shares_with}" if one.shares_with else ""
    return f"{one.account_id} ({'live' if one.live else 'test'}{shared})"


class Everywhere:
    """All accounts read as one: an id of Stripe's is of one account alone."""

    def __init__(self, stripe: Stripe) -> None:
        self._stripe = stripe
        self._of: dict[str, StripeGateway] = {}

    def invoices(self) -> Iterator[StripeInvoice]:
        """Every invoice of every account."""
        for gateway in self._stripe.each:
            for found in gateway.invoices():
                self._of[found.invoice_id] = gateway
                yield found

    def gateway_of(self, invoice_id: str) -> StripeGateway:
        """In which account an invoice was found."""
        return self._of[invoice_id]
