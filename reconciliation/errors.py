"""Errors of reconciliation."""

from __future__ import annotations


class ReconciliationError(Exception):
    """Base of this folder's errors; the text says what to do."""


class PeriodNotReconcilable(ReconciliationError):
    """A period that is not one calendar month."""
