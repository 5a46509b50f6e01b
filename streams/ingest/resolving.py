"""A partition goes on behind positions that are not applied, because a person says so."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from streams import audit
from streams.errors import CannotResolve
from streams.ingest import sources
from streams.ingest.log_proof import FindHeld
from streams.ingest.logs import Log
from streams.ingest.sources import Partition, SourceState


def resolve(
    connection: psycopg.Connection,
    topic: str,
    read_log: Callable[[], Log],
    partition: int,
    to: int,
    *,
    reason: str,
    actor: str,
    find_held: FindHeld,
    lose: bool = False,
) -> tuple[str, int]:
    """Let a partition that stands still, or would, go on from `to`; returns the source and the position it stood at.

    In the same log this passes over positions. In another log of the same name it begins a source of its own at the
    log's beginning; where the log was cut below the position, where it still holds what was applied: what lies between
    that and `to` was never read, and is passed over only to `lose` it. What is passed over is kept with the reason.

    The log is read once the position is locked: one that was read before lies behind the position of a partition that
    goes on, which then looks like a log that was cut. Raises CannotResolve, and as `read_log` and `find_held` do.
    """
    if not reason.strip():
        raise CannotResolve("passing over positions needs a reason")
    with connection.transaction():
        state = sources.states(connection, topic).get(partition)
        if state is None:
            raise CannotResolve(f"{topic} has no partition {partition} that was ever read")
        connection.execute("select 1 from usage.sources where source = %s for update", (state.source,))
        state = sources.states(connection, topic)[partition]  # as it stands now that it is locked
        log = read_log()
        if partition not in log.ends:
            raise CannotResolve(f"{topic} has no partition {partition} any more")
        if state.stopped_because is None and sources.disagreement(state, log, partition) is None:
            raise CannotResolve(f"{state.source} does not stand still: nothing of it may be passed over")
        if not log.begins[partition] <= to <= log.ends[partition]:
            raise CannotResolve(
                f"the log reaches from {log.begins[partition]} to {log.ends[partition]}: {to} is outside"
            )
        begins = _begins_anew(connection, state, log, partition, find_held)
        if begins is None:
            source = state.source
            _pass_over(connection, source, state.next_position, to, reason, actor)
            # A person has looked at the log as it is now
            connection.execute(
                "update usage.sources set leader_epoch = %s where source = %s", (log.epochs[partition], source)
            )
        else:
            if to > begins and not lose:
                raise CannotResolve(
                    f"the log has messages from {begins} on that were not applied: go on there (--to {begins}; nothing"
                    f" counts twice), or lose those before {to} for good (--lose)"
                )
            begins = min(begins, to)
            _, _, generation = state.source.partition("@")
            source = sources.source_name(topic, partition, int(generation or 1) + 1)
            sources.add(connection, source, log, begins, state.feed)
            _pass_over(connection, source, begins, to, reason, actor)
            connection.execute(
                "update usage.sources set stopped_because = %s, changed_at = now() where source = %s",
                (f"replaced by {source}: {reason}", state.source),
            )
        detail = {"from": state.next_position, "to": to, "reason": reason, "was": state.source}
        audit.record(connection, actor, "streams.resolve", source, detail)
    return source, state.next_position


def _begins_anew(
    connection: psycopg.Connection, state: SourceState, log: Log, partition: int, find_held: FindHeld
) -> int | None:
    """Where a source of its own has to begin, if the log is another one or has other messages below the position.

    One that was cut may have grown past the position again, also while the partition stood still for another reason.
    """
    if (state.cluster_id, state.topic_id) != (log.cluster_id, log.topic_id):
        return log.begins[partition]
    because = state.stopped_because or ""
    was_cut = sources.TRUNCATED in because or log.ends[partition] < state.next_position
    if not was_cut and log.epochs[partition] == state.leader_epoch:
        return None
    held = find_held(connection, state.source, Partition(log.topic, partition), log)
    told = sources.go_on_from(because)  # by who may have known of more to compare
    begins = max(min(held.to, held.to if told is None else told), log.begins[partition])
    return begins if held.differs or (was_cut and begins < state.next_position) else None


def _pass_over(connection: psycopg.Connection, source: str, at: int, to: int, reason: str, actor: str) -> None:
    if to < at:
        raise CannotResolve(f"{source} is at {at}: what is applied is not applied again")
    if to > at:
        connection.execute(
            "insert into usage.position_resolutions (source, from_position, to_position, reason, actor)"
            " values (%s, %s, %s, %s, %s)",
            (source, at, to, reason, actor),
        )
    connection.execute(
        "update usage.sources set next_position = %s, stopped_because = null, changed_at = now() where source = %s",
        (to, source),
    )
