"""Payment methods (cards from Stripe's test tokens) and payment intents, as far as paying an invoice needs them.

Sources: docs.stripe.com/api/payment_methods, /api/payment_intents, /testing (the tokens and what comes of each).
"""

from __future__ import annotations

from typing import Any

from stripe.params._customer_payment_method_list_params import CustomerPaymentMethodListParams
from stripe.params._payment_intent_list_params import PaymentIntentListParams
from stripe.params._payment_intent_retrieve_params import PaymentIntentRetrieveParams
from stripe.params._payment_method_attach_params import PaymentMethodAttachParams
from stripe.params._payment_method_create_params import PaymentMethodCreateParams
from stripe.params._payment_method_detach_params import PaymentMethodDetachParams
from stripe.params._payment_method_list_params import PaymentMethodListParams
from stripe.params._payment_method_retrieve_params import PaymentMethodRetrieveParams

from devstack.stripe_twin.errors import StripeError, invalid, parameter_missing, unsupported
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, filters
from devstack.stripe_twin.resources.payments import DECLINED
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.session import Session, State

KIND = "payment_method"
_CARDS = {"visa": ("visa", "4242"), "mastercard": ("mastercard", "4444"), "chargeCustomerFail": ("visa", "0341")}
"""By what follows tok_ or pm_card_: brand and last digits. The last one can be attached, and every charge fails."""
_FAILS = "0341"


def create(call: Call) -> dict[str, Any]:
    """Of a card, by test token; numbers of cards are not taken."""
    if call.params.get("type") != "card":
        raise unsupported("type", " other than card")
    token = (call.params.get("card") or {}).get("token")
    if token is None:
        raise parameter_missing("card[token]")
    method = _new(call, str(token).removeprefix("tok_"), "card[token]")
    method["metadata"] = merge({}, call.params.get("metadata"))
    call.session.insert(method, call.now)
    return render(call.session, method)


def attach(call: Call) -> dict[str, Any]:
    """To a customer; ``pm_card_…`` makes a new one of that kind, as in Stripe's sandboxes."""
    if "customer" not in call.params:
        raise parameter_missing("customer")
    customer = call.session.get("customer", call.params["customer"], "customer")
    name = call.target["id"]
    if name.startswith("pm_card_"):
        method = _new(call, name.removeprefix("pm_card_"), "id")
        call.session.insert(method, call.now)
    else:
        method = call.session.get(KIND, name)
    if method["customer"] not in (None, customer["id"]):
        raise invalid("The payment method you provided has already been attached to a customer.", "payment_method")
    method["customer"] = customer["id"]
    call.session.update(method)
    return render(call.session, method)


def detach(call: Call) -> dict[str, Any]:
    """From its customer; it cannot be used again."""
    method = call.session.get(KIND, call.target["id"])
    if method["customer"] is None:
        raise invalid("The payment method you provided is not attached to a customer so detachment is impossible.")
    method["customer"] = None
    call.session.update(method)
    return render(call.session, method)


def list_methods(call: Call) -> dict[str, Any]:
    """A customer's, named in the path or as a parameter."""
    chosen = filters(call.params, frozenset({"customer", "type"}))
    url = "/v1/payment_methods"
    if "customer" in call.target:
        chosen["customer"] = call.session.get("customer", call.target["customer"])["id"]
        url = f"/v1/customers/{chosen['customer']}/payment_methods"
    return rendered_page(call, KIND, chosen, url)


def method_for(session: Session, invoice: State, given: str | None) -> State | None:
    """What an invoice is paid with: the method that is named, else its own default, else its customer's."""
    if given is not None:
        method = session.get(KIND, given, "payment_method")
        if method["customer"] != invoice["customer"]:
            raise invalid("The payment method does not belong to the customer of this invoice.", "payment_method")
        return method
    customer = session.find("customer", invoice["customer"]) or {"invoice_settings": {}}
    default = invoice["default_payment_method"] or customer["invoice_settings"].get("default_payment_method")
    return session.find(KIND, default) if default else None


def is_declined(method: State) -> bool:
    """Whether every charge of a card fails."""
    return bool(method["card"]["last4"] == _FAILS)


def declined() -> StripeError:
    """The reply to a charge that the bank declined: docs.stripe.com/error-codes#card-declined."""
    return StripeError(402, DECLINED, "card_declined", type="card_error", keeps=True)


def _new(call: Call, name: str, param: str) -> State:
    if name not in _CARDS:
        raise invalid(f"No such token: '{name}'", param, "resource_missing")
    brand, last4 = _CARDS[name]
    return {
        "id": call.ids.new("pm"),
        "object": KIND,
        "allow_redisplay": "unspecified",
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "card": {"brand": brand, "country": "US", "exp_month": 12, "exp_year": 2034, "funding": "credit",
                 "last4": last4},
        "created": call.now,
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }  # fmt: skip


_ONE = "/v1/payment_methods/{id}"
_INTENTS = "/v1/payment_intents"

ROUTES = (
    Route(
        "POST", "/v1/payment_methods", create, PaymentMethodCreateParams, frozenset({"type", "card", "metadata"})
    ),
    Route("GET", "/v1/payment_methods", list_methods, PaymentMethodListParams, PAGE_PARAMS | {"customer", "type"}),
    Route(
        "GET", "/v1/customers/{customer}/payment_methods", list_methods, CustomerPaymentMethodListParams,
        PAGE_PARAMS | {"type"},
    ),
    Route("GET", _ONE, lambda call: render(call.session, call.session.get(KIND, call.target["id"])),
          PaymentMethodRetrieveParams),
    Route("POST", f"{_ONE}/attach", attach, PaymentMethodAttachParams, frozenset({"customer"}),
          event="payment_method.attached"),
    Route("POST", f"{_ONE}/detach", detach, PaymentMethodDetachParams, event="payment_method.detached"),
    Route(
        "GET", _INTENTS,
        lambda call: rendered_page(
            call, "payment_intent", filters(call.params, frozenset({"customer", "created"})), _INTENTS
        ),
        PaymentIntentListParams, PAGE_PARAMS | {"customer", "created"},
    ),
    Route("GET", f"{_INTENTS}/{{id}}",
          lambda call: render(call.session, call.session.get("payment_intent", call.target["id"])),
          PaymentIntentRetrieveParams),
)  # fmt: skip
