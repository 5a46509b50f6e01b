"""Invoices into Stripe: the requests, frozen before they are sent."""
