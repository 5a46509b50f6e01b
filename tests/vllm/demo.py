"""`python -m tests.vllm.demo`: real requests of three tenants through a real vLLM, to their invoices; and one's trail.

On the local services (`make up`), with the commands that an operator would use. This month is billed as if it had
ended; a second run the same month finds it closed: `make clean` before it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from devstack.errors import DevstackError
from serving_adapter.events import UsageEvent
from streams.database import connect
from tests.adapter_builders import events
from tests.vllm.environment import REPOSITORY, prepare
from tests.vllm.server import Server

TENANTS: Final = ("tenant_a", "tenant_b", "tenant_c")
ASKED: Final = 30
NOW: Final = datetime.now(UTC)
MONTH: Final = f"{NOW:%Y-%m}"
AFTER: Final = f"{NOW.year + NOW.month // 12}-{NOW.month % 12 + 1:02}-02T00:00:00Z"
PLAN: Final = """
plan: demo-vllm
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: input, model: per_unit, metric: input, where: {model: tiny}, price: "0.59", per: 1000}
      - {key: cached, model: per_unit, metric: cached_input, where: {model: tiny}, price: "0.295", per: 1000}
      - {key: output, model: per_unit, metric: output, where: {model: tiny}, price: "0.79", per: 1000}
"""


def tollbook(*words: str, quiet: bool = False) -> Any:
    """A command, shown; its JSON, if it was asked for."""
    if not quiet:
        print(f"\n$ tollbook {' '.join(words)}", flush=True)
    command, environ = [sys.executable, "-m", "console.main", *words], {"COLUMNS": "150", **os.environ}
    if "--json" not in words:
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environ)
        return None
    return json.loads(subprocess.run(command, check=True, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE).stdout)


async def ask_all(server: Server) -> str:
    """Answers and streams, some of them left in their midst; the id of one request, from its answer's header."""
    for number in range(ASKED):
        body = {
            "model": "fr" if number % 9 == 0 else "tiny", "prompt": "count every token " * 20 + f"question {number}",
            "max_tokens": 20 + number, "ignore_eos": True, "stream": number % 2 == 1,
        }  # fmt: skip
        await server.ask(body, tenant=TENANTS[number % 3], leave_after=(2500, 60.0) if number % 10 == 7 else None)
    told: dict[str, str] = {}
    body = {"model": "tiny", "prompt": "the one we follow", "max_tokens": 12, "ignore_eos": True}
    status, answer = await server.ask(body, tenant="tenant_b", told=told)
    traced = told["x-request-id"]
    print(f"\ntenant_b asked {body['prompt']!r}: {status}, x-request-id {traced}\n{answer.decode()}", flush=True)
    return traced


def trail(traced: str, spooled: UsageEvent) -> None:
    """Where one request is on its way: in the spool, in Kafka, in the database."""
    print(f"\nThe trail of {traced}\nIn the spool, its start on disk before the engine saw it:")
    print(json.dumps(msgspec.to_builtins(spooled), indent=1))
    with connect(os.environ["TOLLBOOK_DATABASE_URL"]) as connection:
        stored = connection.execute(
            "select source, position, ingested_at from usage.events where request_id = %s", (traced,)
        ).fetchone()
    assert stored is not None, "the event is not in the database"
    print(f"In Kafka and applied from there: {stored[0]}, offset {stored[1]}, at {stored[2]:%Y-%m-%d %H:%M:%S.%f} UTC")
    tollbook("usage", "explain", "tenant_b", "--period", MONTH, "--request", traced)


def main() -> None:
    """From a request to its line."""
    prepare()
    tollbook("db", "upgrade")
    tollbook("tenant", "add", *TENANTS)
    (REPOSITORY / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        home = Path(name)
        (home / "plan.yaml").write_text(PLAN)
        tollbook("plan", "apply", str(home / "plan.yaml"))
        tollbook(
            "subscription", "start", "demo-vllm", *TENANTS, "--from", f"{MONTH}-01", "--email", "billing@example.com"
        )
        server = Server(home)
        try:
            print("\n$ vllm serve … --middleware serving_adapter.Middleware", flush=True)
            server.start(TOLLBOOK_KAFKA=os.environ["TOLLBOOK_KAFKA"])
            traced = asyncio.run(ask_all(server))
            server.stop()
        finally:
            server.kill()
        tollbook("adapter", "spool", "--spool", str(server.spool))
        tollbook("adapter", "ship", "--spool", str(server.spool), "--once", "--dev")
        spooled = next(event for event in events(server.boot) if event.request_id == traced)
    tollbook("streams", "run", "--drain")
    for tenant in TENANTS:
        tollbook("usage", "show", tenant, "--period", MONTH, "--by", "model,adapter,status")
    tollbook("close", "run", MONTH, "--test", "--now", AFTER)
    tollbook("close", "approve", MONTH, "--as", "another-person")
    tollbook("close", "run", MONTH, "--test", "--now", AFTER)
    tollbook("invoice", "list", "--period", MONTH)
    found = tollbook("invoice", "list", "--period", MONTH, "--account", "tenant_b", "--json", quiet=True)
    invoice = found[-1]
    tollbook("invoice", "show", invoice["number"])
    trail(traced, spooled)
    explained = tollbook("invoice", "explain", invoice["number"], "--limit", "1000", "--json")
    found = [request for request in explained["requests"] if request["request_id"] == traced]
    for request in found:
        (line,) = [line for line in explained["lines"] if line["charge"] == request["charge"]]
        print(f"  {request['quantity']:>4} of the {line['counted']} tokens of line {line['line_key']!r},"
              f" at {line['unit_price']} {invoice['currency']} each: {line['amount_exact']}")  # fmt: skip
    disagreeing = [counter["charge"] for counter in explained["counters"] if not counter["agrees"]]
    if not found or disagreeing:
        sys.exit(f"request {traced}: on {len(found)} lines of {invoice['number']}; not equal: {disagreeing}")
    print(f"\nFrom the answer's x-request-id {traced} to {len(found)} lines of invoice {invoice['number']}.")


if __name__ == "__main__":
    try:
        main()
    except DevstackError as error:
        sys.exit(f"Error: {error}")
