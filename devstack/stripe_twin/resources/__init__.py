"""Stripe's resources, one module each; ``ROUTES`` is the table of all endpoints that the twin has."""

from __future__ import annotations

from devstack.stripe_twin.resources import (
    account,
    balance,
    cash_balance,
    credit_notes,
    customer_balance,
    customers,
    invoice_items,
    invoice_lines,
    invoice_transitions,
    invoices,
    money,
    payment_methods,
    search,
    test_clocks,
    webhook_endpoints,
)

ROUTES = (
    *account.ROUTES,
    *balance.ROUTES,
    *customers.ROUTES,
    *customer_balance.ROUTES,
    *cash_balance.ROUTES,
    *invoices.ROUTES,
    *invoice_lines.ROUTES,
    *invoice_transitions.ROUTES,
    *invoice_items.ROUTES,
    *credit_notes.ROUTES,
    *money.ROUTES,
    *payment_methods.ROUTES,
    *test_clocks.ROUTES,
    *search.ROUTES,
    *webhook_endpoints.ROUTES,
)
