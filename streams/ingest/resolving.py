"""A partition goes on behind positions that are not applied, because a person says so."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from streams import audit
from streams.errors import CannotResolve
from streams.ingest import sources
from streams.ingest.logs import Log


def resolve(
    connection: psycopg.Connection,
    topic: str,
    read_log: Callable[[], Log],
    partition: int,
    to: int,
    *,
    reason: str,
    actor: str,
) -> tuple[str, int]:
    """Let a partition that stands still, or would, go on from `to`; returns the source and the position it stood at.

    In the same log this passes over positions, which is kept with the reason. In another log of the same name, or where
    the log was cut below the position (then `to` may lie before it), it begins a source of its own there. The log is
    read once the position is locked: one that was read before lies behind the position of a partition that goes on,
    which then looks like a log that was cut. Raises CannotResolve, and as `read_log` does.
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
        # A log that was cut has other messages below the position, also once it has grown past it again
        is_cut = to < state.next_position and (
            sources.TRUNCATED in (state.stopped_because or "") or log.ends[partition] < state.next_position
        )
        if (state.cluster_id, state.topic_id) == (log.cluster_id, log.topic_id) and not is_cut:
            source = _pass_over(connection, state, to, reason, actor)
            # A person has looked at the log as it is now
            connection.execute(
                "update usage.sources set leader_epoch = %s where source = %s", (log.epochs[partition], source)
            )
        else:
            _, _, generation = state.source.partition("@")
            source = sources.source_name(topic, partition, int(generation or 1) + 1)
            sources.add(connection, source, log, to, state.feed)
            connection.execute(
                "update usage.sources set stopped_because = %s, changed_at = now() where source = %s",
                (f"replaced by {source}: {reason}", state.source),
            )
        detail = {"from": state.next_position, "to": to, "reason": reason, "was": state.source}
        audit.record(connection, actor, "streams.resolve", source, detail)
    return source, state.next_position


def _pass_over(connection: psycopg.Connection, state: sources.SourceState, to: int, reason: str, actor: str) -> str:
    if to < state.next_position:
        raise CannotResolve(f"{state.source} is at {state.next_position}: what is applied is not applied again")
    if to > state.next_position:
        connection.execute(
            "insert into usage.position_resolutions (source, from_position, to_position, reason, actor)"
            " values (%s, %s, %s, %s, %s)",
            (state.source, state.next_position, to, reason, actor),
        )
    connection.execute(
        "update usage.sources set next_position = %s, stopped_because = null, changed_at = now() where source = %s",
        (to, state.source),
    )
    return state.source
