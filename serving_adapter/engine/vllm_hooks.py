"""Hooks in vLLM's API server process, on the instance of its engine client: every sequence that begins and ends.

vLLM tells nobody of aborted requests: they are popped from the output processor without a statistic. So each sequence
is looked at where it lives (`RequestState`), and before it is popped. Names and signatures are checked when the hooks
are put in; an engine that lacks one is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any, Final

from serving_adapter.engine.attempts import CURRENT, Attempt
from serving_adapter.errors import AdapterError
from serving_adapter.metering.counts import Sequence

TESTED: Final = ("0.32",)
"""What `make test-vllm` runs."""
UNTESTED: Final = ("0.29", "0.33")
"""Versions whose sources, which were read, have these names; nothing ran on them."""

AttemptOfNobody = Callable[[], Attempt]
Alarm = Callable[[Attempt, str], None]
"""Hears of a sequence that was stopped, and why."""


class EngineUnfit(AdapterError):
    """This engine cannot be metered from within."""


class IsolationBroken(AdapterError):
    """A sequence reached the engine with another tenant's salt or adapter."""


def check_version(version: str | None, let_in: Collection[str]) -> None:
    """Raises EngineUnfit for a vLLM that is neither tested nor `let_in`. None: not vLLM's own package (a double)."""
    minor = None if version is None else ".".join(version.split(".")[:2])
    if minor is None or minor in TESTED or minor in let_in:
        return
    if minor in UNTESTED:
        raise EngineUnfit(
            f"vLLM {version}: tested is {', '.join(TESTED)}. Its sources have the hook points, and nothing ran on it:"
            f' untested_vllm = ["{minor}"] in the adapter\'s file lets it in, and `tollbook-adapter probe` tells more'
        )
    raise EngineUnfit(f"vLLM {version} is not {', '.join(TESTED)}: its hook points were not looked at")


def attached(client: Any) -> bool:
    """Whether the hooks are in."""
    return getattr(client, "_tollbook_hooks", None) is not None


def attach(
    client: Any,
    attempt_of_nobody: AttemptOfNobody,
    goes_down: Callable[[], None],
    shut_down: Callable[[], None],
    on_broken: Alarm,
    let_in: Collection[str] = (),
) -> None:
    """Put the hooks in. `attempt_of_nobody` makes the attempt that work without a request belongs to.

    `goes_down` hears that the engine takes in nothing more, `shut_down` that it does nothing more; both on any thread.
    `let_in`: untested versions that are used all the same. Raises EngineUnfit.
    """
    check_version(getattr(sys.modules.get("vllm"), "__version__", None), let_in)
    client._tollbook_hooks = _Hooks(client, attempt_of_nobody, goes_down, shut_down, on_broken)


class _Hooks:
    def __init__(
        self, client: Any, attempt_of_nobody: AttemptOfNobody, goes_down: Callable[[], None],
        shut_down: Callable[[], None], on_broken: Alarm,
    ) -> None:  # fmt: skip
        processor: Any = getattr(client, "output_processor", None)
        self._processor = processor
        for owner, names in (
            (client, ("generate", "encode", "abort", "shutdown")),
            (processor, ("add_request", "_finish_request", "_update_stats_from_output")),
            (processor, ("request_states", "parent_requests", "external_req_ids")),
        ):
            for name in names:
                if not hasattr(owner, name):
                    raise EngineUnfit(f"{type(owner).__name__} has no {name}: no vLLM that was looked at is like this")
        if "request" not in inspect.signature(processor.add_request).parameters:
            raise EngineUnfit("OutputProcessor.add_request takes no request")
        if not getattr(processor, "log_stats", True):
            raise EngineUnfit("--disable-log-stats: without statistics the engine counts no tokens")
        self._attempt_of_nobody = attempt_of_nobody
        self._goes_down = goes_down
        self._shut_down = shut_down
        self._on_broken = on_broken
        self._owners: dict[str, Attempt] = {}
        self._add, self._finish = processor.add_request, processor._finish_request
        self._update = processor._update_stats_from_output
        self._abort, self._stop = client.abort, client.shutdown
        processor.add_request = self.add_request
        processor._finish_request = self.finish_request
        processor._update_stats_from_output = self.update_stats
        client.abort = self.abort
        client.shutdown = self.shutdown
        client.generate = self._watched(client.generate)
        client.encode = self._watched(client.encode)

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A sequence comes in."""
        attempt = CURRENT.get()
        if attempt is None or attempt.over:
            attempt = self._attempt_of_nobody()
        else:
            try:
                _check(request, attempt)
            except IsolationBroken as broken:
                self._on_broken(attempt, str(broken))
                raise
        result = self._add(request, *args, **kwargs)
        state = self._processor.request_states.get(request.request_id)
        if state is not None:
            self._owners[request.request_id] = attempt
            attempt.began(request.request_id, lambda: look(state))
        return result

    def update_stats(self, state: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
        """A step has made tokens of a sequence: how long after the ones before. The first one tells of its prompt."""
        stats = state.stats
        if stats is None:
            return self._update(state, output, *args, **kwargs)
        if state.is_prefilling and _ended_unread(output):
            state._tollbook_unread = True
        tokens, at = stats.num_generation_tokens, stats.last_token_ts
        result = self._update(state, output, *args, **kwargs)
        number = stats.num_generation_tokens - tokens
        attempt = self._owners.get(state.request_id) if tokens and number else None
        if attempt is not None:
            attempt.on_gap((stats.last_token_ts - at) / number, number)
        return result

    def finish_request(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """A sequence has ended by itself."""
        result = self._finish(state, *args, **kwargs)
        self._ended([state.request_id])
        return result

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> Any:
        """Sequences are cut off: look at them before they are popped."""
        named = [request_id] if isinstance(request_id, str) else list(request_id)
        processor = self._processor
        if not internal:
            named = [inner for outer in named for inner in processor.external_req_ids.get(outer, [])]
        cut = []
        for name in named:
            parent = processor.parent_requests.get(name)
            cut += [name] if parent is None else list(parent.child_requests)
        for name in cut:
            attempt = self._owners.get(name)
            if attempt is not None:
                attempt.seen.reasons.add("abort")
        self._ended(cut)
        return await self._abort(named if internal else request_id, internal=internal)

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """The engine ends: at once, or after it has let requests finish. vLLM calls it on a thread of its own, and its
        server goes on taking requests meanwhile, which the engine answers with nothing."""
        self._goes_down()
        draining = kwargs.get("timeout", args[0] if args else None)
        result = self._stop(*args, **kwargs) if draining else None
        self._shut_down()
        return result if draining else self._stop(*args, **kwargs)

    def _watched(self, run: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def watched(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            attempt, outer = CURRENT.get(), kwargs.get("request_id", args[2] if len(args) > 2 else None)
            outputs = run(*args, **kwargs)
            try:
                async for output in outputs:
                    if attempt is not None:  # of several sequences each says its own, in whichever output it ends
                        attempt.seen.reasons.update(_reasons(output))
                    yield output
            except Exception:
                if attempt is not None:
                    attempt.seen.reasons.add("error")
                raise
            finally:  # also where the engine has died, of which neither finish nor abort tells
                await outputs.aclose()  # type: ignore[attr-defined]
                if attempt is not None and outer is not None:
                    left = [name for name, see in attempt.running.items() if see().prompt == outer]
                    self._ended(left)

        return watched

    def _ended(self, sequence_ids: Iterable[str]) -> None:
        for sequence_id in sequence_ids:
            attempt = self._owners.pop(sequence_id, None)
            if attempt is not None:
                attempt.finished(sequence_id)


def look(state: Any) -> Sequence:
    """A `RequestState` as it stands. One that ended before its prompt was read is not prefilling any more, either."""
    stats = state.stats
    output = stats.num_generation_tokens if stats is not None else 0
    return Sequence(
        prompt=state.external_req_id,
        child=state.request_index,
        prompt_tokens=state.prompt_len,
        output_tokens=output,
        cached_tokens=max(state.num_cached_tokens, 0),
        counted=not state.is_prefilling and not hasattr(state, "_tollbook_unread"),
        first_at=stats.first_token_ts if output else 0.0,  # the engine's monotonic
    )


def _ended_unread(output: Any) -> bool:
    """Whether a sequence's first output has no figures of its prompt, by which vLLM counts it: it ended before that was
    read (refused while the engine goes down, a grammar that does not compile, a transfer that failed)."""
    return getattr(output, "prefill_stats", output) is None


def _check(request: Any, attempt: Attempt) -> None:
    """Whatever route a request took: the salt is its tenant's, and so is the adapter."""
    if request.cache_salt != attempt.cache_salt:
        raise IsolationBroken("a sequence without its tenant's cache salt was stopped")
    lora = request.lora_request.lora_name if request.lora_request is not None else None
    if lora != (attempt.engine_model if attempt.adapter else None):
        raise IsolationBroken("a sequence with another adapter than its tenant asked for was stopped")


def _reasons(output: Any) -> Iterable[str]:
    outputs = getattr(output, "outputs", None)
    for part in outputs if isinstance(outputs, list) else ():  # an embedding is one thing, and ends for no reason
        reason = getattr(part, "finish_reason", None)
        if reason is not None:
            yield str(reason)
