"""Resends that are told apart for a chunk at once are what they would be one after another."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.events import SOURCE_STRENGTH, decode
from streams.ingest import resends
from streams.rules.chunks import Accepted
from streams.rules.duplicates import Verdict, Version, arriving, judge
from tests.builders import RECEIVED, make_record, uuid_v7

MINTED = uuid_v7(RECEIVED)
REQUESTS = ("req-1", "req-2", MINTED)

sources = st.sampled_from(sorted(SOURCE_STRENGTH))
digests = st.sampled_from([b"one", b"two"])
times = st.integers(0, 1).map(lambda seconds: RECEIVED + timedelta(seconds=seconds))
numberings = st.sampled_from([None, "boot-1", "boot-2"])


@st.composite
def messages(draw: st.DrawFn) -> list[Accepted]:
    made = []
    for position in range(draw(st.integers(0, 12))):
        boot = draw(numberings)
        by = {"replica_id": "r1", "boot_id": boot, "seq": position + 1} if boot else {}
        record = make_record(position, request_id=draw(st.sampled_from(REQUESTS)), usage_source=draw(sources), **by)
        made.append(Accepted(record, decode(record.value), draw(times), draw(digests)))
    return made


def one_after_another(
    stored: dict[bytes, list[Version]], arrived: list[resends.Due]
) -> tuple[dict[int, Verdict], dict[bytes, list[Version]]]:
    """Each message's verdict, and what is stored in the end."""
    after = {key: [*versions] for key, versions in stored.items()}
    verdicts = {}
    for message, key, *_ in arrived:
        verdict = verdicts[message.record.position] = judge(after[key], arriving(message))
        if verdict in (Verdict.STRONGER, Verdict.WEAKER):
            after[key].append(arriving(message))
    return verdicts, after


def changes(message: Accepted, verdict: Verdict, stored: list[Version]) -> bool:
    """Whether a message leaves anything: a later time, too, keeps an identity that ages by it."""
    if verdict is Verdict.RETIMED:
        return message.event.request_id != MINTED and message.completed_at > max(v.completed_at for v in stored)
    return verdict is not Verdict.DUPLICATE


@given(messages(), messages())
def test_what_is_told_at_once_is_what_it_would_be_in_its_turn(before: list[Accepted], chunk: list[Accepted]) -> None:
    arrived = [resends.due(message) for message in chunk]
    firsts: dict[bytes, list[Version]] = {}
    earlier = [resends.due(message) for message in before] + arrived
    for message, key, *_ in earlier:
        firsts.setdefault(key, [arriving(message)])
    _, stored = one_after_another(firsts, earlier[: len(before)])
    verdicts, after = one_after_another(stored, arrived)

    told = resends.plain(stored, arrived)
    left = [each for each in arrived if each.message.record.position not in told]
    assert all(outcome.value == verdicts[position].value for position, outcome in told.items())
    rest, after_rest = one_after_another(stored, left)
    assert rest == {position: verdict for position, verdict in verdicts.items() if position not in told}
    assert after_rest == after

    assert {each.key for each in left} == {
        key for message, key, *_ in arrived if changes(message, verdicts[message.record.position], stored[key])
    }


@given(messages())
def test_what_is_not_stored_is_no_resend(chunk: list[Accepted]) -> None:
    assert resends.plain({}, [resends.due(message) for message in chunk]) == {}
