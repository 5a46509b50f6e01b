"""Other sources' tellings that are told apart for a chunk at once are what they would be one after another."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.events import SOURCE_STRENGTH
from streams.ingest import resends, supersedes
from streams.ingest.stored_versions import Stored
from streams.rules.chunks import Accepted
from streams.rules.duplicates import Verdict, arriving, in_force, judge
from tests.builders import RECEIVED
from tests.property.test_resends import messages

seals = st.sampled_from([None, RECEIVED, RECEIVED + timedelta(seconds=1)])


def stored_of(before: list[Accepted], chunk: list[Accepted]) -> dict[bytes, list[Stored]]:
    """What is stored when the chunk's messages are judged: each identity's first, and further versions."""
    stored: dict[bytes, list[Stored]] = {}
    for place, message in enumerate([*before, *chunk]):
        known = stored.setdefault(resends.due(message).key, [])
        version = arriving(message)
        if not known or (
            place < len(before) and judge([one.version for one in known], version) in (Verdict.STRONGER, Verdict.WEAKER)
        ):
            known.append(Stored(version, "kafka:t/0", place))
    return stored


@given(messages(), messages(), seals)
def test_what_is_taken_at_once_is_alone_and_what_it_would_be_in_its_turn(
    before: list[Accepted], chunk: list[Accepted], sealed_before: datetime | None
) -> None:
    stored = stored_of(before, chunk)
    arrived = [resends.due(message) for message in chunk]
    alone = supersedes.candidates(arrived)
    assert [each.key for each in alone] == sorted({each.key for each in alone})
    taken = {telling.due: telling for telling in supersedes.tellings(stored, alone, sealed_before)}
    for each in arrived:
        versions = [one.version for one in stored[each.key]]
        verdict = judge(versions, arriving(each.message))
        counting = in_force(versions)
        others = [other for other in arrived if other is not each and other.key == each.key]
        sealed = sealed_before is not None and counting.completed_at < sealed_before
        if others or sealed or verdict not in (Verdict.STRONGER, Verdict.WEAKER):
            assert each not in taken
            continue
        telling = taken[each]
        assert telling.in_force.version == counting
        assert telling.stronger is (verdict is Verdict.STRONGER)
        strength = SOURCE_STRENGTH[each.message.event.usage_source]
        assert telling.stronger is (strength > max(version.strength for version in versions))


@given(messages())
def test_what_is_not_stored_supersedes_nothing(chunk: list[Accepted]) -> None:
    alone = supersedes.candidates([resends.due(message) for message in chunk])
    assert supersedes.tellings({}, alone, None) == []
