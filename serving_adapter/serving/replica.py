"""One process of an engine: its journal, its attempts in flight, quotas and metrics, and what it does each second."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from serving_adapter.clock import ReplicaClock
from serving_adapter.engine.attempts import Attempt
from serving_adapter.engine.gpu_reports import VARIABLE as GPU_SOCKET
from serving_adapter.engine.vllm_hooks import attach, attached
from serving_adapter.engine.vllm_settings import check_settings, not_served, served_names
from serving_adapter.events import UsageEvent
from serving_adapter.isolation.callers import HEADER, Caller, nobody, verified
from serving_adapter.isolation.fields import VLLM
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.routes import Route
from serving_adapter.isolation.rules import Limits, Resolver, Rules, salt
from serving_adapter.isolation.token_settings import TokenSettings
from serving_adapter.metering.counts import first_token_after
from serving_adapter.metering.tenant_metrics import TenantMetrics
from serving_adapter.producer import EventProducer
from serving_adapter.quota import GateSettings, Pool, QuotaGate
from serving_adapter.report_sender import ReportSender
from serving_adapter.serving.adapter_settings import PROBE, AdapterSettings, read_gateway_keys, read_key
from serving_adapter.serving.attempt_events import PLATFORM, ended_event, event_of_nobody
from serving_adapter.serving.dispatched import Dispatched
from serving_adapter.serving.gpu_times import GpuTimes
from serving_adapter.serving.quota_figures import quota_page
from serving_adapter.serving.spool_figures import SpoolFigures
from serving_adapter.settings import KafkaSettings, SettingsError
from serving_adapter.shipping.direct import DirectShipper
from serving_adapter.shipping.heartbeats import Heartbeats
from serving_adapter.shipping.shipper import DELIVER_WITHIN_S
from serving_adapter.spool.journal import BootJournal, SpoolSettings
from serving_adapter.topics import USAGE

if TYPE_CHECKING:
    from serving_adapter.isolation.tokens import Tokens

PROGRESS_EACH_S: Final = 1.0
TURNS_WITHIN_S: Final = 5.0
"""A replica that has written no progress for so long is not ready: a kill would lose more than a second's."""
_PROBES: Final = f"v1.{PROBE}.".encode()
MOST_OFFSET_MS: Final = 60_000
"""A replica whose clock is further off is not ready (docs/spec/metering.md 3)."""
SETTLED_WITHIN_S: Final = 5.0

Work = tuple[Attempt, UsageEvent, float, bool]
"""An attempt, its event as it is if it is lost, when it came, and whether another attempt may follow it."""


class Replica:
    """Everything on one event loop."""

    def __init__(self, settings: AdapterSettings, *, engine_fields: bool = True) -> None:
        """Begin a boot. Raises SettingsError, SpoolFailed: the server does not start then."""
        self.settings = settings
        self.engine_fields = engine_fields
        """Whether the engine takes salts and priorities."""
        self.known_fields = settings.proxy.known_fields if settings.proxy is not None else VLLM
        self._counts_several = settings.proxy is None or settings.proxy.counts_several
        self.rules = settings.rules
        self.unready: dict[str, str] = {}
        """The engine's names of adapters that cannot be served yet, with the reason."""
        self.resolver = Resolver(settings.rules, self.unready)
        self.names_known = settings.registry is None
        """Whether the registry, where there is one, was read once: until then nobody knows what a name means."""
        self._served_names: list[str] = []
        """Of the engine's model, where they are known."""
        self.clock = ReplicaClock()
        self._salt_key = read_key(settings.salt_key)
        self._gateway_keys = read_gateway_keys(settings.gateway_keys) if settings.gateway_keys else {}
        if settings.probe_key is not None:
            self._gateway_keys[PROBE] = read_key(settings.probe_key)
        self.goes_down = False
        """Whether the engine takes in nothing more."""
        self.probed = False
        """Whether `adapter probe` has passed."""
        self._tokens = _tokens(settings.tokens) if settings.tokens else None
        self.metrics_secret = read_key(settings.metrics_secret) if settings.metrics_secret else None
        spool = SpoolSettings(Path(settings.spool.folder), settings.spool.bound_bytes, settings.spool.policy)
        self._direct = self._direct_shipper()
        self.journal = BootJournal(
            spool, settings.replica_id, self.clock, about={"pid": str(os.getpid())},
            undurable=self._direct.put if self._direct is not None else None,
        )  # fmt: skip
        self.metrics = TenantMetrics(settings.replica_id, self.journal.boot_id)
        self._figures = SpoolFigures(self.journal, self._direct)
        self.metrics.beside.append(self._figures.page)
        self.metrics.beside.append(lambda: quota_page(self.gate, self.places))
        self.gate: QuotaGate | None = None
        self.places = Pool(settings.places.at_once if settings.places is not None else 1)
        """At the engine: only where the settings count them."""
        self._gpu: GpuTimes | None = None
        self._salts: dict[str, str] = {}
        self.dispatched = Dispatched()
        self._open: dict[int, Work] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        """The loop's."""
        self._ticking: asyncio.Task[None] | None = None
        self._turned_at = 0.0
        """When what is done each second was done last (monotonic)."""
        self._said = ""
        self._heartbeats: Heartbeats | None = None
        self._stopped = False

    async def start(self) -> None:
        """Begin what goes on beside requests; a second call does nothing."""
        if self._ticking is not None:
            return
        self._turned_at = time.monotonic()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._ticking = self._loop.create_task(self._tick())
        try:
            await self._start()
        except BaseException:  # the next request tries again, and not half of it runs
            self._ticking.cancel()
            self._ticking = None
            raise

    async def _start(self) -> None:
        path = os.environ.get(GPU_SOCKET)
        if path and self.settings.proxy is None and self._gpu is None:
            self._gpu = GpuTimes(path, self.journal, self.metrics)
        if self.settings.quota.enabled:
            asking, kept = GateSettings.from_environment(), Path(self.settings.spool.folder) / ".quota"
            gate = QuotaGate(dataclasses.replace(asking, holder=self.journal.boot_id, keep_in=kept))
            await gate.start()
            self.gate = gate
        if os.environ.get("TOLLBOOK_KAFKA"):
            sender = ReportSender(KafkaSettings.from_environment())
            self._heartbeats = Heartbeats(self.journal, sender.send)
            self._heartbeats.start()
            self._figures.heartbeats = self._heartbeats

    async def stop(self) -> None:
        """Settle what is open, and say farewell."""
        self.cut_off_all()
        if self._gpu is not None:
            self._gpu.close()
            self._gpu = None
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        if self.gate is not None:
            await self.gate.stop()
        if self._heartbeats is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._heartbeats.stop)
        self.stop_now()

    def stop_now(self) -> None:
        """The same without a loop that goes on: what is open is settled and on disk. Once."""
        if not self._stopped:
            self._stopped = True
            self.cut_off_all()
            try:
                self.journal.close()
            finally:  # what its disk did not take comes past it
                if self._direct is not None:
                    self._direct.stop()

    def attach(self, client: Any, args: Any = None) -> None:
        """Hook into an engine, once, and warn of how it was started (`args`: vLLM's). Raises EngineUnfit."""
        if not attached(client):
            self._served_names = served_names(args)
            for told in check_settings(client, args, self.rules, os.environ):
                print(f"tollbook: WARNING: {told}", file=sys.stderr, flush=True)
            let_in = self.settings.untested_vllm
            attach(client, self._attempt_of_nobody, self.go_down, self.shut_down, self._isolation_broken, let_in)

    def use(self, rules: Rules) -> None:
        """Other rules, for the requests from now on."""
        self.rules = rules
        self.resolver = Resolver(rules, self.unready)
        self.names_known = True
        for told in not_served(self._served_names, rules):
            self._say(f"ALERT: {told}")

    def limits(self, route: Route) -> Limits:
        """The rules'; one choice of one prompt before an engine that would state the tokens of one alone."""
        limits = self.rules.limits
        return limits if self._counts_several or route is Route.EMBEDDINGS else replace(limits, n=1, prompts=1)

    def runs(self, engine_model: str) -> bool:
        """Whether a request for this name of the engine's is in flight."""
        return any(attempt.engine_model == engine_model for attempt, *_ in self._open.values())

    def ready(self) -> bool:
        """Whether requests may come: the engine goes on, names are known, the spool can be written and has room,
        progress is, the clock is right, the probe has passed if it must."""
        if self.goes_down or not self.names_known or (self.settings.ready_after_probe and not self.probed):
            return False
        if self._ticking is not None and time.monotonic() - self._turned_at > TURNS_WITHIN_S:
            return False
        spool_works = not self.journal.disk().full or self._direct is not None
        return spool_works and abs(self.clock.offset_ms()) <= MOST_OFFSET_MS

    async def caller(self, headers: dict[bytes, bytes]) -> Caller:
        """Who asks. Raises Refusal (401)."""
        now = self.clock.now_ns() // 1_000_000_000
        signed = headers.get(HEADER)
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if signed is not None and self._gateway_keys:
            caller = verified(signed, self._gateway_keys, now=now)
            if signed.startswith(_PROBES) and caller.tenant_id != PLATFORM:
                raise nobody()
            return caller
        if self._tokens is not None and scheme.lower() == b"bearer":
            return await self._tokens.verified(token.strip(), now=now)
        raise nobody()

    def require_region(self, caller: Caller) -> None:
        """Raises Refusal (403) for a tenant that is served elsewhere."""
        if caller.regions and self.settings.region not in caller.regions:
            raise Refusal(
                403, "region_not_allowed",
                f"This tenant is served in {', '.join(caller.regions)}, not in {self.settings.region or 'no region'}.",
            )  # fmt: skip

    @property
    def longest_request_s(self) -> float:
        """After so long a request is ended: by the rules, and before what the quota service holds for it ends."""
        own = self.rules.limits.seconds
        return own if self.gate is None else min(own, self.gate.longest_request_s)

    def salt_of(self, tenant_id: str) -> str:
        """The tenant's cache salt."""
        found = self._salts.get(tenant_id)
        if found is None:
            found = self._salts[tenant_id] = salt(self._salt_key, tenant_id)
        return found

    async def begin(
        self, lost: UsageEvent, *, came_at: float, adapter: str | None, engine_model: str, may_be_shed: bool,
        may_be_followed: bool,
    ) -> Attempt:  # fmt: skip
        """Make a request's start durable. `came_at`: when it was whole here (monotonic). Raises NoRoom.

        `may_be_followed`: a gateway counts its attempts.
        """
        try:
            no = await self.journal.start(lost, may_be_shed=may_be_shed)
        except asyncio.CancelledError:  # the journal has its end: the engine never saw it
            self.metrics.began(lost.tenant_id)
            event = replace(lost, status="aborted", fault="platform", finish_reason=lost.finish_reason or "shutdown")
            self._told_of(event, may_be_followed)
            raise
        attempt = self._attempt(no, self.salt_of(lost.tenant_id), engine_model, adapter is not None)
        attempt.on_gap = self.metrics.on_gap(lost.tenant_id)
        self._open[no] = (attempt, lost, came_at, may_be_followed)
        self.metrics.began(lost.tenant_id)
        return attempt

    def go_down(self) -> None:
        """The engine takes in nothing more: from now on requests are refused. On any thread."""
        self.goes_down = True

    def shut_down(self) -> None:
        """The engine does nothing more: end what is open, on the loop that it is on. On any thread."""
        loop = self._loop
        if loop is None or not loop.is_running() or threading.get_ident() == self._thread:
            self.cut_off_all()
            return
        done = threading.Event()

        def cut_off() -> None:
            try:
                self.cut_off_all()
            finally:
                done.set()

        loop.call_soon_threadsafe(cut_off)
        done.wait(SETTLED_WITHIN_S)

    def cut_off_all(self) -> None:
        """The engine goes down: end what is open with the counts as they stand."""
        for attempt, *_ in list(self._open.values()):
            attempt.seen.shut_down |= attempt.is_at_work  # what has ended before has ended as it did
            is_waiting = bool(attempt.running) or not attempt.ended
            attempt.cut_off()
            if is_waiting:  # for what the engine says no more; the server would wait along
                attempt.let_go()

    def _ended(self, attempt: Attempt) -> None:
        _, lost, came_at, may_be_followed = self._open.pop(attempt.no)
        first_token_s = first_token_after(attempt.ended, came_at)
        event = ended_event(lost, attempt, duration_s=time.monotonic() - came_at, first_token_s=first_token_s)
        follows = self._gpu is not None and self._gpu.may_follow(attempt)
        event = self.journal.end(attempt.no, event, gpu_follows=follows)
        if first_token_s is not None:
            self.metrics.first_token(event.tenant_id, first_token_s)
        if self._gpu is not None:
            self._gpu.ended(attempt, event)
        self._told_of(event, may_be_followed)

    def _told_of(self, event: UsageEvent, may_be_followed: bool) -> None:
        """An attempt is over: metrics and quota hear of it."""
        self.metrics.ended(event)
        if self.gate is not None and event.purpose == "tenant" and not event.tenant_id.startswith("_"):
            self.gate.settle(
                event.tenant_id, event.request_id, attempt=event.attempt, final=not may_be_followed, model=event.model,
                adapter=event.adapter or "", input_tokens=event.input_tokens, output_tokens=event.output_tokens,
                cache_hit_tokens=event.cache_hit_tokens, gpu_us=event.gpu_us,
            )  # fmt: skip

    def _isolation_broken(self, attempt: Attempt, what: str) -> None:
        """A sequence was stopped that would have crossed tenants: somebody has to look at once."""
        self.metrics.isolation_stopped += 1
        _, lost, *_ = self._open[attempt.no]
        self._say(
            f"ALERT: isolation: {what}: request {lost.request_id} of {lost.tenant_id}; find out which route lost it"
        )

    def _attempt_of_nobody(self) -> Attempt:
        """The engine works for no request of ours: an itemised row of the platform."""
        model = next(iter(self.rules.models.values()))[0].engine
        lost = event_of_nobody(self.clock.now_ns(), model, self.settings.region, self.settings.pool)
        no = self.journal.start_now(lost)
        attempt = self._attempt(no, "", "", False)
        attempt.on_gap = self.metrics.on_gap(lost.tenant_id)
        attempt.seen.http_status, attempt.seen.answered = 200, True
        attempt.exchange_over = True
        self._open[no] = (attempt, lost, time.monotonic(), False)
        self.metrics.began(lost.tenant_id)
        return attempt

    def _attempt(self, no: int, cache_salt: str, engine_model: str, adapter: bool) -> Attempt:
        attempt = Attempt(no, cache_salt, engine_model, adapter, self._ended)
        if self._gpu is not None:
            attempt.await_gpu, attempt.on_wait = self._gpu.announce, self._gpu.wait
        return attempt

    def _direct_shipper(self) -> DirectShipper | None:
        """For events that the disk does not take, where they are served all the same."""
        if self.settings.spool.policy != "serve_memory" or not os.environ.get("TOLLBOOK_KAFKA"):
            return None
        kafka = KafkaSettings.from_environment()
        topic = USAGE.name(kafka.topic_prefix)
        return DirectShipper(lambda: EventProducer(kafka, topic, DELIVER_WITHIN_S), self.settings.replica_id)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EACH_S)
            try:
                self.journal.progress([attempt.so_far() for attempt, *_ in self._open.values()])
                with contextlib.suppress(OSError):  # a disk that fails is told where it is written
                    await asyncio.to_thread(self._figures.measure)
            except Exception as error:  # whatever it is: without progress a kill would lose more than a second's
                self._say(f"ALERT: what is done each second failed: {error!r}")
            else:
                self._turned_at = time.monotonic()

    def _say(self, text: str) -> None:
        """Once, however often it comes again."""
        if text != self._said:
            print(f"tollbook: {text}", file=sys.stderr, flush=True)
        self._said = text


def _tokens(settings: TokenSettings) -> Tokens:
    try:
        from serving_adapter.isolation.tokens import Tokens  # an extra, where tokens are taken at all
    except ModuleNotFoundError as error:
        raise SettingsError(f"[tokens] needs {error.name}: pip install 'tollbook-adapter[jwt]'") from None
    return Tokens(settings)
