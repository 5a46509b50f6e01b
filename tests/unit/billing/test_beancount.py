"""The Beancount export as text; that Beancount itself accepts it is tested with the database."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

from billing.ledger.beancount import AssertedBalance, account_name, ledger, month_starts, quoted
from billing.ledger.journal_chain import BookedEntry, BookedLeg

ENTRY = BookedEntry(
    7, 'k"1\\', bytes(32), "accrual", "default", "2026-10", None, datetime(2026, 10, 31, 23, 59, tzinfo=UTC),
    datetime(2026, 11, 1, tzinfo=UTC), None, {},
    (BookedLeg(1150, "USD", "acme.inc", Decimal("1.5")), BookedLeg(4000, "USD", "", Decimal("-1.5"))),
)  # fmt: skip

EXPECTED = """\
option "title" "Tollbook, legal entity default"

2026-10-31 open Assets:1150-UnbilledReceivable:S-acme-2Einc
  subledger: "acme.inc"

2026-10-31 open Income:4000-UsageRevenue

2026-10-31 * "accrual" "k\\"1\\\\"
  entry: "7"
  effective: "2026-10-31T23:59:00.000000Z"
  recorded: "2026-11-01T00:00:00.000000Z"
  period: "2026-10"
  Assets:1150-UnbilledReceivable:S-acme-2Einc  1.500000000000 USD
  Income:4000-UsageRevenue  -1.500000000000 USD

2026-11-01 balance Income:4000-UsageRevenue  -1.500000000000 ~ 0 USD
"""


def test_a_ledger_opens_its_accounts_books_its_entries_and_asserts_its_balances() -> None:
    asserted = AssertedBalance(date(2026, 11, 1), 4000, "", "USD", Decimal("-1.5"))
    assert "".join(ledger("default", [ENTRY], [asserted])) == EXPECTED


def test_no_two_accounts_share_a_name() -> None:
    subledgers = ["a-b", "a.b", "a_b", "a b", "ab", "a-2Db", "A-b", "é", "-C3-A9", ""]
    names = {account_name(1150, subledger) for subledger in subledgers}
    assert len(names) == len(subledgers)
    assert account_name(4930) == "Income:4930-DisputesLost"


def test_a_text_stays_one_string_of_one_line() -> None:
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'


def test_balances_are_asserted_at_the_beginning_of_every_month_that_follows_an_entry() -> None:
    begun, ended = datetime(2026, 11, 30, 23, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    assert month_starts(begun, ended) == [date(2026, 12, 1), date(2027, 1, 1), date(2027, 2, 1)]
    assert month_starts(begun, begun) == [date(2026, 12, 1)]
