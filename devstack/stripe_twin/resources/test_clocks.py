"""Test clocks: customers whose time stands still until it is advanced.

Sources: docs.stripe.com/api/test_clocks, docs.stripe.com/billing/testing/test-clocks (three customers each, lists leave
them out, 30 days, two years at a time, deleting one deletes its customers). What is made of such a customer is dated by
its clock; advancing it finalizes its drafts that advance by themselves, an hour after they were made, and charges the
default payment method (docs.stripe.com/invoicing/integration/workflow-transitions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from stripe.params.test_helpers._test_clock_advance_params import TestClockAdvanceParams
from stripe.params.test_helpers._test_clock_create_params import TestClockCreateParams
from stripe.params.test_helpers._test_clock_delete_params import TestClockDeleteParams
from stripe.params.test_helpers._test_clock_list_params import TestClockListParams
from stripe.params.test_helpers._test_clock_retrieve_params import TestClockRetrieveParams

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import emit
from devstack.stripe_twin.resources import invoice_transitions
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.session import Session, State

KIND: Final = "test_helpers.test_clock"
CUSTOMERS_MAX: Final = 3
_LIVES_S: Final = 30 * 24 * 60 * 60
_FURTHEST_S: Final = 2 * 366 * 24 * 60 * 60
_COLLECTION: Final = "/v1/test_helpers/test_clocks"
_ABOUT: Final = ("customer", "invoice", "charge", "payment_intent")


def time_of(session: Session, given: Mapping[str, Any]) -> int | None:
    """The frozen time of the clock that a request is under, by the objects that it names; None: under none."""
    if not session.has(KIND):
        return None
    clock = given.get("test_clock")
    for kind in _ABOUT:
        named = given.get(kind)
        found = session.find(kind, named) if isinstance(named, str) else None
        if found is not None and kind != "customer":
            found = session.find("customer", found["customer"])
        clock = clock or (found and found["test_clock"])
    state = session.find(KIND, clock) if clock else None
    return None if state is None else int(state["frozen_time"])


def join(session: Session, clock_id: str, customer: State) -> None:
    """Put a customer under a clock, for good; the caller saves it."""
    clock = session.get(KIND, clock_id, "test_clock")
    if len(_customers(session, clock)) >= CUSTOMERS_MAX:
        raise invalid(f"A test clock can have up to {CUSTOMERS_MAX} customers.", "test_clock")
    if customer["test_clock"] is not None:
        raise invalid("This customer is attached to a test clock already.", "customer")
    customer["test_clock"] = clock["id"]


def create(call: Call) -> dict[str, Any]:
    clock: State = {
        "id": call.ids.new("clock"),
        "object": KIND,
        "created": call.told_at,
        "deletes_after": call.told_at + _LIVES_S,
        "frozen_time": call.params["frozen_time"],
        "livemode": False,
        "name": call.params.get("name"),
        "status": "ready",
        "status_details": {},
    }
    call.session.insert(clock, call.told_at)
    if "customer" in call.params:
        customer = call.session.get("customer", call.params["customer"], "customer")
        join(call.session, clock["id"], customer)
        call.session.update(customer)
    return render(call.session, clock)


def advance(call: Call) -> dict[str, Any]:
    """Let time pass for its customers. The reply says ``advancing``; what is asked for next is done."""
    clock = call.session.get(KIND, call.target["id"])
    target = call.params["frozen_time"]
    if target <= clock["frozen_time"]:
        raise invalid("The time to advance to must be after the clock's current frozen time.", "frozen_time")
    if target > clock["frozen_time"] + _FURTHEST_S:
        raise invalid("A test clock cannot be advanced by more than two years at once.", "frozen_time")
    begun = clock | {"status": "advancing", "status_details": {"advancing": {"target_frozen_time": target}}}
    emit(call, "test_helpers.test_clock.advancing", render(call.session, begun))
    for customer in _customers(call.session, clock):
        for draft in call.session.of_customer("invoice", customer["id"], status="draft"):
            at = draft["automatically_finalizes_at"]
            if at is not None and at <= target:
                invoice_transitions.advance_draft(replace(call, now=at), draft)
    clock["frozen_time"] = target
    call.session.update(clock)
    emit(call, "test_helpers.test_clock.ready", render(call.session, clock))
    return render(call.session, begun)


def delete(call: Call) -> dict[str, Any]:
    """With its customers."""
    clock = call.session.get(KIND, call.target["id"])
    for customer in _customers(call.session, clock):
        call.session.delete(customer)
    return call.session.delete(clock)


def _customers(session: Session, clock: State) -> list[State]:
    return [customer for customer in session.all("customer") if customer["test_clock"] == clock["id"]]


_CLOCK = f"{_COLLECTION}/{{id}}"

ROUTES = (
    Route(
        "POST", _COLLECTION, create, TestClockCreateParams, frozenset({"customer", "frozen_time", "name"}),
        event="test_helpers.test_clock.created",
    ),
    Route(
        "GET", _COLLECTION, lambda call: rendered_page(call, KIND, {}, _COLLECTION), TestClockListParams, PAGE_PARAMS
    ),
    Route(
        "GET", _CLOCK, lambda call: render(call.session, call.session.get(KIND, call.target["id"])),
        TestClockRetrieveParams,
    ),
    Route("POST", f"{_CLOCK}/advance", advance, TestClockAdvanceParams, frozenset({"frozen_time"})),
    Route("DELETE", _CLOCK, delete, TestClockDeleteParams, event="test_helpers.test_clock.deleted"),
)  # fmt: skip
