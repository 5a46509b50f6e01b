"""Running the quota service: one process for each shard of the tenants."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

import uvloop

from streams.database import connect
from streams.errors import CannotServe
from streams.http.listening import listen, url_of
from streams.quotas import journal
from streams.quotas.decisions import Limits
from streams.quotas.envoy_calls import Names
from streams.quotas.http_protocol import Connections
from streams.quotas.other_shards import OtherShards
from streams.quotas.rebuilding import Rebuilt, load_all, rebuild
from streams.quotas.routes import Routes
from streams.quotas.service import QuotaService
from streams.settings import DatabaseSettings

MAX_CONNECTIONS: Final = 4096
DRAIN_WITHIN_S: Final = 5.0
COLLECT_AFTER: Final = (1000, 1, 100_000)
"""Requests are no garbage in cycles; looking for some among all of them takes 30 ms, for which everybody waits: seldom.
Among those that came since, a few at a time: so many, twice, are half a millisecond."""
THREADS_SWITCH_S: Final = 0.0002
"""How long the thread that has written a batch waits for the loop's at most: it delays every answer in the batch."""


def serve(
    database: DatabaseSettings, *, host: str, port: int, shard: int, of: int, limits: Limits, learn: bool,
    say: Callable[[str], None], envoy_port: int | None = None, envoy_names: Names = Names(),  # noqa: B008
    realtime: bool = False,
) -> None:  # fmt: skip
    """Own a shard and answer for it until SIGTERM or SIGINT; calls that are here are answered first.

    `say` is told the address once it can be called. `realtime`: then `run_ahead`. Raises DatabaseUnavailable,
    CannotServe, ShardsTaken.
    """
    listener = listen(host, port, MAX_CONNECTIONS)
    owner = f"{socket.gethostname()}/{os.getpid()}"
    with connect(database.url, application="tollbook quota") as connection:
        mine = journal.take(connection, shard, of, owner=owner, address=url_of(listener))
        rebuilt = rebuild(connection, mine, limits, learn=learn)
        if rebuilt.shard.learning_until > mine.learning_until:
            journal.keep_learning(connection, mine, rebuilt.shard.learning_until)
        rebuilt = load_all(connection, rebuilt)
    say(
        f"shard {shard} of {of}, epoch {mine.epoch}: {len(rebuilt.shard.books)} tenants from {rebuilt.entries} entries,"
        f" {rebuilt.resolved} of them counted meanwhile" + (", learning" if rebuilt.shard.learning_until else "")
    )
    if rebuilt.left_out:
        say(f"{rebuilt.left_out} chunks of usage came while no service ran: what of it nobody had reserved is not told")
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(THREADS_SWITCH_S)
    if realtime:
        run_ahead()
    uvloop.run(_serve(database, mine, rebuilt, listener, say, envoy_port, envoy_names))


def check_may_run_ahead() -> None:
    """Whether `run_ahead` is allowed. Raises CannotServe."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        raise CannotServe(
            "--realtime needs the capability CAP_SYS_NICE, or RLIMIT_RTPRIO of 1 at least (systemd: LimitRTPRIO=1);"
            " in a control group also a share of real time (cpu.rt_runtime_us) where the kernel divides it"
        ) from None
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def run_ahead() -> None:
    """Let this thread run before whatever else wants its core (sched(7), SCHED_RR); threads and processes that it
    starts run like others."""
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


async def _serve(
    database: DatabaseSettings, mine: journal.Ownership, rebuilt: Rebuilt, listener: socket.socket,
    say: Callable[[str], None], envoy_port: int | None, envoy_names: Names,
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ending.set)
    service = QuotaService(database, mine, rebuilt, random.Random())
    await service.start()
    routes = Routes(service, database)
    connections = Connections(routes, MAX_CONNECTIONS)
    server = await loop.create_server(connections, sock=listener, backlog=MAX_CONNECTIONS)
    envoy, others = None, OtherShards(database)
    if envoy_port is not None:
        from streams.quotas.envoy_server import serve_envoy  # loads gRPC, 40 MiB, only where it is asked for

        host = listener.getsockname()[0]
        envoy, bound = await serve_envoy(routes, host, envoy_port, envoy_names, others)
        say(f"gRPC envoy.service.ratelimit.v3 on {host}:{bound}")
    say(f"POST {url_of(listener)}/v1/reservations")
    waiting = [loop.create_task(each.wait()) for each in (ending, service.fenced)]
    await asyncio.wait([*waiting, *service.tasks], return_when=asyncio.FIRST_COMPLETED)
    server.close()
    for task in waiting:
        task.cancel()
    if service.fenced.is_set():
        raise CannotServe(f"shard {mine.shard} has another owner now, or its journal cannot be written: start again")
    for going_on in service.tasks:
        if going_on.done():
            error = going_on.exception()
            raise CannotServe(f"shard {mine.shard} cannot go on: {error}") from error
    if envoy is not None:
        await envoy.stop(DRAIN_WITHIN_S)
    others.close()
    await service.stop()
    await connections.drain(DRAIN_WITHIN_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), 1)
