"""Stripe's rules as functions from values to values: no clock, no store, no HTTP."""
