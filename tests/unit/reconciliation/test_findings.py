"""What signs of disagreement mean: each kind is told from the others, and sized."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from reconciliation.findings import admissions
from reconciliation.findings.admissions import Missing
from reconciliation.findings.finding import Finding, Interval, Kind, Share, is_news
from reconciliation.findings.look import worth
from reconciliation.findings.numbers import MissingNumbers, PassedOver, Sample, judge
from reconciliation.findings.partitions import _murmur2, partition_of
from reconciliation.findings.signs import (
    BootClock,
    SameAttempt,
    Seen,
    Twins,
    clock_skew,
    double_attempt,
    duplicate_emitter,
    overcounted,
    overmetered,
    unmetered,
    wrong_tenant,
)
from serving_adapter.events import UsageEvent
from streams.completeness.completeness_store import BootDifference
from streams.completeness.engine_witness import EngineComparison, EngineTokens, Standing
from streams.completeness.witnesses import Counts
from streams.rules.estimates import EstimatePrice

AT = datetime(2026, 10, 14, 8, tzinfo=UTC)
A, B = ("a", "llama"), ("b", "llama")
B_REPORTED = Counts(4, 400, 40, 0)
LOST = MissingNumbers(
    "r1", "b1", missing=3, last_seq=10,
    reported={A: Counts(6, 600, 60, 6), B: Counts(4, 400, 40, 0)},
    counted={A: Counts(4, 350, 45, 6), B: Counts(3, 300, 30, 0)},
    begins=AT, ends=AT + timedelta(hours=6),
)  # fmt: skip


def test_lost_events_are_known_to_the_token_where_heartbeats_account_for_all_numbers() -> None:
    found = judge(LOST)
    assert (found.kind, found.estimated_from) == (Kind.LOST_EVENTS, "")
    assert found.events == Interval(3, 3)
    assert found.shares == (
        Share("a", "llama", Interval(2, 2), Interval(250, 250), Interval(15, 15), Interval(0, 0)),
        Share("b", "llama", Interval(1, 1), Interval(100, 100), Interval(10, 10), Interval(0, 0)),
    )
    assert "its shipper did not deliver" in found.cause


def test_what_waits_in_quarantine_beside_makes_the_size_an_interval() -> None:
    assert judge(replace(LOST, missing=2)).events == Interval(1, 3)


def test_numbers_that_were_left_out_are_no_lost_events() -> None:
    everything = LOST.reported
    found = judge(replace(LOST, last_seq=13, counted=everything))
    assert (found.kind, found.events) == (Kind.GAP_IN_NUMBERING, Interval(0, 0))
    working = replace(LOST, last_seq=15, reported={A: Counts(8, 800, 80, 6), B: B_REPORTED}, last_missing=7)
    # One event and one number left out are under way; a later look is of more
    assert judge(replace(working, counted={A: Counts(7, 700, 70, 6), B: B_REPORTED}, in_motion=2)).key == found.key
    assert judge(replace(working, counted={A: Counts(7), B: B_REPORTED})).kind is Kind.LOST_EVENTS, "nothing is"


def test_a_boot_that_works_changes_neither_the_cause_nor_what_is_known_of_its_size() -> None:
    quiet = judge(replace(LOST, last_missing=7))
    more = Counts(8, 800, 80, 6)  # two more of each were made, of which one of A's came before any heartbeat told
    looks = [
        replace(LOST, last_seq=14, reported={A: more, B: Counts(6, 600, 60, 0)}, last_missing=7, in_motion=4),
        replace(LOST, counted={A: Counts(5, 450, 55, 6), B: LOST.counted[B]}, last_missing=7),
    ]
    for each in map(judge, looks):
        assert (each.key, each.cause) == (quiet.key, quiet.cause)
        assert each.size() != quiet.size()
        assert not is_news(quiet.size(), each.size())
        assert is_news(each.size(), quiet.size()), "now it is known"
        assert not is_news(each.size(), quiet.size(), settled=True)
    fewer = judge(replace(LOST, missing=2, last_missing=7, counted=LOST.counted | {B: Counts(4, 400, 40, 0)}))
    assert is_news(quiet.size(), fewer.size(), settled=True)
    assert fewer.cause != quiet.cause


def test_without_reports_the_size_is_estimated_from_what_came_around_that_time() -> None:
    samples = {
        A: Sample(300, (100.0, 10.0), (10.0, 1.0), (0.0, 0.0)),
        B: Sample(100, (100.0, 0.0), (10.0, 0.0), (0.0, 0.0)),
    }
    found = judge(replace(LOST, missing=400, last_seq=500, reported={}, samples=samples))
    assert found.kind is Kind.LOST_EVENTS
    assert "400 events" in found.estimated_from
    first, second = found.shares
    assert first.events.low < 300 < first.events.high
    assert second.events.low < 100 < second.events.high
    assert first.input_tokens.low < 30_000 < first.input_tokens.high
    nothing = judge(replace(LOST, reported={}, samples={}))
    assert (nothing.events, nothing.tokens) == (Interval(3, 3), Interval(0, 0))


def test_where_numbers_were_left_out_and_events_lost_the_size_is_from_what_was_told_of_to_all() -> None:
    """Six of nine numbers are of events, of which two were lost; the other three are of none, for all that is known."""
    samples = {A: Sample(300, (100.0, 0.0), (10.0, 0.0), (0.0, 0.0))}
    boot = replace(LOST, missing=5, last_seq=9, reported={A: LOST.reported[A]}, counted={A: LOST.counted[A]})
    found = judge(replace(boot, samples=samples))
    assert (found.kind, found.events) == (Kind.LOST_EVENTS, Interval(2, 5))
    assert found.tokens.low <= 250 + 15 <= found.tokens.high
    assert judge(replace(boot, samples={})).events == Interval(2, 5)


def test_what_belongs_into_one_partition_that_was_cut_was_lost_there() -> None:
    gone = PassedOver(partition_of("a", 8), 8, "it was truncated")
    only_a = replace(LOST, missing=2, counted=LOST.reported | {A: LOST.counted[A]})
    assert "it was truncated" in judge(only_a, [gone]).cause
    assert "shipper" in judge(only_a, [replace(gone, partition=(gone.partition + 1) % 8)]).cause


def test_a_boot_that_broke_off_is_named_as_the_cause() -> None:
    assert "broke off" in judge(replace(LOST, broke_off=True)).cause


@pytest.mark.parametrize(
    ("text", "hashed"),  # of Apache Kafka's own UtilsTest
    [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536),
     ("a-little-bit-longer-string", -1486304829), ("abc", 479470107)],
)  # fmt: skip
def test_keys_go_to_the_partitions_that_java_gives_them(text: str, hashed: int) -> None:
    assert _murmur2(text.encode()) == hashed % 2**32


SEEN = (Seen("a", "llama", Counts(9, 90, 9, 0)),)
TWO_HOURS = timedelta(hours=2)
CLOCK = BootClock("r1", "b1", TWO_HOURS, TWO_HOURS + timedelta(minutes=1), SEEN, AT, AT)


def test_a_clock_is_off_where_all_come_late_alike() -> None:
    found = clock_skew(CLOCK)
    assert found is not None
    assert found.kind is Kind.CLOCK_SKEW
    assert "2:00:00" in found.cause


def test_a_backlog_is_no_clock() -> None:
    assert clock_skew(replace(CLOCK, least=timedelta(minutes=2))) is None


def test_heartbeats_in_time_by_the_same_clock_speak_for_it() -> None:
    assert clock_skew(replace(CLOCK, heartbeat_offset_ms=-20)) is None
    assert clock_skew(replace(CLOCK, heartbeat_offset_ms=-7_200_000)) is not None


def test_events_from_the_future_are_a_clock_that_is_ahead() -> None:
    found = clock_skew(replace(CLOCK, least=-TWO_HOURS, most=-TWO_HOURS, ahead=True))
    assert found is not None
    assert "after they were received" in found.cause


def test_a_few_twins_are_chance_and_more_are_a_second_emitter() -> None:
    twins = Twins("unnumbered events", "r1/b1", SEEN, AT, AT)
    found = duplicate_emitter(twins)
    assert found is not None
    assert (found.kind, found.events) == (Kind.DUPLICATE_EMITTER, Interval(9, 9))
    assert duplicate_emitter(replace(twins, seen=(Seen("a", "llama", Counts(4, 9, 9, 0)),))) is None
    assert duplicate_emitter(replace(twins, beside=18)) == found, "to the millisecond, half of all"
    assert duplicate_emitter(replace(twins, beside=19)) is None


COMPARED = EngineComparison(
    "r1", "b1", "llama", Standing.DIFFERS, EngineTokens(100, 50, 0), EngineTokens(60, 30, 0), EngineTokens(), AT
)


def test_what_an_engine_counted_and_no_event_has_was_not_metered() -> None:
    found = unmetered(COMPARED, known_boot=True)
    assert found is not None
    assert (found.kind, found.tokens) == (Kind.UNMETERED_REQUESTS, Interval(60, 60))
    assert unmetered(replace(COMPARED, standing=Standing.NOT_YET), known_boot=True) is None


def test_an_engine_without_any_report_of_an_adapter_is_a_replica_that_was_never_registered() -> None:
    alone = replace(COMPARED, standing=Standing.NOT_YET, events=EngineTokens())
    found = unmetered(alone, known_boot=False)
    assert found is not None
    assert (found.kind, found.tokens) == (Kind.UNREGISTERED_REPLICA, Interval(150, 150))


def test_what_events_have_beyond_their_engine_was_never_made() -> None:
    more = replace(COMPARED, events=EngineTokens(160, 60, 0))
    found = overmetered(more)
    assert found is not None
    assert (found.kind, found.tokens) == (Kind.OVERCOUNTED, Interval(70, 70))
    assert unmetered(more, known_boot=True) is None
    assert overmetered(replace(more, standing=Standing.NOT_YET)) is None
    assert overmetered(COMPARED) is None


def differing(tenant: str, reported: int, counted: int, comparable: str = "exact") -> BootDifference:
    return BootDifference(
        "r1", "b1", tenant, "llama", comparable, Counts(reported, reported * 10, 0, 0), Counts(counted, counted * 10)
    )


def test_as_much_as_was_made_but_for_others_is_the_wrong_tenant() -> None:
    (found,) = wrong_tenant([differing("a", 7, 3), differing("b", 1, 5)])
    assert found.kind is Kind.WRONG_TENANT
    assert found.subject["counted_as"] == "b"
    assert found.shares == (Share("a", "llama", Interval(4, 4), Interval(40, 40)),)


def test_as_many_of_each_under_the_others_name_are_told_by_their_tokens() -> None:
    big, small = Counts(2, 200, 20, 0), Counts(2, 20, 2, 0)
    swapped = [BootDifference("r1", "b1", "a", "llama", "exact", big, small),
               BootDifference("r1", "b1", "b", "llama", "exact", small, big)]  # fmt: skip
    (found,) = wrong_tenant(swapped)
    assert (found.subject["counted_as"], found.tenants, found.tokens) == ("b", ["a"], Interval(198, 198))


@pytest.mark.parametrize(
    "others", [[differing("a", 7, 3)], [differing("a", 7, 3, "at_least"), differing("b", 1, 5, "at_least")]]
)
def test_less_or_more_than_was_made_is_no_matter_of_names(others: list[BootDifference]) -> None:
    assert wrong_tenant(others) == []
    assert overcounted(others) == []


def test_more_than_a_boot_reports_to_have_made_is_found_and_another_tenants_is_not_more() -> None:
    (found,) = overcounted([differing("a", 100, 200), differing("b", 5, 4)])
    assert (found.kind, found.shares) == (
        Kind.OVERCOUNTED, (Share("a", "llama", Interval(100, 100), Interval(1000, 1000)),),
    )  # fmt: skip
    assert overcounted([differing("a", 7, 3), differing("b", 1, 5)]) == []


def test_one_attempt_by_two_replicas_is_told() -> None:
    found = double_attempt(SameAttempt("r2", SEEN, AT, AT))
    assert (found.kind, found.subject, found.events) == (Kind.DOUBLE_ATTEMPT, {"replica_id": "r2"}, Interval(9, 9))


def test_a_finding_is_worth_from_least_to_most_and_is_one_whatever_its_size() -> None:
    share = Share("a", "llama", Interval(1, 2), Interval(100, 200), Interval(10, 10), Interval(0, 50))
    found = Finding(Kind.LOST_EVENTS, {"replica_id": "r1"}, "", (share,), AT, AT)
    prices = {
        "a": [EstimatePrice("", metric, Decimal(price), "USD", datetime(2026, 1, 1, tzinfo=UTC))
              for metric, price in (("input", "0.01"), ("cached_input", "0.001"), ("output", "0.1"))]
    }  # fmt: skip
    (money,) = worth(found, prices, AT)
    assert money == ("USD", Decimal("1.5"), Decimal("3.05"))
    assert found.finding_id(1) == replace(found, shares=()).finding_id(1) != found.finding_id(2)


def admitted(number: int, **changed: object) -> Missing:
    values = {"tenant_id": "a", "request_id": f"q{number}", "model": "llama", "input_tokens": 10, "output_tokens": 5}
    return Missing(UsageEvent(**(values | {"timestamp": 0} | changed)), AT)  # type: ignore[arg-type]


def test_what_a_gateway_admitted_and_nobody_counted_is_told_apart() -> None:
    absent = [admitted(1), admitted(2, replica_id="r9"), admitted(3, replica_id="r1"), admitted(4, replica_id="r1")]
    found = admissions.judge("gw", absent, {("q1", 1): "b"}, {"r1"}, {})
    assert [(each.kind, each.subject, each.events) for each in found] == [
        (Kind.UNMETERED_REQUESTS, {"log": "gw", "replica_id": "r1"}, (2, 2)),
        (Kind.UNREGISTERED_REPLICA, {"log": "gw", "replica_id": "r9"}, (1, 1)),
        (Kind.WRONG_TENANT, {"log": "gw", "replica_id": "", "counted_as": "b"}, (1, 1)),
    ]


def test_what_was_lost_explains_as_much_of_a_log_as_was_lost_of_the_same_tenant() -> None:
    absent = [admitted(number, replica_id="r1") for number in range(3)]

    def judged(*lost: Share) -> list[Finding]:
        return admissions.judge("gw", absent, {}, {"r1"}, {"r1": lost})

    lost = Share("a", "llama", Interval(2, 2), Interval(20, 20), Interval(10, 10))
    assert judged(replace(lost, events=Interval(2, 3))) == [], "the missing numbers say so already"
    (some,) = judged(lost)
    assert (some.events, some.tokens, some.cause.rpartition(", and ")[2]) == (
        (1, 3), (15, 45), "more of them than were lost under numbers"
    )  # fmt: skip
    assert "what was lost under numbers may be among it" in some.estimated_from
    (all_,) = judged(replace(lost, tenant_id="b", events=Interval(100, 100)))
    assert (all_.events, all_.tokens, all_.estimated_from) == ((3, 3), (45, 45), ""), "others lost those"
    (least,) = judged(Share("", "", Interval(2, 2)))
    assert (least.events, least.tokens) == ((1, 3), (0, 45)), "nobody knows whose they were"
