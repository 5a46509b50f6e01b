"""Webhook endpoints: docs.stripe.com/api/webhook_endpoints. The secret is shown once, when the endpoint is made."""

from __future__ import annotations

from typing import Any

from stripe.params._webhook_endpoint_create_params import WebhookEndpointCreateParams
from stripe.params._webhook_endpoint_delete_params import WebhookEndpointDeleteParams
from stripe.params._webhook_endpoint_list_params import WebhookEndpointListParams
from stripe.params._webhook_endpoint_retrieve_params import WebhookEndpointRetrieveParams
from stripe.params._webhook_endpoint_update_params import WebhookEndpointUpdateParams

from devstack.stripe_twin.authentication import API_VERSION
from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, chosen
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Route
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.session import State

_KIND = "webhook_endpoint"


def create(call: Call) -> dict[str, Any]:
    _check_url(call.params["url"])
    endpoint: State = {
        "id": call.ids.new("we"),
        "object": _KIND,
        "api_version": API_VERSION,
        "application": None,
        "created": call.now,
        "description": call.params.get("description") or None,
        "enabled_events": call.params["enabled_events"],
        "livemode": False,
        "metadata": merge({}, call.params.get("metadata")),
        "status": "enabled",
        "url": call.params["url"],
        "_secret": call.ids.new("whsec"),
    }
    call.session.insert(endpoint, call.now)
    return {**render(call.session, endpoint), "secret": endpoint["_secret"]}


def update(call: Call) -> dict[str, Any]:
    """Also ``disabled``: then nothing is told to it."""
    endpoint = call.session.get(_KIND, call.target["id"])
    if "url" in call.params:
        _check_url(call.params["url"])
    endpoint.update(chosen(call.params, frozenset({"url", "enabled_events", "description"})))
    endpoint["metadata"] = merge(endpoint["metadata"], call.params.get("metadata"))
    if "disabled" in call.params:
        endpoint["status"] = "disabled" if call.params["disabled"] else "enabled"
    call.session.update(endpoint)
    return render(call.session, endpoint)


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise invalid("Invalid URL: An explicit scheme (such as https) must be provided.", "url", "url_invalid")


ROUTES = (
    Route(
        "POST",
        "/v1/webhook_endpoints",
        create,
        WebhookEndpointCreateParams,
        frozenset({"url", "enabled_events", "description", "metadata"}),
    ),
    Route(
        "POST",
        "/v1/webhook_endpoints/{id}",
        update,
        WebhookEndpointUpdateParams,
        frozenset({"url", "enabled_events", "description", "disabled", "metadata"}),
    ),
    Route(
        "GET",
        "/v1/webhook_endpoints",
        lambda call: rendered_page(call, _KIND, {}, "/v1/webhook_endpoints"),
        WebhookEndpointListParams,
        PAGE_PARAMS,
    ),
    Route(
        "GET",
        "/v1/webhook_endpoints/{id}",
        lambda call: render(call.session, call.session.get(_KIND, call.target["id"])),
        WebhookEndpointRetrieveParams,
    ),
    Route(
        "DELETE",
        "/v1/webhook_endpoints/{id}",
        lambda call: call.session.delete(call.session.get(_KIND, call.target["id"])),
        WebhookEndpointDeleteParams,
    ),
)
