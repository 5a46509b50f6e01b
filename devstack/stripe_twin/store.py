"""The twin's SQLite file: opening it, its tables, and one transaction per request.

WAL with ``synchronous=NORMAL``: a commit survives ``kill -9`` of the twin (the pages are with the kernel), not
a power cut of the machine. That is enough for a local look-alike and spares an fsync per request.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE objects (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,   -- order of creation within one second
    account  TEXT NOT NULL,
    type     TEXT NOT NULL,                       -- Stripe's `object`
    id       TEXT NOT NULL UNIQUE,
    created  INTEGER NOT NULL,                    -- Unix seconds of the twin's clock
    deleted  INTEGER NOT NULL DEFAULT 0,
    body     TEXT NOT NULL,                       -- JSON; names that begin with _ are the twin's own
    customer TEXT GENERATED ALWAYS AS (json_extract(body, '$.customer')) VIRTUAL,
    invoice  TEXT GENERATED ALWAYS AS (json_extract(body, '$.invoice')) VIRTUAL,
    status   TEXT GENERATED ALWAYS AS (json_extract(body, '$.status')) VIRTUAL,
    number   TEXT GENERATED ALWAYS AS (json_extract(body, '$.number')) VIRTUAL,
    email    TEXT GENERATED ALWAYS AS (json_extract(body, '$.email')) VIRTUAL,
    due_date INTEGER GENERATED ALWAYS AS (json_extract(body, '$.due_date')) VIRTUAL,
    collection_method TEXT GENERATED ALWAYS AS (json_extract(body, '$.collection_method')) VIRTUAL,
    position INTEGER GENERATED ALWAYS AS (json_extract(body, '$._position')) VIRTUAL
);
CREATE INDEX objects_newest ON objects (account, type, created, seq) WHERE deleted = 0;
CREATE INDEX objects_customer ON objects (account, type, customer, created, seq)
    WHERE deleted = 0 AND customer IS NOT NULL;
CREATE INDEX objects_invoice ON objects (account, type, invoice, position)
    WHERE deleted = 0 AND invoice IS NOT NULL;
CREATE INDEX objects_email ON objects (account, email) WHERE email IS NOT NULL;
CREATE UNIQUE INDEX invoice_number ON objects (account, number)
    WHERE type = 'invoice' AND deleted = 0 AND number IS NOT NULL;

CREATE TABLE idempotency_keys (
    account     TEXT NOT NULL,
    key         TEXT NOT NULL,
    path        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,                    -- of the parameters
    status      INTEGER NOT NULL,
    body        BLOB NOT NULL,                    -- the reply, replayed byte for byte
    request_id  TEXT NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (account, key)
) WITHOUT ROWID;

CREATE TABLE requests (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id      TEXT NOT NULL UNIQUE,
    time            INTEGER NOT NULL,
    account         TEXT,
    method          TEXT NOT NULL,
    path            TEXT NOT NULL,
    params          TEXT NOT NULL,
    idempotency_key TEXT,
    replayed        INTEGER NOT NULL,
    status          INTEGER NOT NULL
);
"""

_SECOND = """
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The data folder cannot be used; the text says why and what to do, in one line."""


class Store:
    """The open database of one data folder, which it locks against a second twin."""

    def __init__(self, connection: sqlite3.Connection, lock: int) -> None:
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open or create ``folder/twin.sqlite3``. Raises StoreError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write to data folder {folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StoreError(f"data folder {folder} is in use by another twin; stop it first") from None
        try:
            connection = sqlite3.connect(folder / "twin.sqlite3", isolation_level=None)
            _prepare(connection, folder)
        except sqlite3.Error as error:
            os.close(lock)
            raise StoreError(f"cannot use {folder / 'twin.sqlite3'}: {error}") from None
        return cls(connection, lock)

    def close(self) -> None:
        self._connection.close()
        os.close(self._lock)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: committed at the end, rolled back on any exception."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def setting(self, name: str, default: str) -> str:
        """A value that outlives a restart."""
        row = self._connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return default if row is None else str(row["value"])

    def set_setting(self, name: str, value: str) -> None:
        """Keep a value."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))


def _prepare(connection: sqlite3.Connection, folder: Path) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(f"{folder} was written by a newer twin (schema {version}); use another folder")
    missing = "".join((_SCHEMA, _SECOND)[version:])
    if missing:
        # executescript commits by itself, so the version is set in the same script, last.
        connection.executescript(f"BEGIN; {missing} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
