"""GPU time comes with the event, or after it as a correction; all of it together is what the engine was busy for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from msgspec.structs import replace

from serving_adapter.engine.gpu_reports import GpuSender
from serving_adapter.identity import event_id_text_of, identity_of
from serving_adapter.quota import QuotaGate
from serving_adapter.serving import gpu_times
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.spool import journal
from tests.adapter_builders import events
from tests.engine_double import OutputProcessor
from tests.fixtures_adapter import Served, serving

ASK = {"model": "tiny", "prompt": "a b c", "max_tokens": 2, "n": 2}


@pytest.fixture
def sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuSender:
    monkeypatch.setenv("TOLLBOOK_GPU_SOCKET", str(tmp_path / "gpu"))
    return GpuSender(str(tmp_path / "gpu"))


def ids(served: Served) -> list[str]:
    return [request.request_id for request in served.engine.seen]


async def seen(served: Served, number: int) -> None:
    while len(events(served.replica.journal.folder)) < number:
        await asyncio.sleep(0.002)


def test_an_event_waits_for_the_time_of_all_its_sequences(
    adapter_settings: AdapterSettings, sender: GpuSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_times, "WITHIN_S", 60.0)

    async def run() -> None:
        with pytest.raises(FileNotFoundError):  # the engine is up before its server: nothing is lost
            sender.send([("older", 5)], 5, 2)
        async with serving(adapter_settings) as served:
            asked = asyncio.create_task(served.ask(ASK))
            assert (await asked).status == 200
            first, second = ids(served)
            sender.send([(first, 700)], 705, 2)
            await asyncio.sleep(0.02)
            assert events(served.replica.journal.folder) == []
            sender.send([(second, 41)], 746, 2)
            (event,) = await served.told()
            assert event.gpu_us == 741
            page = served.replica.metrics.page(sender._since_us + 1000)
            for line in (
                "busy_seconds_total 0.000746",
                "idle_seconds_total 0.001254",
                "unowned_seconds_total 0.000005",
            ):
                assert f"engine_gpu_{line}" in page

    asyncio.run(run())


def test_what_comes_late_is_a_correction_of_gpu_time_alone(
    adapter_settings: AdapterSettings, sender: GpuSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_times, "WITHIN_S", 0.02)

    async def run() -> None:
        async with serving(adapter_settings) as served:
            await served.ask(ASK)
            (event,) = await served.told()
            assert (event.gpu_us, event.output_tokens) == (0, 4)
            first, second = ids(served)
            sender.send([(first, 30)], 30, 1)
            sender.send([(second, 12)], 42, 1)
            await seen(served, 3)
            _, *corrections = events(served.replica.journal.folder)
            assert [(c.kind, c.correction_no, c.gpu_us, c.seq) for c in corrections] == [
                ("correction", 1, 30, 2),
                ("correction", 2, 12, 3),
            ]
            assert {c.corrects for c in corrections} == {event_id_text_of(identity_of(event))}
            assert {c.input_tokens + c.output_tokens for c in corrections} == {0}
            standing = served.replica.journal.standing()
            assert (standing.started, standing.ended, standing.last_seq) == (1, 1, 3)

    asyncio.run(run())


def told_from(served: Served) -> str | None:
    """What a heartbeat would say."""
    assert served.replica.journal._writer.flush(30)
    return served.replica.journal.standing().lost_from


def test_until_all_gpu_time_is_told_heartbeats_prove_no_time_behind_the_event_for_a_minute(
    adapter_settings: AdapterSettings, sender: GpuSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_times, "WITHIN_S", 0.02)

    async def run() -> None:
        async with serving(adapter_settings) as served:
            await served.ask(ASK)
            await served.told(1)
            sender.send([(name, 1) for name in ids(served)], 2, 1)  # now it has told some
            await seen(served, 3)
            await served.ask(ASK)
            *_, event = await served.told(4)
            assert told_from(served) == event.timestamp
            first, second = ids(served)[2:]
            sender.send([(first, 30)], 30, 1)
            await seen(served, 5)
            assert told_from(served) == event.timestamp
            sender.send([(second, 12)], 42, 1)
            await seen(served, 6)
            assert told_from(served) is None
            monkeypatch.setattr(journal, "OWED_FOR_NS", 0)
            await served.ask(ASK)
            await served.told(7)
            assert told_from(served) is None

    asyncio.run(run())


def test_what_was_told_of_running_sequences_is_in_progress_and_event_and_a_correction_is_the_rest(
    adapter_settings: AdapterSettings, sender: GpuSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_times, "WITHIN_S", 0.02)

    async def run() -> None:
        async with serving(adapter_settings) as served:
            served.engine.goes_on.clear()
            asked = asyncio.create_task(served.ask(ASK | {"max_tokens": 5}))
            while len(served.engine.seen) < 2:
                await asyncio.sleep(0.002)
            first, second = ids(served)
            sender.send([], 50, 1, [(f"other{i}", 1) for i in range(300)] + [(first, 30), (second, 15)])
            await asyncio.sleep(0.02)
            ((attempt, *_),) = served.replica._open.values()
            assert attempt.so_far().gpu_us == 45
            served.replica.gate = gate = create_autospec(QuotaGate, instance=True)
            served.engine.goes_on.set()
            await asked
            (event,) = await served.told()
            assert gate.settle.call_args.kwargs["gpu_us"] == 45
            assert event.gpu_us == 45
            sender.send([(first, 40), (second, 15)], 60, 1)
            await seen(served, 2)
            _, correction = events(served.replica.journal.folder)
            assert (correction.kind, correction.gpu_us) == ("correction", 10)

    asyncio.run(run())


def test_an_engine_that_tells_nothing_is_waited_for_once(
    adapter_settings: AdapterSettings, sender: GpuSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            monkeypatch.setattr(gpu_times, "WITHIN_S", 0.02)
            await served.ask(ASK)
            await served.told(1)
            assert told_from(served) is None
            monkeypatch.setattr(gpu_times, "WITHIN_S", 60.0)
            await served.ask(ASK)
            await served.told(2)
            sender.send([], 0, 1)  # it does tell after all
            await asyncio.sleep(0.02)
            await served.ask(ASK)
            await asyncio.sleep(0.02)
            assert len(events(served.replica.journal.folder)) == 2

    asyncio.run(run())


def test_an_engine_that_is_counted_from_its_answers_is_not_waited_for(
    adapter_settings: AdapterSettings, sender: GpuSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_times, "WITHIN_S", 60.0)
    monkeypatch.setattr(OutputProcessor, "log_stats", False)

    async def run() -> None:
        async with serving(replace(adapter_settings, on_unknown_engine="stream")) as served:
            asking = asyncio.create_task(served.ask(ASK))
            await asyncio.sleep(0.02)
            sender.send([("its-own-name", 700)], 700, 1)
            assert (await asking).status == 200
            async with asyncio.timeout(30):
                (event,) = await served.told()
            assert (event.gpu_us, served.replica._gpu and served.replica._gpu._owed) == (0, {})

    asyncio.run(run())


def test_what_only_waits_for_its_gpu_time_when_the_server_goes_down_has_ended_as_it_did(
    adapter_settings: AdapterSettings, sender: GpuSender
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            fails = {"n": 1, "max_tokens": 5, "stream": True, "metadata": {"fail_at": 3}}
            await served.ask(ASK | fails)
            served.replica.cut_off_all()
            (event,) = await served.told()
            assert (event.status, event.finish_reason, event.output_tokens) == ("error", "engine_error", 2)

    asyncio.run(run())
