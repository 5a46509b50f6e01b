"""The demo's quotas: requests of the real hour, asked for as if they came now; one hard limit, one soft.

Their usage events are of October and November and are not sent again: what is settled here stays unconfirmed, and the
quotas are of the day, so that no bill has anything to do with it.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from console.output import out, table
from devstack.traffic import azure_hour
from serving_adapter.quota.tiers import policy_of
from streams.http import access_keys
from streams.quotas import definition_store
from streams.quotas.definitions import quota_from
from streams.quotas.standing_of import decisions_of

HARD, SOFT = azure_hour.TENANTS[0], azure_hour.TENANTS[1]
QUOTAS: Final = (
    {"tenant_id": HARD, "period": "day", "metric": "output_tokens", "limit": 15_000, "thresholds": [80, 90, 100]},
    {
        "tenant_id": SOFT,
        "period": "day",
        "metric": "output_tokens",
        "limit": 10_000,
        "hard": False,
        "thresholds": [100],
    },
)
REQUESTS: Final = 120
"""Of each tenant."""
HEADERS: Final = ("ratelimit", "ratelimit-policy", "retry-after", "x-should-retry", "x-ratelimit-remaining-tokens")


def ask_before_requests(connection: psycopg.Connection, actor: str) -> list[dict[str, Any]]:
    """Define two quotas, start the service, ask for the requests; what came of it, by tenant."""
    held = definition_store.read(connection)
    for document in QUOTAS:
        quota = quota_from(document, now=datetime.now(UTC))
        held_now = held.quotas_of(quota.tenant_id, "", datetime.now(UTC))
        if quota.quota_id not in {each.quota_id for each in held_now}:
            definition_store.define(connection, quota, actor=actor)
    secret = access_keys.secret_from(secrets.token_bytes(access_keys.SECRET_BYTES))
    key = access_keys.add(
        connection, kind="quota", name="demo", tenant_ids=[HARD, SOFT], all_tenants=False, secret=secret, actor=actor
    )
    try:
        with _service() as port:
            return [_asked(connection, port, secret, tenant) for tenant in (HARD, SOFT)]
    finally:
        access_keys.revoke(connection, key.key_id, actor=actor)


def show(found: list[dict[str, Any]]) -> None:
    """What became of the requests, and one refusal explained."""
    columns = ("tenant", "quota", "asked", "admitted", "shrunk", "put_back", "refused")
    out.print(table(found, columns, "\nAsked before each request"))
    for each in found:
        if each["refusal"]:
            name, status, headers, why = each["refusal"]
            out.print(f"{each['tenant']}, {name}: {status}", style="bold")
            for header in HEADERS:
                if header in headers:
                    out.print(f"  {header}: {headers[header]}", highlight=False)
            for decision in why:
                for wall in decision.get("walls", ()):
                    out.print(
                        f"  tollbook quota why: {wall['quota_id']}: {wall['because']}; {wall['needed']} needed,"
                        f" {wall['room']} of {wall['limit']} available",
                        highlight=False, soft_wrap=True,
                    )  # fmt: skip


def _asked(connection: psycopg.Connection, port: int, secret: str, tenant: str) -> dict[str, Any]:
    """Ask for a tenant's requests one after another, and settle each as it was in the trace."""
    counts: Counter[str] = Counter()
    refusal: tuple[str, int, dict[str, str], list[dict[str, Any]]] | None = None
    run = f"demo-{time.time_ns() // 1_000_000:x}"
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as service:

        def call(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
            service.request("POST", path, json.dumps(body), {"authorization": f"Bearer {secret}"})
            reply = service.getresponse()
            text = reply.read()
            headers = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, headers, json.loads(text) if text else None

        for number, event in enumerate(_events(tenant)):
            name = f"{run}-{number}"
            used = {"input_tokens": event["input_tokens"], "output_tokens": event["output_tokens"]}
            ask = {"tenant_id": tenant, "request_id": name, "model": event["model"], "max_tokens": 512}
            status, headers, answer = call("/v1/reservations", ask | {"input_tokens": used["input_tokens"]})
            counts["asked"] += 1
            if status == http.client.OK:
                counts["admitted"] += 1
                counts["shrunk"] += answer["shrunk"]
                counts["put_back"] += answer["priority"] > policy_of("").priority
                used["output_tokens"] = min(used["output_tokens"], answer["max_tokens"])
                call(f"/v1/reservations/{tenant}/{name}/settle", used)
            else:
                counts["refused"] += 1
                refusal = refusal or (name, status, headers, decisions_of(connection, tenant, name))
    quota = "hard" if tenant == HARD else "soft"
    columns = ("asked", "admitted", "shrunk", "put_back", "refused")
    return {"tenant": tenant, "quota": quota, "refusal": refusal} | {name: counts[name] for name in columns}


def _events(tenant: str) -> Iterator[dict[str, Any]]:
    found = 0
    for line in azure_hour.lines(dirty=False):
        if found >= REQUESTS:
            return
        event: dict[str, Any] = json.loads(line)
        if event["tenant_id"] == tenant:
            found += 1
            yield event


@contextmanager
def _service() -> Iterator[int]:
    """`tollbook quota serve` on a free port."""
    command = [sys.executable, "-m", "console.main", "quota", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        for line in process.stderr or ():
            said += line
            if address := re.search(r"POST http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            sys.exit(f"demo: the quota service did not start: {said.strip()}")
        try:
            yield int(address[1])
        finally:
            process.terminate()
