"""Access keys: the secret by which an emitter or a caller of quota shows who it is.

A secret is shown once, when it is made; only its SHA-256 is stored. A slow password hash would add nothing: a secret
of 32 random bytes cannot be guessed from its hash however fast the hash is, and each request has to be checked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import psycopg

from streams import audit, tenants
from streams.errors import UnknownKey, UnknownTenant

Kind = Literal["emitter", "quota"]
SECRET_PREFIX: Final = "tbk_"
"""Lets scanners of repositories and logs recognise a secret that lies where it should not."""
SECRET_BYTES: Final = 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_COLUMNS: Final = (
    "k.key_id, k.kind, k.name, k.all_tenants, k.tenants, k.secret_sha256, k.created_at, r.revoked_at"
    " from usage.access_keys k left join usage.key_revocations r using (key_id)"
)


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key as it is stored; the secret itself is nowhere."""

    key_id: str
    kind: str
    name: str
    all_tenants: bool
    tenants: frozenset[str]
    digest: bytes = field(repr=False)
    created_at: datetime
    revoked_at: datetime | None = None

    def may_speak_for(self, tenant_id: str) -> bool:
        """Whether the holder may send events of this tenant.

        All tenants means all customers: the reserved ids that begin with `_`, which are never billed, have to be named.
        """
        return tenant_id in self.tenants or (self.all_tenants and not tenant_id.startswith("_"))

    def may_number_as(self, replica_id: str) -> bool:
        """Whether the holder may number events as this replica: by the key's own name, or `name.…`, `name/…`."""
        return replica_id == self.name or replica_id.startswith((f"{self.name}.", f"{self.name}/"))


def secret_from(random_bytes: bytes) -> str:
    """A secret made of 32 random bytes, e.g. `tbk_q83vEj…`: letters, digits, `-` and `_`."""
    if len(random_bytes) != SECRET_BYTES:
        raise ValueError(f"a secret is made of {SECRET_BYTES} random bytes, not {len(random_bytes)}")
    return SECRET_PREFIX + base64.urlsafe_b64encode(random_bytes).decode().rstrip("=")


def digest_of(secret: str) -> bytes:
    """What is stored of a secret, and compared: its SHA-256."""
    return hashlib.sha256(secret.encode()).digest()


def find(keys: Mapping[bytes, AccessKey], secret: str) -> AccessKey | None:
    """The key of this secret among keys by digest.

    Where a digest differs tells nobody anything about a secret, so that looking it up is safe; the match is compared
    in constant time all the same, so that safety does not rest on how a mapping compares.
    """
    digest = digest_of(secret)
    key = keys.get(digest)
    return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def add(
    connection: psycopg.Connection,
    *,
    kind: Kind,
    name: str,
    tenant_ids: Sequence[str],
    all_tenants: bool,
    secret: str,
    actor: str,
) -> AccessKey:
    """Store the key of a new secret. Names may repeat: a secret is replaced by adding a key, then revoking the old one.

    Raises UnknownTenant if a tenant that is neither registered nor reserved is named, ValueError on a name that does
    not fit or where no tenant is named.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no key name: letters, digits and . _ : -, at most 64")
    if not all_tenants and not tenant_ids:
        raise ValueError("say for whom the key is: --tenant ID (as often as needed) or --all-tenants")
    digest = digest_of(secret)
    key_id = f"key_{digest.hex()[:12]}"
    named = sorted(set(tenant_ids))
    with connection.transaction():
        customers = [tenant_id for tenant_id in named if not tenant_id.startswith("_")]
        for unknown in sorted(set(customers) - tenants.known_among(connection, customers)):
            raise UnknownTenant(f"tenant {unknown} is not registered: `tollbook tenant add {unknown}` registers it")
        row = connection.execute(
            "insert into usage.access_keys (key_id, kind, name, secret_sha256, all_tenants, tenants)"
            " values (%s, %s, %s, %s, %s, %s) returning created_at",
            (key_id, kind, name, digest, all_tenants, named),
        ).fetchone()
        detail = {"kind": kind, "name": name, "all_tenants": all_tenants, "tenants": named}
        audit.record(connection, actor, "key.add", key_id, detail)
    assert row is not None, "an insert returns its row"
    return AccessKey(key_id, kind, name, all_tenants, frozenset(named), digest, row[0])


def revoke(connection: psycopg.Connection, key_id: str, *, actor: str) -> bool:
    """End a key for good; False if it was revoked before. Raises UnknownKey."""
    with connection.transaction():
        if not connection.execute("select 1 from usage.access_keys where key_id = %s", (key_id,)).fetchone():
            raise UnknownKey(f"there is no key {key_id}: `tollbook key list` shows them")
        new = connection.execute(
            "insert into usage.key_revocations (key_id) values (%s) on conflict do nothing returning key_id", (key_id,)
        ).fetchone()
        if new:
            audit.record(connection, actor, "key.revoke", key_id, {})
    return new is not None


def listing(connection: psycopg.Connection) -> list[AccessKey]:
    """Every key, revoked ones included, oldest first."""
    return [_key(row) for row in connection.execute(f"select {_COLUMNS} order by k.created_at, k.key_id")]


def in_force(connection: psycopg.Connection, kind: Kind) -> dict[bytes, AccessKey]:
    """The keys of a kind that are not revoked, by digest."""
    rows = connection.execute(f"select {_COLUMNS} where k.kind = %s and r.revoked_at is null", (kind,))
    return {key.digest: key for key in map(_key, rows)}


def _key(row: tuple[str, str, str, bool, list[str], bytes, datetime, datetime | None]) -> AccessKey:
    key_id, kind, name, all_tenants, named, digest, created_at, revoked_at = row
    return AccessKey(key_id, kind, name, all_tenants, frozenset(named), bytes(digest), created_at, revoked_at)
