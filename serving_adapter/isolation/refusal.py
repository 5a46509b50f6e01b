"""A request that does not reach the engine, and what its caller is told."""

from __future__ import annotations

from typing import Final

import msgspec

from serving_adapter.errors import AdapterError

SOON: Final = (("retry-after", "1"),)


class Refusal(AdapterError):
    """An HTTP status and an error in OpenAI's shape; `code` names the reason for people and for metrics."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What the answer bears beside its type and length: whoever finds the replica unable may try again soon."""
        return SOON if self.status == 503 else ()

    @property
    def body(self) -> bytes:
        """The answer's body."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def going_down() -> Refusal:
    """For whoever comes to an engine that takes in nothing more, or waits for one that says nothing more."""
    return Refusal(503, "going_down", "This replica is going down.")
