"""The request log and the stored replies of idempotency keys: the two records a request leaves."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import dataclass
from typing import Any

from devstack.stripe_twin.rules.forms import Form
from devstack.stripe_twin.rules.idempotency import StoredReply

KEPT_REQUESTS = 10_000
"""Older entries go; enough for a demo's whole run and a bound on the file's growth."""

_PRUNE_EVERY = 500

_SECRET = re.compile(r"\b((?:sk|rk)_(?:test|live)|whsec)_\w+")


@dataclass(frozen=True)
class LogEntry:
    """One request as answered. ``time`` in Unix seconds; ``account`` None when the key was refused."""

    request_id: str
    time: int
    account: str | None
    method: str
    path: str
    params: Form
    idempotency_key: str | None
    replayed: bool
    status: int


def append(connection: sqlite3.Connection, entry: LogEntry) -> None:
    params = _SECRET.sub(r"\1_***", json.dumps(entry.params, ensure_ascii=False))
    cursor = connection.execute(
        "INSERT INTO requests (request_id, time, account, method, path, params, idempotency_key, replayed, status)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.request_id,
            entry.time,
            entry.account,
            entry.method,
            entry.path,
            params,
            entry.idempotency_key,
            entry.replayed,
            entry.status,
        ),
    )
    assert cursor.lastrowid is not None
    if cursor.lastrowid % _PRUNE_EVERY == 0:
        connection.execute("DELETE FROM requests WHERE seq <= ?", (cursor.lastrowid - KEPT_REQUESTS,))


def latest(connection: sqlite3.Connection, limit: int, request_id: str | None = None) -> list[dict[str, Any]]:
    """Newest first; only ``request_id`` if given."""
    rows = connection.execute(
        "SELECT * FROM requests WHERE ? IS NULL OR request_id = ? ORDER BY seq DESC LIMIT ?",
        (request_id, request_id, limit),
    )
    return [{**dict(row), "params": json.loads(row["params"]), "replayed": bool(row["replayed"])} for row in rows]


def stored_reply(connection: sqlite3.Connection, account: str, key: str) -> StoredReply | None:
    row = connection.execute(
        "SELECT path, fingerprint, status, body, request_id, created FROM idempotency_keys"
        " WHERE account = ? AND key = ?",
        (account, key),
    ).fetchone()
    return None if row is None else StoredReply(**dict(row))


def store_reply(connection: sqlite3.Connection, account: str, key: str, reply: StoredReply) -> None:
    """Replaces an expired reply under the same key."""
    connection.execute(
        "INSERT OR REPLACE INTO idempotency_keys (account, key, path, fingerprint, status, body, request_id, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            account,
            key,
            reply.path,
            reply.fingerprint,
            reply.status,
            reply.body,
            reply.request_id,
            reply.created,
        ),
    )


def prune_replies(connection: sqlite3.Connection, created_before: int) -> None:
    connection.execute("DELETE FROM idempotency_keys WHERE created <= ?", (created_before,))
