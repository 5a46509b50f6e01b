"""Who calls the quota service, and whom they may ask about; calls that wait for a tenant's usage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from serving_adapter.quota.groups import shard_of
from streams.http import access_keys
from streams.http.access_keys import AccessKey
from streams.quotas import answers
from streams.quotas.held import Held
from streams.quotas.http_protocol import Call
from streams.quotas.service import UNAVAILABLE, QuotaService

AUTHENTICATE: Final = (("www-authenticate", 'Bearer realm="tollbook"'),)


class Rejected(Exception):
    """A call that is answered without asking the shard."""

    def __init__(self, status: int, code: str, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = headers


class Callers:
    """What every call is asked first."""

    def __init__(self, service: QuotaService) -> None:
        self._service = service
        self._shard = service.shard
        self._known: dict[bytes, AccessKey] = {}
        self._known_as_of = 0.0

    def key_of(self, call: Call) -> AccessKey:
        """The key of a caller, by the header it sent. Raises Rejected."""
        service = self._service
        if self._known_as_of != service.keys_read_at:
            self._known, self._known_as_of = {}, service.keys_read_at
        key = self._known.get(call.authorization)
        if key is None:
            scheme, _, secret = call.authorization.decode("latin-1").partition(" ")
            key = access_keys.find(service.keys, secret.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                raise Rejected(401, "unauthorized", "a quota caller's key is needed", AUTHENTICATE)
            self._known[call.authorization] = key
        if service.keys_are_stale:
            raise Rejected(503, "unavailable", "the access keys could not be read for minutes")
        return key

    def own(self, key: AccessKey, tenant_id: str) -> None:
        """Refuse tenants that are not the caller's, or not this shard's."""
        if not key.may_speak_for(tenant_id):
            raise Rejected(403, "forbidden", f"this key may not ask for tenant {tenant_id}")
        if not self._shard.owns(tenant_id):
            number = shard_of(tenant_id, self._shard.of)
            where = (("x-tollbook-shard", str(number)), ("x-tollbook-shards", str(self._shard.of)))
            raise Rejected(421, "other_shard", f"tenant {tenant_id} is of shard {number}", where)

    def ready(self, call: Call, tenant_id: str, tier: str, again: Callable[[], None]) -> Held | None:
        """A tenant's book; None if the call has its answer, or waits until the book can be had."""
        held = self._shard.ready(tenant_id, self._service.now(), tier)
        if isinstance(held, Held):
            return held
        if held == "loading":
            self.wait(call, tenant_id, again)
            return None
        bar(held, tenant_id)

    def wait(self, call: Call, tenant_id: str, again: Callable[[], None]) -> None:
        """Try a call again when the database was looked at."""
        if self._service.giving_up:
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
            return

        def retry() -> bool:
            try:
                again()
            except Rejected as rejected:
                call.answer(rejected.status, answers.error(rejected.code, str(rejected)), rejected.headers)
            call.flush()
            return True

        if not self._service.park(tenant_id, retry):
            raise Rejected(503, "unavailable", "too many requests wait for their tenants' usage")

    def is_away(self, call: Call) -> bool:
        """Whether nothing can be decided now, which the call is told."""
        if self._service.away:
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
        return self._service.away


def bar(unready: str, tenant_id: str) -> NoReturn:
    """Refuse a tenant that may not use anything. Raises Rejected."""
    text = {"unknown": "is not registered", "suspended": "is suspended", "closed": "is closed"}[unready]
    raise Rejected(403, f"tenant_{unready}", f"tenant {tenant_id} {text}")
