"""One attempt of a request bills: the delivered one."""

from __future__ import annotations

from typing import Any

import pytest

from billing.plans.price_plans import Metric
from billing.rating import rate
from billing.usage.attempts import left_out, less
from streams.rules.windows import AttemptUsage
from tests.billing_builders import OCTOBER, charge, cut, usage, version

BILLS = ("ok", "aborted")


def attempt(number: int, status: str, request_id: str = "r", **changed: Any) -> AttemptUsage:
    return AttemptUsage(request_id, number, OCTOBER.start, usage(status=status, **changed))


@pytest.mark.parametrize(
    ("statuses", "delivered"),
    [
        (("aborted", "ok"), 2),
        (("ok", "aborted"), 1),
        (("ok", "ok"), 2),
        (("aborted", "aborted"), 2),
        (("aborted", "error"), 1),
        (("aborted", "error", "ok", "aborted"), 3),
    ],
)
def test_the_last_that_ended_ok_bills_else_the_last_aborted(statuses: tuple[str, ...], delivered: int) -> None:
    attempts = [attempt(number, status) for number, status in enumerate(statuses, start=1)]
    billable = {a.attempt for a in attempts if a.quantity.status in BILLS}
    assert {a.attempt for a in left_out(attempts, BILLS)} == billable - {delivered}


def test_a_contract_that_bills_errors_bills_one_of_them_only_where_nothing_better_ended() -> None:
    assert [a.attempt for a in left_out([attempt(1, "error"), attempt(2, "error")], ("ok", "error"))] == [1]
    assert [a.attempt for a in left_out([attempt(1, "ok"), attempt(2, "error")], ("ok", "error"))] == [2]


def test_requests_of_one_name_at_two_tenants_have_nothing_to_do_with_each_other() -> None:
    assert not left_out([attempt(1, "ok", tenant_id="a"), attempt(2, "ok", tenant_id="b")], BILLS)


def test_a_correction_goes_with_its_attempt() -> None:
    attempts = [attempt(1, "aborted"), attempt(1, "aborted", requests=0, output_tokens=-3), attempt(2, "ok")]
    assert left_out(attempts, BILLS) == attempts[:2]


def test_where_the_delivered_attempt_failed_by_the_platforms_fault_the_request_is_free() -> None:
    attempts = [attempt(1, "aborted", output_tokens=5), attempt(2, "ok", fault="platform", output_tokens=7)]
    (piece,) = cut([version(charge("a", Metric.OUTPUT, "1"))])
    assert not rate([(piece, less([a.quantity for a in attempts], left_out(attempts, BILLS)))], OCTOBER).lines


def test_what_is_left_out_is_taken_from_the_sums_of_its_own_key() -> None:
    sums = [usage(requests=3, output_tokens=30), usage(status="aborted", requests=2, output_tokens=9)]
    rest = less(sums, [attempt(1, "aborted", output_tokens=4)])
    assert rest == [usage(requests=3, output_tokens=30), usage(status="aborted", requests=1, output_tokens=5)]
