"""The second, independent rating: the rules of `docs/spec/money.md`, read by somebody who had not read `billing`."""

from reconciliation.oracle.bill import documents_of, rate
from reconciliation.oracle.fields import CaseError

__all__ = ["CaseError", "documents_of", "rate"]
