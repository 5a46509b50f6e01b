"""`tollbook key`: who may send events, ask for quota, or speak for a tenant."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from console import session
from console.output import AsCsv, AsJson, document, err, listing, out
from streams.http import access_keys
from streams.http.access_keys import AccessKey, Kind

app = typer.Typer(
    help="Keys of emitters and quota callers: add, list, revoke.", no_args_is_help=True, add_completion=False
)
COLUMNS = ("key_id", "kind", "name", "tenants", "created_at", "revoked_at")


@app.command()
def add(
    kind: Annotated[Kind, typer.Option(help="Whose key: an emitter of events, a caller of quota.")],
    name: Annotated[str, typer.Option(help="For people, e.g. gateway-eu; may be used again for the next key.")],
    actor: session.Actor,
    tenant: Annotated[list[str] | None, typer.Option(help="A tenant it may speak for; as often as needed.")] = None,
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="Every tenant, also later ones; _… ids have to be named.")
    ] = False,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is printed now and never again: only a hash of it is stored."""
    secret = access_keys.secret_from(secrets.token_bytes(access_keys.SECRET_BYTES))
    with session.connection() as connection, session.change(connection, dry_run):
        try:
            key = access_keys.add(
                connection, kind=kind, name=name, tenant_ids=tenant or [], all_tenants=all_tenants, secret=secret,
                actor=actor,
            )  # fmt: skip
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    shown = _row(key) | {"secret": None if dry_run else secret}
    if as_json:
        document(shown)
    elif dry_run:
        out.print(f"would add a key of kind {kind}, {name}, for {shown['tenants']}")
    else:
        err.print(f"{key.key_id} ({kind}, {name}) for {shown['tenants']}; its secret, shown this once:")
        print(secret)


@app.command("list")
def list_keys(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """All keys, without their secrets."""
    with session.connection() as connection:
        rows = [_row(key) for key in access_keys.listing(connection)]
    listing(rows, COLUMNS, as_json=as_json, as_csv=as_csv, empty="no keys; `tollbook key add` makes one")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY")],
    actor: session.Actor,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """End a key for good; servers refuse it within seconds."""
    with session.connection() as connection, session.change(connection, dry_run):
        new = access_keys.revoke(connection, key_id, actor=actor)
    if as_json:
        document({"key_id": key_id, "revoked": new and not dry_run, "was_revoked": not new})
    else:
        would = "would be " if dry_run else ""
        out.print(f"{key_id} {would}revoked" if new else f"{key_id} was revoked before")


def _row(key: AccessKey) -> dict[str, Any]:
    """A key for people and machines: everything but what the secret is checked by."""
    named = sorted(key.tenants)
    return {
        "key_id": key.key_id,
        "kind": key.kind,
        "name": key.name,
        "tenants": ", ".join((["all"] if key.all_tenants else []) + named),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
