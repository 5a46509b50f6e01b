"""`tollbook account`: who invoices, who pays, and how they stand on documents."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from billing.commands.keep_accounts import AccountShown, add_account, add_entity, shown
from billing.invoicing.parties import FIELDS, party_document
from billing.money import Rounding
from console import session
from console.output import AsCsv, AsJson, document, listing, out

app = typer.Typer(help="Billing accounts and legal entities.", no_args_is_help=True, add_completion=False)


@app.command()
def add(
    account: Annotated[str, typer.Argument(metavar="NAME")],
    actor: session.Actor,
    entity: Annotated[bool, typer.Option("--entity", help="NAME is a legal entity.")] = False,
    currency: Annotated[
        str | None, typer.Option(help="What a new account pays in, a new entity's books are in.")
    ] = None,
    legal_entity: Annotated[str, typer.Option(help="Who invoices a new billing account.")] = "default",
    payment_terms: Annotated[int | None, typer.Option(help="Days until an invoice is due; default 30.")] = None,
    rounding: Annotated[
        Rounding | None, typer.Option(help="Where half a cent of a new account's net goes; default half_even.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="As it stands on documents.")] = None,
    street: Annotated[str | None, typer.Option()] = None,
    street_2: Annotated[str | None, typer.Option("--street-2", help="Building, department.")] = None,
    postal_code: Annotated[str | None, typer.Option()] = None,
    city: Annotated[str | None, typer.Option()] = None,
    region: Annotated[str | None, typer.Option(help="State or province.")] = None,
    country: Annotated[str | None, typer.Option(help="Two letters, e.g. DE.")] = None,
    tax_id: Annotated[str | None, typer.Option(help="VAT number with its prefix, EIN, …")] = None,
    registration: Annotated[str | None, typer.Option(help="Number in a register of companies.")] = None,
    email: Annotated[str | None, typer.Option(help="Stripe makes no invoice for a payer without one.")] = None,
    iban: Annotated[str | None, typer.Option(help="Where a legal entity is paid.")] = None,
    bic: Annotated[str | None, typer.Option()] = None,
    purchase_order: Annotated[str | None, typer.Option(help="The buyer's order that invoices name.")] = None,
    reference: Annotated[str | None, typer.Option(help="The buyer's reference: cost centre, routing id.")] = None,
    dry_run: session.DryRun = False,
) -> None:
    """Make a billing account or a legal entity, or change how one stands on documents from now on.

    '' empties a field. Documents that are issued already stay as they are.
    """
    given = {
        "name": name, "street": street, "street_2": street_2, "postal_code": postal_code, "city": city,
        "region": region, "country": country, "tax_id": tax_id, "registration": registration, "email": email,
        "iban": iban, "bic": bic, "purchase_order": purchase_order, "reference": reference,
    }  # fmt: skip
    values = {field: value for field, value in given.items() if value is not None}
    with session.engine() as engine:
        if entity:
            done = add_entity(engine, name=account, actor=actor, currency=currency, values=values, dry_run=dry_run)
        else:
            done = add_account(
                engine, name=account, actor=actor, currency=currency, legal_entity=legal_entity,
                payment_terms_days=payment_terms, rounding=rounding, values=values, dry_run=dry_run,
            )  # fmt: skip
    _print(done)
    if dry_run:
        out.print("nothing was changed")


@app.command("list")
def list_accounts(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Legal entities and billing accounts."""
    with session.engine() as engine:
        rows = [_row(each) for each in shown(engine)]
    columns = ("id", "role", "name", "legal_entity", "currency", "payment_terms_days", "country", "tax_id")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="none")


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: AsJson = False) -> None:
    """A billing account or legal entity, as it stands on documents."""
    with session.engine() as engine:
        found = shown(engine, name)
    if as_json:
        document([_row(each) for each in found])
    else:
        for each in found:
            _print(each)


def _row(of: AccountShown) -> dict[str, Any]:
    account = of.account
    return {
        "id": of.name,
        "role": "legal entity" if account is None else "billing account",
        "legal_entity": None if account is None else account.legal_entity,
        "currency": None if account is None else account.currency,
        "payment_terms_days": None if account is None else account.payment_terms_days,
        "rounding": None if account is None else account.rounding.value,
        **party_document(of.party),
    }


def _print(of: AccountShown) -> None:
    row = _row(of)
    names = ("role", "legal_entity", "currency", "payment_terms_days", "rounding", *FIELDS)
    listing([{"field": name, "value": row[name]} for name in names if row[name] not in (None, "")], ("field", "value"),
            title=of.name)  # fmt: skip
