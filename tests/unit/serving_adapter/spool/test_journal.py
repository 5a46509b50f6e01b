"""A boot's journal on a real disk: what is durable when, how a failing disk is survived, what recovery makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from serving_adapter.clock import ReplicaClock
from serving_adapter.events import UsageEvent
from serving_adapter.spool import writer
from serving_adapter.spool.disk_bound import Policy
from serving_adapter.spool.folders import BEGIN, BootFolder, DurableMark, Position, WriterLock, boots, used_bytes
from serving_adapter.spool.frames import Frame, scan
from serving_adapter.spool.journal import BootJournal, NoRoom, SpoolSettings
from serving_adapter.spool.reader import read_from
from serving_adapter.spool.records import Farewell, OpenRequest
from serving_adapter.spool.recovery import recover, replay
from serving_adapter.spool.writer import SpoolFailed
from tests.adapter_builders import ended, events, lost, open_journal, records

NOW = ReplicaClock().now_ns


async def serve(journal: BootJournal, *names: str) -> None:
    for name in names:
        journal.end(await journal.start(lost(name)), ended(name))


def test_a_start_is_on_disk_when_it_returns_and_ends_are_numbered(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)

    async def run() -> None:
        number = await journal.start(lost("q1"))
        assert list(replay(journal.folder)[0].open) == [number]
        await serve(journal, "q2")
        journal.end(number, ended("q1"))

    asyncio.run(run())
    assert journal.close() is not None
    assert [(event.request_id, event.seq) for event in events(journal.folder)] == [("q2", 1), ("q1", 2)]
    assert isinstance(records(journal.folder)[-1], Farewell)


def test_requests_that_begin_together_share_a_sync(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)

    async def run() -> None:
        numbers = await asyncio.gather(*(journal.start(lost(f"q{i}")) for i in range(100)))
        assert len(set(numbers)) == 100

    before = journal.syncs
    asyncio.run(run())
    assert journal.syncs - before <= 10
    assert journal.close() is None
    assert recover(journal.folder, NOW) is not None


def test_a_killed_boot_is_recovered_once_whatever_byte_it_was_cut_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crash matrix: cut around each frame and in between, recovered twice, some again in the middle of recovery.

    That each byte is as good as another is what the frames' property tests say.
    """
    journal = open_journal(tmp_path / "s")

    async def run() -> None:
        await serve(journal, "q1")
        number = await journal.start(lost("q2"))
        await journal.start(lost("q3"))
        journal.progress([OpenRequest(number, 7, 4, 2, 7, 2)])
        await serve(journal, "q4")
        journal.end(number, ended("q2"))

    asyncio.run(run())
    assert journal.close() is None
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # what is cut off is played here
    (whole,) = (journal.folder.segment(number).read_bytes() for number in journal.folder.segments())
    frames = [found for found in scan(whole) if isinstance(found, Frame)]
    assert len(frames) >= 8
    cuts = {at + off for frame in frames for at in (frame.begin, frame.end) for off in (-1, 0, 1, 5)}
    for cut in sorted(cuts & set(range(len(whole) + 1)) | set(range(0, len(whole), 17))):
        folder = BootFolder(tmp_path / "cut" / "r1" / str(cut))
        folder.path.mkdir(parents=True)
        folder.segment(1).write_bytes(whole[:cut] + bytes(50))
        before, _, _ = replay(folder)
        for _ in range(2):
            recover(folder, NOW)
        check_recovered(folder, before.started)
        recovered = folder.segment(2).read_bytes()
        if cut in (frames[2].end, frames[5].end):
            for again in range(0, len(recovered), 61):
                folder.segment(2).write_bytes(recovered[:again])
                (folder.path / "durable").unlink()
                recover(folder, NOW)
                check_recovered(folder, before.started)
                folder.segment(3).unlink(missing_ok=True)
        shutil.rmtree(folder.path)


def test_a_heartbeat_says_from_when_on_a_kill_would_leave_lost_events(tmp_path: Path) -> None:
    """Of each moment: what recovery makes of the disk as it is then is dated no earlier than was said before."""
    failing = [False]

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if failing[0]:
            raise OSError("the disk fails")
        return os.pwrite(fd, data, offset)

    settings = SpoolSettings(tmp_path)
    journal = BootJournal(settings, "r1", ReplicaClock(), pwrite=pwrite)
    said: list[str] = []

    def look() -> None:
        standing = journal.standing()
        would_be_lost = [event.timestamp for event in replay(journal.folder)[0].lost()]
        said.append(standing.lost_from or standing.at)
        assert all(str(at) >= max(said) for at in would_be_lost), (would_be_lost, said)

    async def run() -> None:
        assert journal.standing().lost_from is None
        one, other = await journal.start(lost("q1")), await journal.start(lost("q2"))
        look()
        journal.progress([OpenRequest(one, 7, 4, 2, 7, 2), OpenRequest(other, 7, 4, 2, 7, 2)])
        assert journal._writer.flush(60)
        look()
        assert said[1] > said[0]
        failing[0] = True
        journal.progress([OpenRequest(one, 8, 5, 2, 7, 2)])
        journal.end(other, ended("q2"))
        while journal.failing is None:
            await asyncio.sleep(0.01)
        look()
        assert said[2] == said[1], "what no disk has is not dated by it"
        failing[0] = False
        while journal.failing is not None:
            await asyncio.sleep(0.01)
        journal.end(one, ended("q1"))
        assert journal._writer.flush(60)
        look()
        assert journal.standing().lost_from is None

    asyncio.run(run())
    assert journal.close() is not None


def check_recovered(folder: BootFolder, started: int) -> None:
    state, torn, damage = replay(folder)
    found = {event.seq: event for event in events(folder)}
    assert sorted(found) == list(range(1, started + 1))
    assert len({event.request_id for event in found.values()}) == started
    assert state.lost() == []
    assert not torn
    assert not damage
    if state.boot is not None:
        assert state.farewell is not None
        assert state.farewell.last_seq == started
        assert state.started == state.ended + sum(event.status == "lost" for event in found.values())


def test_a_boot_that_said_farewell_is_read_to_its_end_though_its_mark_lies_behind(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    asyncio.run(serve(journal, "q1", "q2"))
    assert journal.close() is not None
    mark = DurableMark(journal.folder, writing=True)
    mark.publish(Position(1, 9))  # the power went before the system had written the mark back
    mark.close()
    assert not events(journal.folder)
    assert recover(journal.folder, NOW) is None
    assert [event.request_id for event in events(journal.folder)] == ["q1", "q2"]
    assert isinstance(records(journal.folder)[-1], Farewell)


def test_a_record_that_says_what_it_may_not_is_damage_and_the_others_are_recovered(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)

    async def run() -> None:
        await journal.start(lost("q1"))
        await journal.start(replace(lost("q2"), labels={str(i): "" for i in range(17)}))

    asyncio.run(run())
    journal.close()
    found = recover(journal.folder, NOW)
    assert found is not None
    assert (found.lost, len(found.damage)) == (1, 1)
    state, _, _ = replay(journal.folder)
    assert state.farewell is not None
    assert (state.open, state.last_seq) == ({}, 1)


def test_progress_of_however_many_requests_can_be_read(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    huge = 2**53 - 1
    journal.progress([OpenRequest(number, huge, huge, huge, huge, huge, huge) for number in range(1, 25_001)])
    journal.close()
    state, _, damage = replay(journal.folder)
    assert (len(state.progress), damage) == (25_000, [])


def test_segments_follow_one_another_and_the_last_one_alone_is_enough(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, segment_bytes=4096)

    async def run() -> None:
        number = await journal.start(lost("open"))
        journal.progress([OpenRequest(number, 7, 4, 2, 7, 2, 900)])
        await serve(journal, *(f"q{i}" for i in range(40)))

    asyncio.run(run())
    assert journal.close() is None
    segments = journal.folder.segments()
    assert len(segments) > 3
    whole, _, _ = replay(journal.folder)
    for number in segments[:-1]:
        journal.folder.segment(number).unlink()
    last, _, _ = replay(journal.folder)
    assert (last.started, last.ended, last.last_seq) == (whole.started, whole.ended, whole.last_seq) == (41, 40, 40)
    assert last.tally.all() == whole.tally.all()
    found = recover(journal.folder, NOW)
    assert found is not None
    assert found.lost == 1
    (gone,) = (event for event in events(journal.folder) if event.status == "lost")
    assert (gone.input_tokens, gone.output_tokens, gone.cache_hit_tokens, gone.gpu_us) == (7, 4, 2, 900)
    assert gone.timestamp == whole.progress[1][0]


class Disk:
    """A disk that fails when told, or hangs."""

    def __init__(self) -> None:
        self.fails = False
        self.moves = threading.Event()
        self.moves.set()

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if self.fails:
            raise OSError(28, "No space left on device")
        self.moves.wait(60)
        return os.pwrite(fd, data, offset)


def test_on_a_failing_disk_nobody_begins_and_no_end_is_lost(tmp_path: Path) -> None:
    disk = Disk()
    journal = BootJournal(SpoolSettings(tmp_path), "r1", ReplicaClock(), pwrite=disk.pwrite)
    journal._writer._retry_after = 0.05

    async def run() -> None:
        number = await journal.start(lost("q1"))
        disk.fails = True
        with pytest.raises(NoRoom):
            await journal.start(lost("q2"))
        journal.end(number, ended("q1"))
        with pytest.raises(NoRoom):
            await journal.start(lost("q3"))
        disk.fails = False
        while journal.failing:
            await asyncio.sleep(0.01)
        await serve(journal, "q4")

    asyncio.run(run())
    assert journal.close() is not None
    assert [(event.request_id, event.seq) for event in dedup(events(journal.folder))] == [("q1", 1), ("q4", 2)]
    state, _, _ = replay(journal.folder)
    assert (state.started, state.ended) == (2, 2)


def dedup(found: list[UsageEvent]) -> list[UsageEvent]:
    return list({event.seq: event for event in found}.values())


def test_serve_memory_goes_on_without_the_disk_and_says_so(tmp_path: Path) -> None:
    disk, shipped = Disk(), list[UsageEvent]()
    settings = SpoolSettings(tmp_path, policy="serve_memory")
    journal = BootJournal(settings, "r1", ReplicaClock(), pwrite=disk.pwrite, undurable=shipped.append)
    journal._writer._retry_after = 0.05

    async def run() -> None:
        disk.fails = True
        await serve(journal, "q1")
        assert journal.not_durable
        assert [event.request_id for event in shipped] == ["q1"]
        disk.fails = False
        while journal.failing:
            await asyncio.sleep(0.01)

    asyncio.run(run())
    journal.close()
    assert [event.seq for event in dedup(events(journal.folder))] == [1]


def test_a_disk_that_hangs_fails_and_who_was_refused_meanwhile_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    journal = BootJournal(SpoolSettings(tmp_path), "r1", ReplicaClock(), pwrite=disk.pwrite)
    journal._writer._retry_after = 0.01

    async def run() -> None:
        disk.moves.clear()
        monkeypatch.setattr(writer, "HANGS_AFTER_S", 0.05)
        with pytest.raises(NoRoom, match=r"has taken more than|hangs"):
            await asyncio.wait_for(journal.start(lost("q1")), 30)
        while not journal.disk().failing:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(writer, "HANGS_AFTER_S", 60.0)
        disk.moves.set()
        while not journal.standing().started:
            journal.measure()
            with contextlib.suppress(NoRoom):
                await serve(journal, "q2")
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert journal.close() is not None
    state, _, _ = replay(journal.folder)
    assert (state.open, state.started, state.ended) == ({}, 1, 1)


def test_what_memory_holds_while_a_disk_hangs_or_fails_is_sent_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, shipped = Disk(), list[UsageEvent]()
    settings = SpoolSettings(tmp_path, policy="serve_memory")
    journal = BootJournal(settings, "r1", ReplicaClock(), pwrite=disk.pwrite, undurable=shipped.append)
    journal._writer._retry_after = 0.01

    async def sent(number: int) -> list[str]:
        while len(shipped) < number:
            journal.measure()
            await asyncio.sleep(0.01)
        return [event.request_id for event in shipped]

    async def begin() -> tuple[int, int]:
        return await journal.start(lost("q1")), await journal.start(lost("q2"))

    async def run() -> None:
        disk.fails = True
        journal.end(first, ended("q1"))  # no write has failed yet
        assert await sent(1) == ["q1"]
        disk.fails = False
        while journal.failing:
            await asyncio.sleep(0.01)
        disk.moves.clear()
        journal.end(second, ended("q2"))
        monkeypatch.setattr(writer, "HANGS_AFTER_S", 0.05)
        number = await asyncio.wait_for(journal.start(lost("q3")), 30)
        assert await sent(2) == ["q1", "q2"]
        assert journal.not_durable
        journal.end(number, ended("q3"))
        assert await sent(3) == ["q1", "q2", "q3"]

    first, second = asyncio.run(begin())  # on a loop of its own, which looks no sooner than it did then
    asyncio.run(run())
    closing = threading.Timer(0.1, disk.moves.set)
    closing.start()
    journal.close(within_s=60)
    closing.join()
    assert {event.seq for event in events(journal.folder)} >= {1, 2}, "the disk has them, too"
    assert [event.seq for event in shipped] == [1, 2, 3], "once each"


def test_a_process_that_ends_before_its_disk_hands_on_what_was_not_written(tmp_path: Path) -> None:
    disk, shipped = Disk(), list[UsageEvent]()
    settings = SpoolSettings(tmp_path, policy="serve_memory")
    journal = BootJournal(settings, "r1", ReplicaClock(), pwrite=disk.pwrite, undurable=shipped.append)

    async def run() -> None:
        number = await journal.start(lost("q1"))
        disk.moves.clear()
        journal.end(number, ended("q1"))

    asyncio.run(run())
    with pytest.raises(SpoolFailed):
        journal.close(within_s=0.1)
    assert [event.request_id for event in shipped] == ["q1"]
    disk.moves.set()


def test_a_disk_that_works_again_is_found_though_nothing_runs(tmp_path: Path) -> None:
    disk = Disk()
    journal = BootJournal(SpoolSettings(tmp_path), "r1", ReplicaClock(), pwrite=disk.pwrite)
    journal._writer._retry_after = 0.01

    async def run() -> None:
        disk.fails = True
        with pytest.raises(NoRoom):
            await journal.start(lost("q1"))
        disk.fails = False
        while journal.failing is not None:
            journal.measure()  # as the replica does each second
            await asyncio.sleep(0.01)
        await serve(journal, "q2")

    asyncio.run(run())
    assert journal.close() is not None
    assert [event.request_id for event in events(journal.folder)] == ["q2"]


@pytest.mark.parametrize("policy", ["block", "shed_free", "serve_memory"])
def test_a_spool_that_fills_up_stays_within_its_bound(tmp_path: Path, policy: Policy) -> None:
    """Whoever is let in has an event; ends of what runs find room; what memory alone has is handed on."""
    bound, shipped = 128 * 1024, list[UsageEvent]()
    settings = SpoolSettings(tmp_path, bound, policy, segment_bytes=4096)
    undurable = shipped.append if policy == "serve_memory" else None
    journal = BootJournal(settings, "r1", ReplicaClock(), undurable=undurable)
    served, refused = list[str](), dict[bool, int]()

    async def run() -> None:
        begun = await journal.start(lost("long"))
        for i in range(250):
            may_be_shed = i % 2 == 0
            journal.measure()
            try:
                number = await journal.start(lost(f"q{i}"), may_be_shed=may_be_shed)
            except NoRoom:
                refused.setdefault(may_be_shed, i)
            else:
                served.append(f"q{i}")
                journal.end(number, ended(f"q{i}"))
        journal.amend(replace(ended("q0"), kind="correction", correction_no=1, input_tokens=0, output_tokens=0))
        journal.progress([OpenRequest(begun, 7, 4, 2, 7, 2)])
        journal.end(begun, ended("long"))

    asyncio.run(run())
    assert journal.close() is not None
    assert bound * 0.75 < used_bytes(tmp_path) < bound
    kept = events(journal.folder)
    told = sorted([*kept, *shipped], key=lambda event: event.seq or 0)
    assert [event.seq for event in told] == list(range(1, len(served) + 3))
    assert {event.request_id for event in told} == {*served, "long"}
    assert "long" in {event.request_id for event in kept}, "its room was kept"
    state, _, _ = replay(journal.folder)
    assert (state.open, state.progress, state.started) == ({}, {}, state.ended)
    if policy == "serve_memory":
        assert (len(served), refused, journal.not_durable) == (250, {}, True)
        assert shipped[-1].kind == "correction"
        assert journal.spooled == len(kept)
    else:
        assert not shipped
        assert not journal.not_durable
        assert refused[False] - refused[True] >= (4 if policy == "shed_free" else -1)


def test_without_a_way_past_the_disk_nobody_is_served_from_memory(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, policy="serve_memory", bound_bytes=1)
    with pytest.raises(NoRoom):
        asyncio.run(journal.start(lost("q1")))
    assert journal.close() is not None


def test_a_caller_that_is_gone_before_its_start_is_durable_has_an_event(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)

    async def run() -> None:
        task = asyncio.create_task(journal.start(lost("q1")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert journal.close() is not None
    (event,) = events(journal.folder)
    assert (event.status, event.fault, event.output_tokens) == ("aborted", "platform", 0)


def test_a_live_boot_is_not_recovered(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    assert WriterLock.take(journal.folder) is None
    assert recover(journal.folder, NOW) is None
    journal.close()
    assert recover(journal.folder, NOW) is None


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.adapter_builders import ended, lost, open_journal

async def run():
    journal = open_journal(Path(sys.argv[1]), segment_bytes=20_000)
    async def one(lane):
        for i in range(10**9):
            number = await journal.start(lost(f"q{lane}-{i}"))
            print("S", f"q{lane}-{i}", flush=True)
            await asyncio.sleep(0)
            journal.end(number, ended(f"q{lane}-{i}"))
    await asyncio.gather(*(one(lane) for lane in range(5)))
asyncio.run(run())
"""


def test_a_process_that_is_killed_has_an_event_for_each_start_that_it_told_of(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(300)]
    (folder,) = boots(tmp_path)
    assert recover(folder, NOW) is None, "it lives"
    child.send_signal(signal.SIGKILL)
    told += child.stdout.readlines()
    child.wait()
    found = recover(folder, NOW)
    assert found is not None
    assert found.damage == []
    state, _, _ = replay(folder)
    kept = {event.seq: event.request_id for event in events(folder)}
    assert sorted(kept) == list(range(1, state.started + 1))
    assert {line.split()[1] for line in told if line.endswith("\n")} <= set(kept.values())
    assert len(set(kept.values())) == len(kept)
    assert list(read_from(folder, BEGIN))
