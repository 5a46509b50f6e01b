"""Search: what invoices and customers were like a minute ago.

Sources: docs.stripe.com/search (the query language; "searchable in less than 1 minute" and later in outages: not for
reading what was just written), docs.stripe.com/api/invoices/search, /api/customers/search, /api/pagination/search.
Here it is never sooner than ``LAG_S``, by the twin's clock, and shows an object as its last event before that did.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from stripe.params._customer_search_params import CustomerSearchParams
from stripe.params._invoice_search_params import InvoiceSearchParams

from devstack.stripe_twin.errors import StripeError, invalid
from devstack.stripe_twin.routing import Call, Handler, Route
from devstack.stripe_twin.rules.pagination import page_of

LAG_S: Final = 60
FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "invoice": frozenset({"created", "currency", "customer", "number", "receipt_number", "status", "total"}),
    "customer": frozenset({"created", "email", "name", "phone"}),
}
"""docs.stripe.com/search#supported-query-fields-for-each-resource; ``metadata`` of each beside them."""
_CLAUSE: Final = re.compile(
    r"""\s*(?P<not>-?)(?P<name>\w+)(?:\[(["'])(?P<key>[^"']+)\3\])?(?P<compare>:|~|>=|<=|>|<)"""
    r"""(?P<value>"[^"]*"|'[^']*'|null|-?\d+)\s*"""
)
_JOINT: Final = re.compile(r"(AND|OR)\b|(?=[-\w])", re.IGNORECASE)
_COMPARED: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip

Matches = Callable[[Mapping[str, Any]], bool]


def matcher(kind: str, query: str) -> Matches:
    """Whether an object matches a query. Raises StripeError (400)."""
    clauses: list[Matches] = []
    joints: set[str] = set()
    at = 0
    while True:
        found = _CLAUSE.match(query, at)
        if found is None:
            raise _malformed(query, at)
        clauses.append(_clause(kind, found))
        at = found.end()
        if at == len(query):
            break
        joint = _JOINT.match(query, at)
        if joint is None:
            raise _malformed(query, at)
        joints.add((joint[1] or "AND").upper())
        at = joint.end()
    if len(joints) > 1:
        raise invalid("You cannot combine AND and OR in one query.", "query")
    together = any if "OR" in joints else all
    return lambda shown: together(clause(shown) for clause in clauses)


def _clause(kind: str, found: re.Match[str]) -> Matches:
    name, key, compare, text = found["name"], found["key"], found["compare"], found["value"]
    if (name == "metadata") != (key is not None) or (name != "metadata" and name not in FIELDS[kind]):
        raise invalid(f"Field `{name}` is an unsupported search field for resource `{kind}s`.", "query")
    wanted: Any = None if text == "null" else text[1:-1] if text[0] in "\"'" else int(text)

    def holds(shown: Mapping[str, Any]) -> bool:
        value = shown["metadata"].get(key) if key else shown[name]
        if wanted is None or value is None:
            return compare == ":" and value is None and wanted is None
        if compare in _COMPARED:
            return _COMPARED[compare](value, int(wanted))
        if compare == "~":
            return str(wanted).lower() in str(value).lower()
        return str(value).lower() == str(wanted).lower()

    return (lambda shown: not holds(shown)) if found["not"] else holds


def _malformed(query: str, at: int) -> StripeError:
    return invalid(f"We were unable to parse your search query, from: {query[at : at + 30]!r}", "query")


def _search(kind: str) -> Handler:
    def handler(call: Call) -> dict[str, Any]:
        matches = matcher(kind, call.params["query"])
        seen = call.session.told_of(kind, before=call.told_at - LAG_S)
        found = sorted((each for each in seen if matches(each)), key=lambda each: each["created"], reverse=True)
        limit, given = page_of(call.params).limit, call.params.get("page") or "0"
        if not given.isdecimal():
            raise invalid(f"Invalid page: {given}", "page")
        first = int(given)
        more = first + limit < len(found)
        return {
            "object": "search_result",
            "data": found[first : first + limit],
            "has_more": more,
            "next_page": str(first + limit) if more else None,
            "url": f"/v1/{kind}s/search",
        }

    return handler


_PARAMS: Final = frozenset({"query", "limit", "page"})

ROUTES = (
    Route("GET", "/v1/invoices/search", _search("invoice"), InvoiceSearchParams, _PARAMS),
    Route("GET", "/v1/customers/search", _search("customer"), CustomerSearchParams, _PARAMS),
)
