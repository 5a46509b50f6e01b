"""What the gate makes of the service's answers, and what it keeps: with a service that is played."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving_adapter.quota import gate as gates
from serving_adapter.quota.connection import Answer, NoAnswer
from serving_adapter.quota.gate import QuotaGate
from serving_adapter.quota.kept_decisions import KeptDecisions
from serving_adapter.quota.settings import GateSettings

Say = Callable[[str, Any], Answer]


class Played:
    """A connection whose answers are worked out."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked: list[tuple[str, Any]] = []

    async def call(self, method: str, path: str, body: bytes, within_s: float) -> Answer:
        """What the service would say."""
        self.asked.append((path, msgspec.json.decode(body)))
        return self.say(path, self.asked[-1][1])

    def close(self) -> None:
        """Nothing is open."""


def made(say: Say, clock: Callable[[], float] = time.monotonic, **settings: Any) -> tuple[QuotaGate, Played]:
    played = Played(say)
    return QuotaGate(GateSettings(**settings), clock, connect=lambda *address: played), played  # type: ignore[arg-type,return-value]


def says(status: int, *headers: tuple[str, str]) -> Say:
    return lambda path, body: Answer(status, headers, b"{}")


def admitted(gate: QuotaGate, request_id: str, tier: str = "") -> gates.Admission:
    return asyncio.run(gate.admit("t1", request_id, "m", 10, 100, tier=tier))


def test_a_refusal_bears_the_headers_that_are_for_the_tenant() -> None:
    gate, _ = made(says(429, ("retry-after", "7"), ("ratelimit", "x"), ("content-length", "2"), ("date", "now")))
    refused = admitted(gate, "r1")
    assert (refused.allowed, refused.status) == (False, 429)
    assert refused.headers == (("retry-after", "7"), ("ratelimit", "x"))


@pytest.mark.parametrize("status", [401, 404, 421, 503])
def test_what_is_wrong_with_the_gate_refuses_nobody(status: int) -> None:
    gate, _ = made(says(status))
    found = admitted(gate, "r1", "enterprise")
    assert (found.allowed, found.source) == (True, "fail_mode")
    assert gate.counts[f"not_served_{status}"] == 1


def test_safe_capacity_is_used_once_by_a_request_and_given_back_once() -> None:
    gate, _ = made(says(500), tier_modes={"free": "safe_capacity"}, safe_requests=2, failures_to_open=1000)
    for _ in range(5):
        assert admitted(gate, "r1", "free").allowed
    assert admitted(gate, "r2", "free").allowed
    assert not admitted(gate, "r3", "free").allowed
    for request_id in ("r1", "r1", "r2", "never seen"):
        gate.settle("t1", request_id, input_tokens=1, output_tokens=1)
    assert admitted(gate, "r4", "free").allowed
    assert admitted(gate, "r5", "free").allowed
    assert not admitted(gate, "r6", "free").allowed


def test_what_is_never_settled_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "KEPT_AT_MOST", 10)
    gate, _ = made(says(500), tier_modes={"free": "allow"}, failures_to_open=1000)
    for number in range(25):
        assert admitted(gate, f"r{number}", "free").allowed
    assert len(gate._without_service) == 10
    assert gate._safe["t1"] == 10


def test_one_settlement_that_is_refused_does_not_take_the_others_along() -> None:
    def say(path: str, body: Any) -> Answer:
        wrong = any(each["request_id"] == "wrong" for each in body["settlements"])
        if not wrong:
            taken.extend(each["request_id"] for each in body["settlements"])
        return Answer(403 if wrong else 204, (), b"")

    taken: list[str] = []
    gate, _ = made(say)
    for request_id in ("a", "b", "wrong", "c", "d"):
        gate.settle("t1", request_id, input_tokens=1, output_tokens=1)
    asyncio.run(gate._send_waiting())
    assert taken == ["a", "b", "c", "d"]
    assert (gate.counts["refused_403"], gate.waiting) == (1, 0)


def test_with_a_wrong_key_settlements_wait_for_the_right_one() -> None:
    gate, played = made(says(401))
    gate.settle("t1", "a", input_tokens=1, output_tokens=1)
    assert not asyncio.run(gate._send_waiting())
    played.say = says(204)
    assert asyncio.run(gate._send_waiting())
    assert len(played.asked) == 2


def test_each_process_holds_slices_under_a_name_of_its_own() -> None:
    assert GateSettings.from_environment({}).holder not in ("", "gate")


@pytest.mark.parametrize("answer", [None, 503])
def test_what_the_service_may_have_admitted_too_late_and_the_fail_mode_refused_is_withdrawn(answer: int | None) -> None:
    def say(path: str, body: Any) -> Answer:
        if answer is None:
            raise NoAnswer("too late")
        return Answer(answer, (), b"")

    gate, _ = made(say)
    assert not admitted(gate, "refused", "free").allowed
    assert admitted(gate, "let in", "enterprise").allowed
    (told,) = gate._settlements.entries()
    assert (told["request_id"], told["dispatched"], told["final"]) == ("refused", False, False)


@pytest.mark.parametrize("may_be_followed", [True, False])
def test_a_withdrawal_names_its_question_and_ends_a_request_that_nothing_may_follow(*, may_be_followed: bool) -> None:
    gate, played = made(says(503))
    for _ in range(2):
        asyncio.run(gate.admit("t1", "r1", "m", 10, 100, tier="free", may_be_followed=may_be_followed))
    told = gate._settlements.entries()
    asked = [body["nonce"] for _, body in played.asked]
    assert [(each["nonce"], each["final"]) for each in told] == [(nonce, not may_be_followed) for nonce in asked]
    assert len(set(asked)) == 2
    assert "" not in asked


def test_a_question_that_is_cancelled_is_withdrawn() -> None:
    gate, played = made(says(200))

    async def run() -> None:
        async def hang(*call: Any) -> Answer:
            await asyncio.sleep(60)
            raise AssertionError

        played.call = hang  # type: ignore[method-assign]
        asking = asyncio.ensure_future(gate.admit("t1", "gone", "m", 10, 100))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(run())
    assert [(told["request_id"], told["dispatched"]) for told in gate._settlements.entries()] == [("gone", False)]


def test_what_is_being_sent_when_the_gate_stops_is_not_lost() -> None:
    gate, played = made(says(500), tier_modes={"": "allow"})
    admitted(gate, "r1")
    answer = played.call

    async def run() -> None:
        async def hang(*call: Any) -> Answer:
            await asyncio.sleep(60)
            raise AssertionError

        played.call = hang  # type: ignore[method-assign]
        sending = asyncio.ensure_future(gate._send_waiting())
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        played.call, played.say = answer, says(204)  # type: ignore[method-assign]
        await gate.stop()

    asyncio.run(run())
    assert [body["decisions"][0]["request_id"] for path, body in played.asked if path == "/v1/decisions"] == ["r1"]


def test_a_refusal_tells_what_its_quotas_want_in_an_outage_and_a_refused_lease_changes_nothing() -> None:
    gate, played = made(lambda path, body: Answer(429, (), b'{"on_unavailable":"deny"}'))
    assert admitted(gate, "r1", "enterprise").status == 429
    played.say = says(403)
    asyncio.run(gate._keeper._ask(("t1", "m", ""), None))
    played.say = says(503)
    assert not admitted(gate, "r2", "enterprise").allowed


def test_the_background_work_goes_on_whatever_it_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "TURN_S", 0.001)
    told = {"/v1/leases": b'{"granted":"all of it"}', "/v1/settlements": b"", "/v1/decisions": b""}
    gate, played = made(lambda path, body: Answer(200, (), told.get(path, b"")), keep_in=tmp_path)

    async def run() -> None:
        await gate.start()
        assert gate._kept is not None
        gate._kept.add({"request_id": "r0"})
        with monkeypatch.context() as broken:
            broken.setattr(os, "ftruncate", lambda *given: os.close(-1))  # OSError
            while gate.counts["background_failures"] < 2:
                await asyncio.sleep(0.001)
        gate._keeper.busy["t1", "m", ""] = 8
        while not any(path == "/v1/leases" for path, _ in played.asked):
            await asyncio.sleep(0.001)
        gate.settle("t1", "r1", input_tokens=1, output_tokens=1)
        while gate.waiting:
            await asyncio.sleep(0.001)
        await gate.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(("told", "answer"), [(b',"max_tokens":64', ("slice", 64)), (b"", ("service", 0))])
def test_a_request_without_max_tokens_uses_a_slice_that_says_how_many(told: bytes, answer: tuple[str, int]) -> None:
    granted = b'"granted":{"requests":5,"input_tokens":90,"output_tokens":90,"concurrency":5}'
    gate, _ = made(lambda path, body: Answer(200, (), b'{"lease_id":"x","ttl_ms":9000,%b%b}' % (granted, told)))
    asyncio.run(gate._keeper._ask(("t1", "m", ""), None))
    found = asyncio.run(gate.admit("t1", "r1", "m", 10, None))
    assert (found.source, found.max_tokens) == answer


def test_a_slice_that_is_not_answered_keeps_no_other_waiting() -> None:
    gate, played = made(says(200))
    granted = b'{"lease_id":"x","granted":{"requests":5},"ttl_ms":9000}'

    async def run() -> None:
        other_came = asyncio.Event()

        async def call(method: str, path: str, body: bytes, within_s: float) -> Answer:
            if msgspec.json.decode(body)["tenant_id"] == "silent":
                await other_came.wait()
                raise NoAnswer(path)
            other_came.set()
            return Answer(200, (), granted)

        played.call = call  # type: ignore[method-assign]
        for tenant in ("silent", "other"):
            gate._keeper.busy[tenant, "m", ""] = 8
        await gate._keeper.renew()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert [tenant for tenant, _, _ in gate._slices] == ["other"]
    assert gate.counts["background_failures"] == 1


def test_a_slice_whose_answer_was_lost_is_the_same_when_it_is_asked_for_again_or_is_given_back() -> None:
    def lost(path: str, body: Any) -> Answer:
        raise NoAnswer(path)

    def renewed(gate: QuotaGate, asked: int) -> None:
        gate._keeper.busy["t1", "m", ""] = asked
        asyncio.run(gate._keeper.renew())

    for again in (True, False):
        gate, played = made(lost)
        renewed(gate, 8)
        played.say = lambda path, body: Answer(200, (), b'{"lease_id":"x","granted":{"requests":5},"ttl_ms":9000}')
        renewed(gate, 8 if again else 0)
        (_, first), (path, second) = played.asked
        assert path == ("/v1/leases" if again else f"/v1/leases/t1~{first['name']}")
        assert not again or second["name"] == first["name"]
        assert not gate._keeper._names
        assert bool(gate._slices) == again


GRANTED = (
    b'{"lease_id":"x","granted":{"requests":5,"input_tokens":90,"output_tokens":90,"concurrency":5},"ttl_ms":1000}'
)


def test_a_slice_that_is_over_is_given_back_until_the_service_has_it_and_after_what_it_was_used_for() -> None:
    """What its requests used is held by the slice until it is told: given back before, others could have it."""
    now, away = 0.0, {"/v1/settlements", "/v1/leases/x"}

    def say(path: str, body: Any) -> Answer:
        if path in away:
            raise NoAnswer(path)
        return Answer(200, (), GRANTED)

    def turn() -> list[tuple[str, Any]]:
        """What the service is asked in one."""
        played.asked.clear()
        asyncio.run(gate._send_waiting())
        asyncio.run(gate._keeper.renew())
        return played.asked

    gate, played = made(say, lambda: now)
    asyncio.run(gate._keeper._ask(("t1", "m", ""), None))
    assert asyncio.run(gate.admit("t1", "r1", "m", 10, 50)).source == "slice"
    now = 2.0
    gate.settle("t1", "r1", input_tokens=10, output_tokens=30)
    assert [path for path, _ in turn()] == ["/v1/settlements"]
    away.remove("/v1/settlements")
    for _ in range(2):
        (path, body), *_ = reversed(turn())
        assert (path, body["unused"]["output_tokens"], body["in_flight"]) == ("/v1/leases/x", 60, 0)
    away.clear()
    assert [path for path, _ in turn()] == ["/v1/leases/x"]
    assert turn() == []


def test_a_slice_that_is_given_back_at_the_end_keeps_what_the_service_could_not_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "STOP_WITHIN_S", 0.01)
    gate, played = made(lambda path, body: Answer(503 if path == "/v1/settlements" else 200, (), GRANTED))
    asyncio.run(gate._keeper._ask(("t1", "m", ""), None))
    for request_id in ("r1", "r2", "r3"):
        assert asyncio.run(gate.admit("t1", request_id, "m", 10, 20)).source == "slice"
    for request_id in ("r1", "r2"):
        gate.settle("t1", request_id, input_tokens=10, output_tokens=5)
    asyncio.run(gate.stop())
    assert played.asked[-1][0] == "/v1/leases/x"
    assert (played.asked[-1][1]["in_flight"], played.asked[-1][1]["unused"]["output_tokens"]) == (3, 60)


def test_decisions_outlive_the_process_that_made_them(tmp_path: Path) -> None:
    async def run(gate: QuotaGate, *request_ids: str) -> None:
        await gate.start()
        for request_id in request_ids:
            await gate.admit("t1", request_id, "m", 10, 100, tier="enterprise")
        await gate.stop()

    killed, _ = made(says(500), keep_in=tmp_path, failures_to_open=100)
    asyncio.run(run(killed, "r1", "r2"))
    (left,) = tmp_path.iterdir()
    first, second, _ = left.read_bytes().split(b"\n")
    broken = b'{"tenant_id":"t1","req'  # a disk that was full; and it died while it wrote
    left.write_bytes(b"\n".join((first, broken + second, second, broken)))
    living = KeptDecisions(tmp_path)
    living.add({"request_id": "of another process"})
    gate, played = made(says(204), keep_in=tmp_path)
    asyncio.run(run(gate))
    ((_, told),) = played.asked
    assert [each["request_id"] for each in told["decisions"]] == ["r1", "r2"]
    living.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_of_a_decision_for_which_the_disk_has_no_room_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptDecisions(tmp_path)
    assert kept.add({"request_id": "r1"})
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    assert not kept.add({"request_id": "r2"})
    monkeypatch.undo()
    assert kept.add({"request_id": "r3"})
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b'{"request_id":"r1"}\n{"request_id":"r3"}\n'
