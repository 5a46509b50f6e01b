"""The quota at admission, through the middleware: with a quota service that is played."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from serving_adapter.quota.connection import Answer
from serving_adapter.quota.gate import QuotaGate
from serving_adapter.quota.settings import GateSettings
from serving_adapter.serving.adapter_settings import AdapterSettings, PlacesSection, QuotaSection
from tests.fixtures_adapter import PROMPT, Served, serving

REFUSED = msgspec.json.encode({"error": {"message": "spent", "type": "rate_limit_error", "code": "quota_exceeded"}})
BODY = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5}


class Service:
    """Answers all reservations alike, and keeps what it is told."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.settled: list[Any] = []

    async def call(self, method: str, path: str, body: bytes, within_s: float) -> Answer:
        """The service's end."""
        given = msgspec.json.decode(body)
        if path == "/v1/settlements":
            self.settled += given["settlements"]
            return Answer(204, (), b"")
        self.asked.append(given)
        return self.answer


def allowed(max_tokens: int) -> Answer:
    told = {"decision": "allow", "max_tokens": max_tokens, "priority": 2, "on_unavailable": "allow"}
    return Answer(200, (), msgspec.json.encode(told))


def behind(served: Served, service: Service) -> QuotaGate:
    gate = QuotaGate(GateSettings(), connect=lambda *address: service)  # type: ignore[arg-type,return-value]
    served.replica.gate = gate
    return gate


def test_a_refusal_reaches_the_tenant_with_its_headers_and_never_the_engine(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        headers = (("retry-after", "7"), ("ratelimit", '"day";r=0;t=7'), ("content-type", "application/json"))
        service = Service(Answer(429, headers, REFUSED))
        async with serving(adapter_settings) as served:
            behind(served, service)
            answer = await served.ask(BODY)
            assert (answer.status, answer.body) == (429, REFUSED)
            assert (answer.headers["retry-after"], answer.headers["ratelimit"]) == ("7", '"day";r=0;t=7')
            assert served.engine.seen == []
            assert served.replica.journal.standing().started == 0
            served.replica.gate = None

    asyncio.run(run())


def test_what_is_allowed_is_shrunk_to_what_remains_and_settled_with_what_was_used(
    adapter_settings: AdapterSettings,
) -> None:
    async def run() -> None:
        service = Service(allowed(3))
        async with serving(adapter_settings) as served:
            gate = behind(served, service)
            answer = await served.ask(BODY, tier="paid")
            (event,) = await served.told()
            await gate._send_waiting()
            (asked,), (settled,) = service.asked, service.settled
            assert (answer.status, answer.headers["x-tollbook-max-tokens"]) == (200, "3")
            assert (event.output_tokens, served.engine.seen[0].priority) == (3, -5 + 2)
            filled_in = await served.ask({"model": "tiny", "prompt": PROMPT})
            assert filled_in.headers["x-tollbook-max-tokens"] == "3"
            embedded = await served.ask({"model": "tiny", "input": "a b"}, "/v1/embeddings")
            assert (embedded.status, "x-tollbook-max-tokens" in embedded.headers) == (200, False)
            assert (asked["tenant_id"], asked["max_tokens"], asked["tier"]) == ("tenant_a", 5, "paid")
            assert asked["request_id"] == settled["request_id"] == event.request_id
            assert (settled["input_tokens"], settled["output_tokens"]) == (event.input_tokens, 3)
            served.replica.gate = None

    asyncio.run(run())


def test_an_echo_of_no_tokens_reserves_the_one_that_the_engine_makes(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        service = Service(allowed(1))
        async with serving(adapter_settings) as served:
            behind(served, service)
            answer = await served.ask(BODY | {"max_tokens": 0, "echo": True, "n": 2})
            assert (answer.status, "x-tollbook-max-tokens" in answer.headers) == (200, False)
            (asked,) = service.asked
            assert (asked["max_tokens"], asked["n"]) == (1, 2)
            (event,) = await served.told()
            assert event.output_tokens == asked["n"] * asked["max_tokens"]
            served.replica.gate = None

    asyncio.run(run())


def test_without_the_service_the_tiers_fail_mode_holds(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            gate = behind(served, Service(Answer(503, (), b"")))
            assert (await served.ask(BODY, tier="enterprise")).status == 200
            refused = await served.ask(BODY, tier="free")
            assert (refused.status, b'"code":"quota"' in refused.body) == (503, True)
            assert refused.headers["retry-after"] == "1"
            assert gate.counts["not_served_503"] == 2
            assert len(served.engine.seen) == 1
            served.replica.gate = None

    asyncio.run(run())


def test_an_attempt_that_a_gateway_counts_does_not_end_its_request(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        service = Service(allowed(3))
        async with serving(adapter_settings) as served:
            gate = behind(served, service)
            assert (await served.ask(BODY, request_id="req-1", attempt=2)).status == 200
            assert (await served.ask(BODY)).status == 200
            await served.told()
            await gate._send_waiting()
            assert [(each["attempt"], each["final"]) for each in service.settled] == [(2, False), (1, True)]
            served.replica.gate = None

    asyncio.run(run())


def test_a_request_ends_before_what_the_service_holds_for_it_does(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        told = {"decision": "allow", "max_tokens": 400, "priority": 2, "on_unavailable": "allow"}
        service = Service(Answer(200, (), msgspec.json.encode(told | {"longest_request_s": 0.3})))
        async with serving(adapter_settings, step=0.01) as served:
            behind(served, service)
            assert (await served.ask(BODY | {"max_tokens": 400})).status == 504
            served.replica.gate = None

    asyncio.run(run())


def test_input_is_reserved_for_all_that_may_become_tokens(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        service = Service(allowed(3))
        async with serving(adapter_settings) as served:
            behind(served, service)
            image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
            hidden = {"x": 1, "\u0069mage_url": {"url": "data:,x"}}
            text = {"type": "text", "text": "a file of an image"}
            chat = {"model": "tiny", "messages": [{"role": "user", "content": [text, image, hidden]}]}
            for body, path in (
                (chat, "/v1/chat/completions"),
                ({"model": "tiny", "input": "a", "instructions": "b" * 900}, "/v1/responses"),
                (chat | {"documents": ["d" * 700]}, "/v1/chat/completions"),
            ):
                await served.ask(body, path)
            reserved = [each["input_tokens"] for each in service.asked]
            assert 2 * 8192 < reserved[0] < 2 * 8192 + 400
            assert reserved[1] > 900
            assert reserved[2] > reserved[0] + 700
            served.replica.gate = None

    asyncio.run(run())


def test_what_a_chat_template_adds_is_reserved_where_a_template_is_used(adapter_settings: AdapterSettings) -> None:
    asks = [
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"model": "tiny", "input": "a"}),
        ("/v1/completions", {"model": "tiny", "prompt": "a"}),
    ]

    async def reserved(tokens: int) -> list[int]:
        service, quota = Service(allowed(3)), QuotaSection(tokens_per_template=tokens)
        async with serving(msgspec.structs.replace(adapter_settings, quota=quota)) as served:
            behind(served, service)
            for path, body in asks:
                await served.ask(body, path)
            served.replica.gate = None
        return [each["input_tokens"] for each in service.asked]

    chat, response, plain = asyncio.run(reserved(0))
    assert asyncio.run(reserved(300)) == [chat + 300, response + 300, plain]


def test_a_server_that_goes_down_while_a_start_is_written_settles_it(adapter_settings: AdapterSettings) -> None:
    async def run() -> None:
        service = Service(allowed(3))
        async with serving(adapter_settings) as served:
            gate, journal = behind(served, service), served.replica.journal
            asking = asyncio.create_task(served.ask(BODY))
            while not journal._open:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            (event,) = await served.told()
            assert (event.status, event.fault, event.finish_reason) == ("aborted", "platform", "shutdown")
            await gate._send_waiting()
            assert [(each["request_id"], each["final"]) for each in service.settled] == [(event.request_id, True)]
            page = served.replica.metrics.page()
            assert 'tenant_in_flight{tenant="tenant_a"} 0' in page
            assert 'tenant_requests_total{tenant="tenant_a",model="tiny",status="aborted"} 1' in page
            assert 'tollbook_quota_total{what="service"} 1' in page
            assert "tollbook_quota_breaker_open 0" in page
            assert served.engine.seen == []
            served.replica.gate = None

    asyncio.run(run())


def test_a_request_without_a_place_at_the_engine_waits_or_is_withdrawn(adapter_settings: AdapterSettings) -> None:
    one = msgspec.structs.replace(adapter_settings, places=PlacesSection(at_once=1, wait_s=0.05))

    async def run() -> None:
        service = Service(allowed(3))
        async with serving(one) as served:
            gate = behind(served, service)
            async with served.replica.places.place("other", "paid", 1):
                full = await served.ask(BODY)
                assert (full.status, b'"code":"no_place"' in full.body) == (503, True)
            assert (await served.ask(BODY)).status == 200
            await served.told()
            await gate._send_waiting()
            assert [each["dispatched"] for each in service.settled] == [False, True]
            assert service.settled[0]["nonce"] == service.asked[0]["nonce"]
            assert len(served.engine.seen) == 1
            served.replica.gate = None

    asyncio.run(run())
