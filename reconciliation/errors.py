"""Errors of reconciliation."""

from __future__ import annotations


class ReconciliationError(Exception):
    """Base of this folder's errors; the text says what to do."""


class PeriodNotReconcilable(ReconciliationError):
    """A period that is not one calendar month."""


class MaterialUnreadable(ReconciliationError):
    """What a replay is to be made from cannot be read."""


class MappingInvalid(ReconciliationError):
    """A mapping file that does not say how a line becomes a usage event."""


class ReplayRefused(ReconciliationError):
    """A plan that cannot be made or applied."""


class FindingRefused(ReconciliationError):
    """A finding that cannot be settled."""


class CloseRefused(ReconciliationError):
    """Something that the close of a month does not allow, or not now."""


class EvidenceBroken(ReconciliationError):
    """An evidence pack that cannot be read as one."""
