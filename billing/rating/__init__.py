"""Rating: what usage and fees cost (docs/spec/money.md 2 to 4, 7). Values in, values out.

| rule | module |
|---|---|
| which usage bills, which charge takes it | `usage.py` |
| tier positions over plan changes: carry, reset, prorate | `positions.py` |
| charge models: per unit, graduated, volume, package, percentage, prepaid | `metered.py` |
| free units, own or of a pool | `allowances.py` |
| fees and their proration; in advance, and the credit for unused time | `fees.py`, `advance.py` |
| discounts, minimum, maximum, commitment | `adjustments.py` |
| the order of it all, also of a period that goes on | `period.py` |
| reruns, late usage | `differences.py` |
| a line, and the key that names it | `lines.py` |
"""

from billing.rating.differences import difference, net
from billing.rating.lines import LineIdentity, LineKind, Naming, RatedLine, segments_of
from billing.rating.period import RatedPeriod, rate_period
from billing.rating.sums import Rating, rate, rate_used
from billing.rating.usage import (
    NEVER_BILLED_STATUS,
    PieceUsage,
    UnpricedUsage,
    Usage,
    distribute,
    is_billable,
    quantities,
)

__all__ = [
    "NEVER_BILLED_STATUS", "LineIdentity", "LineKind", "Naming", "PieceUsage", "RatedLine", "RatedPeriod", "Rating",
    "UnpricedUsage", "Usage", "difference", "distribute", "is_billable", "net", "quantities", "rate", "rate_period",
    "rate_used", "segments_of",
]  # fmt: skip
