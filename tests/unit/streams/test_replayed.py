"""Events behind the horizon beside what is held of them, and where what was added to a dropped day is kept."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from serving_adapter.identity import content_digest_of
from streams.retention.archive_manifest import ArchiveFile, Manifest, folder_of, manifest_of
from streams.rules.chunks import Accepted, read
from streams.rules.duplicates import Version, arriving
from streams.rules.replayed import Compared, Held, Standing, refused, standing
from tests.builders import event_json, make_record

AT = datetime(2026, 10, 14, tzinfo=UTC)
DAY = date(2026, 10, 14)


def message(**changed: object) -> Accepted:
    found = read(make_record(0, event_json(**({"timestamp": AT.isoformat()} | changed))))
    assert isinstance(found, Accepted)
    assert found.content_digest == content_digest_of(found.event)
    return found


def held(where: str = "in the archive", **changed: object) -> Held:
    return Held(arriving(message(**changed)), where)


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        ([], Standing.NEW),
        ([held()], Standing.THERE),
        ([held(timestamp=(AT - timedelta(days=9)).isoformat())], Standing.THERE),
        ([held(output_tokens=99)], Standing.CONFLICT),
        ([held(usage_source="estimate", status="lost", output_tokens=1)], Standing.SETTLED),
        ([held(usage_source="estimate", status="lost", output_tokens=1), held()], Standing.THERE),
        ([held(usage_source="gateway", output_tokens=1)], Standing.SETTLED),
    ],
)
def test_an_event_behind_the_horizon_is_new_only_where_nothing_is_held_of_it(
    stored: list[Held], what: Standing
) -> None:
    found, why = standing(message(), stored)
    assert found is what
    not_entering = refused(message(), found, why)
    reason = {Standing.CONFLICT: "conflict", Standing.SETTLED: "too_old"}.get(what)
    assert (not_entering.reason if not_entering else None) == reason
    assert bool(why) == bool(reason)


def test_a_weaker_telling_of_what_is_held_is_there_and_a_conflict_says_where_the_other_is() -> None:
    assert standing(message(usage_source="gateway", output_tokens=1), [held()])[0] is Standing.THERE
    _, why = standing(message(output_tokens=99), [held("in the archive of 2026-10-14")])
    assert why == f"other content than the one of {AT.isoformat()} in the archive of 2026-10-14"


def test_a_comparison_holds_for_what_it_looked_for_as_long_as_nothing_more_is_forgotten() -> None:
    compared = Compared(AT, frozenset([b"a", b"b"]), {b"a": [Held(Version(b"", "engine", AT, None), "")]})
    assert compared.covers([b"a", b"b"], AT)
    assert not compared.covers([b"a", b"c"], AT)
    assert not compared.covers([b"a"], AT + timedelta(hours=1))
    assert not Compared().covers([b"a"], None)


def test_a_supplement_has_a_folder_of_its_own_and_the_days_own_manifest_is_as_it_was() -> None:
    assert (folder_of(DAY, 0), folder_of(DAY, 2)) == ("events/day=2026-10-14", "supplements/day=2026-10-14/part=002")
    file = ArchiveFile("f.parquet", 0, 1, 10, "00" * 32, "11" * 32)
    for part in (0, 2):
        manifest = Manifest(DAY, 1, (file,), {"kafka:t/0": 1}, "7", part)
        assert manifest_of(manifest.to_json()) == manifest
        assert (b'"part"' in manifest.to_json()) == bool(part)
