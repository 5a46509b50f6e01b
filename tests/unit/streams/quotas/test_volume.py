"""A tenant's normal volume, a flood of ten times as much, and its end."""

from __future__ import annotations

from streams.quotas.volume import CALM, KNOWN_FROM, LEAST, MEMORY, MINUTE_US, SHED_TO, Change, Volume

START = 29_000_000 * MINUTE_US


def minutes(volume: Volume, counts: list[int], first: int = 0) -> tuple[list[Change], list[int]]:
    """So many requests in each minute; what changed, and how many went through."""
    changes, passed = [], []
    for number, count in enumerate(counts, first):
        through = 0
        for each in range(count):
            now = START + number * MINUTE_US + each * (MINUTE_US // max(count, 1))
            changes += [change for change in (volume.turn(now), volume.ask(now)) if change]
            through += volume.lets_through()
        passed.append(through)
    return changes, passed


def learned(normal: int) -> Volume:
    volume = Volume()
    assert minutes(volume, [normal] * KNOWN_FROM) == ([], [normal] * KNOWN_FROM)
    volume.turn(START + KNOWN_FROM * MINUTE_US)
    return volume


def test_a_flood_is_seen_within_its_first_minute_and_limited_until_it_is_over() -> None:
    volume = learned(200)
    changes, passed = minutes(volume, [5000, 5000, 100, 100, 100, 100], KNOWN_FROM)
    assert changes == ["flood", "calm"]
    assert passed[0] == 2000  # ten times as much had to be seen first
    assert passed[1] == SHED_TO * 200
    assert passed[2:] == [100] * 4
    assert not volume.is_shed


def test_nine_times_as_much_is_no_flood_and_a_small_tenants_busy_minute_is_none() -> None:
    assert minutes(learned(200), [1800], KNOWN_FROM) == ([], [1800])
    assert minutes(learned(2), [10 * LEAST], KNOWN_FROM) == ([], [10 * LEAST])


def test_who_is_new_is_not_judged() -> None:
    assert minutes(Volume(), [5, 5000, 5000]) == ([], [5, 5000, 5000])


def test_a_flood_of_hours_does_not_become_normal() -> None:
    volume = learned(200)
    changes, passed = minutes(volume, [5000] * 60, KNOWN_FROM)
    assert changes == ["flood"]
    assert passed[-1] < 3 * 200


def test_it_is_over_also_when_nothing_more_is_asked() -> None:
    volume = learned(100)
    minutes(volume, [3000], KNOWN_FROM)
    assert volume.is_shed
    changes = [volume.turn(START + (KNOWN_FROM + 1 + minute) * MINUTE_US) for minute in range(CALM + 1)]
    assert changes.count("calm") == 1


def test_what_is_known_goes_on_elsewhere() -> None:
    volume = learned(200)
    minutes(volume, [5000], KNOWN_FROM)
    again = Volume(volume.stored())
    again.turn(START + (KNOWN_FROM + 1) * MINUTE_US)
    assert again.is_shed
    assert again.limit == volume.limit
    assert len(volume.stored()) == 3
    assert MEMORY >= KNOWN_FROM
