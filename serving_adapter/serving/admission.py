"""Whether a request may begin: the quota that its tenant has, and a place at the engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final

from serving_adapter.isolation.body import Asked
from serving_adapter.isolation.callers import Caller
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.routes import Route
from serving_adapter.isolation.rules import Resolved
from serving_adapter.quota import Admission, PoolFull
from serving_adapter.serving.adapter_settings import PlacesSection
from serving_adapter.serving.replica import Replica

TEMPLATED: Final = frozenset({Route.CHAT, Route.RESPONSES})
_UNCOUNTED: Final = contextlib.nullcontext()


class Admitting:
    """Asks for one request of a caller."""

    def __init__(self, replica: Replica, caller: Caller, route: Route) -> None:
        self._replica = replica
        self._caller = caller
        self._route = route
        self.attempt_is_given = caller.request_id is not None and caller.attempt is not None
        """Whether a gateway counts the attempts of this request: another one may follow."""
        self._attempt = caller.attempt or 1 if self.attempt_is_given else 1
        self._nonce = ""

    async def ask(self, asked: Asked, model: Resolved, request_id: str) -> Admission | None:
        """The quota's word; None where none is asked. Raises QuotaRefusal."""
        gate, caller = self._replica.gate, self._caller
        if gate is None or caller.purpose != "tenant":
            return None
        quota = self._replica.settings.quota
        prompt_tokens = int(asked.prompt_bytes / quota.prompt_bytes_per_token)
        prompt_tokens += asked.media_parts * quota.tokens_per_media_part
        if self._route in TEMPLATED:
            prompt_tokens += quota.tokens_per_template
        admission = await gate.admit(
            caller.tenant_id, request_id, model.model, prompt_tokens, self._most_output(asked),
            attempt=self._attempt, adapter=model.adapter, n=asked.n, prompts=asked.prompts, tier=caller.tier,
            may_be_followed=self.attempt_is_given,
        )  # fmt: skip
        self._nonce = admission.nonce
        if not admission.allowed:
            raise QuotaRefusal(admission)
        return admission

    def _most_output(self, asked: Asked) -> int | None:
        """Tokens of each sequence; of none that were asked for (`echo`) vLLM makes one."""
        if self._route is Route.EMBEDDINGS:
            return 0
        return None if asked.max_tokens is None else max(1, asked.max_tokens)

    def withdraw(self, request_id: str) -> None:
        """What was admitted will not run."""
        caller, gate = self._caller, self._replica.gate
        if gate is not None and caller.purpose == "tenant":
            gate.withdraw(
                caller.tenant_id, request_id, self._nonce, attempt=self._attempt, may_be_followed=self.attempt_is_given
            )

    def place(self, request_id: str) -> AbstractAsyncContextManager[None]:
        """A place at the engine, where they are counted. Raises Refusal (503) if none is free in time."""
        places = self._replica.settings.places
        return _UNCOUNTED if places is None else self._place(request_id, places)

    @contextlib.asynccontextmanager
    async def _place(self, request_id: str, places: PlacesSection) -> AsyncIterator[None]:
        replica, caller = self._replica, self._caller
        place = replica.places.place(caller.tenant_id, caller.tier, places.wait_s)
        try:
            await place.__aenter__()
        except BaseException as error:
            self.withdraw(request_id)
            if not isinstance(error, PoolFull):
                raise
            raise Refusal(503, "no_place", f"The engine has no room for this request: {error}") from None
        try:
            yield
        finally:
            await place.__aexit__(None, None, None)


class QuotaRefusal(Refusal):
    """The quota service's own answer, as it is."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission.status, "quota", "The quota does not allow this request.")
        self._answer = admission.body
        self._headers = admission.headers

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """When to come again, and what is left."""
        return tuple(header for header in self._headers if header[0] != "content-type") or super().headers

    @property
    def body(self) -> bytes:
        """Without the service, its fail mode has no body."""
        return self._answer or super().body
