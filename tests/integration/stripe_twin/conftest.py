"""What the twin's integration tests share: an SDK client on an account of the test's own, and a draft invoice."""

from __future__ import annotations

import pytest
import stripe

from tests.fixtures_stripe_twin import StripeTwin


@pytest.fixture
def client(stripe_twin: StripeTwin) -> stripe.StripeClient:
    """The real SDK against the shared twin, seeing an empty account."""
    return stripe_twin.client()


@pytest.fixture
def customer(client: stripe.StripeClient) -> stripe.Customer:
    return client.v1.customers.create({"name": "Acme", "email": "billing@acme.example"})


@pytest.fixture
def draft(client: stripe.StripeClient, customer: stripe.Customer) -> stripe.Invoice:
    """An empty draft in USD, due in 30 days."""
    return client.v1.invoices.create(
        {"customer": customer.id, "currency": "usd", "collection_method": "send_invoice", "days_until_due": 30}
    )
