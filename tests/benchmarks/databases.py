"""A database of a benchmark's own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from streams.schema import upgrade


@contextmanager
def database() -> Iterator[str]:
    """A fresh database with Tollbook's schema, beside the one that the environment names; dropped at the end."""
    server = os.environ["TOLLBOOK_DATABASE_URL"]
    name = f"tollbook_bench_{secrets.token_hex(4)}"
    head, _, options = server.partition("?")
    url = f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{options}" if options else "")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        try:
            upgrade(url)
            yield url
        finally:
            admin.execute(f'drop database if exists "{name}"')
