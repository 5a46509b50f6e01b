"""Errors in Stripe's shape.

Source: docs.stripe.com/api/errors (attributes, types, statuses) and docs.stripe.com/error-codes (codes).
Messages follow what Stripe's API is publicly known to say; a client should match on ``type``, ``code`` and
``param``, never on the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INVALID_REQUEST = "invalid_request_error"
IDEMPOTENCY = "idempotency_error"
API = "api_error"

UNSUPPORTED = "twin_unsupported"
"""The one code that Stripe does not have: the request is fine for Stripe, but the twin cannot act on it."""


@dataclass
class StripeError(Exception):
    """A request that Stripe answers with an error.

    ``should_retry`` becomes the ``Stripe-Should-Retry`` header; None leaves the header out. ``keeps``: what was done
    stays all the same (a charge that was declined is there, and told of).
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    type: str = INVALID_REQUEST
    should_retry: bool | None = None
    keeps: bool = False

    def body(self, request_log_url: str) -> dict[str, Any]:
        error: dict[str, Any] = {}
        if self.code is not None:
            error["code"] = self.code
            if self.code != UNSUPPORTED:
                error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        error["message"] = self.message
        if self.param is not None:
            error["param"] = self.param
        error["request_log_url"] = request_log_url
        error["type"] = self.type
        return {"error": error}


def invalid(message: str, param: str | None = None, code: str | None = None) -> StripeError:
    """A 400 of type ``invalid_request_error``."""
    return StripeError(400, message, code, param)


def resource_missing(kind: str, object_id: str, param: str | None = None) -> StripeError:
    """No such object: 404 when the URL names it, 400 when a parameter does."""
    message = f"No such {kind}: '{object_id}'"
    if param is None:
        return StripeError(404, message, "resource_missing", "id")
    return StripeError(400, message, "resource_missing", param)


def parameter_missing(param: str) -> StripeError:
    return invalid(f"Missing required param: {param}.", param, "parameter_missing")


def parameters_exclusive(params: tuple[str, ...]) -> StripeError:
    names = ", ".join(params)
    return invalid(f"You may only specify one of these parameters: {names}.", params[0], "parameters_exclusive")


def missing_email() -> StripeError:
    """`send_invoice` for a customer without an email."""
    return invalid(
        "Missing email. In order to create invoices that are sent to the customer, the customer must have "
        "a valid email."
    )


def unsupported(param: str, detail: str = "") -> StripeError:
    """What Stripe takes and the twin does not model: refused loudly instead of ignored silently."""
    message = f"The Stripe twin does not support `{param}`{detail}; see devstack/stripe_twin/README.md."
    return invalid(message, param, UNSUPPORTED)


def unknown_url(method: str, path: str) -> StripeError:
    return StripeError(
        404,
        f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs. "
        "(This is the Stripe twin: endpoints it has are listed in devstack/stripe_twin/README.md.)",
    )


def internal_error() -> StripeError:
    """An unexpected exception in a handler.

    The reply is stored under the idempotency key, so a retry would only replay it: hence should_retry False
    (comment in stripe-python's ``HTTPClient._should_retry``).
    """
    return StripeError(
        500, "An unknown error occurred; the twin's standard error has the traceback.", None, None, API, False
    )
