"""What was signed and issued before an account was reopened, against what there is now."""

from __future__ import annotations

from typing import Any, Final

from reconciliation.close.signatures import Signature, as_signed, of_reopened, since_signed
from reconciliation.comparison import Difference

TOLD: Final = {"number": "INV-1", "issue_date": "2026-11-02", "due_date": "2026-12-02"}


def approve(digest: str, account: str = "acme") -> tuple[str, str, dict[str, Any]]:
    return account, "approve", {"content_hash": digest}


def step(event: str, issued: dict[str, Any] | None = None, account: str = "acme") -> tuple[str, str, dict[str, Any]]:
    return account, event, {} if issued is None else {"issued": issued}


def document(name: str = "i1", **changed: Any) -> dict[str, Any]:
    line = {"line_key": "out", "amount": 100}
    values = {"invoice_id": name, "kind": "usage", "tenant_id": "acme", "period": "2026-10", "currency": "USD",
              "service_end": "2026-11-01T00:00:00Z", "total": 100, "lines": [line]}  # fmt: skip
    return values | changed


def content(*documents: dict[str, Any], requests: int = 1, amount: str = "1") -> dict[str, Any]:
    own = {"billing_account": "acme"}
    counted = {"requests": requests, "input_tokens": 0, "cache_hit_tokens": 0, "output_tokens": 0, "gpu_us": 0}
    usage = [own | counted | {"model": "m"}, {"billing_account": "beta"} | counted | {"model": "m"}]
    rated = [own | {"key": "out", "currency": "USD", "amount": amount}]
    tenant = {"tenant_id": "acme", "period": "2026-10", "usage": usage, "rated_lines": rated}
    return own | {"tenants": [tenant], "late": [], "documents": list(documents)}


def test_a_signature_counts_once_something_was_issued_under_it_and_the_account_was_reopened() -> None:
    issued = {"i1": TOLD}
    assert of_reopened([approve("a"), step("finalize", issued), step("close")]) == []
    assert of_reopened([approve("a"), step("return"), approve("b"), step("reopen", {})]) == []
    assert of_reopened([approve("a"), step("reopen", issued)]) == [Signature("acme", "a", issued)]
    others = [approve("x", "beta"), step("finalize", issued, "beta")]
    told = [approve("a"), approve("b"), *others, step("finalize"), step("reopen", issued), approve("c")]
    assert of_reopened(told) == [Signature("acme", "b", None)]
    # What was issued first is told as it was issued; under one content that was signed twice, the rest, too
    later = {"i1": {"number": "INV-9"}, "i2": TOLD}
    again = [approve("a"), step("reopen", issued), approve("a"), step("finalize", later), step("reopen")]
    assert of_reopened(again) == [Signature("acme", "a", {"i1": TOLD, "i2": TOLD})]


def test_what_was_issued_is_what_was_signed_field_by_field_and_line_by_line() -> None:
    signature = Signature("acme", "a", {"i1": TOLD})
    signed = {("acme", "a"): content(document(), document("never issued"))}

    def differences(of: Signature = signature, **issued: dict[str, Any]) -> list[Difference]:
        return list(as_signed([of], signed, issued).differences)

    assert differences(i1=document() | TOLD | {"state": "paid"}) == []
    assert differences() == [Difference("acme/i1", "issued", None)]
    assert differences(Signature("acme", "b", {})) == [Difference("acme/signed as b", "kept", None)]
    assert [each.key for each in differences(i1=document(total=101) | TOLD | {"number": "INV-2"})] == [
        "acme/i1/number", "acme/i1/total",
    ]  # fmt: skip
    assert [each.key for each in differences(i1=document(lines=[{"line_key": "in"}]) | TOLD)] == [
        "acme/i1/lines/in", "acme/i1/lines/out",
    ]  # fmt: skip
    whole = Signature("acme", "a", None)
    assert [each.key for each in differences(whole, i1=document())] == ["acme/never issued"]
    # Each document is compared with the first signature under which it was issued
    twice = [signature, Signature("acme", "b", {"i1": TOLD | {"number": "INV-2"}})]
    both = signed | {("acme", "b"): content(document(total=5))}
    assert as_signed(twice, both, {"i1": document() | TOLD}).agrees


def test_what_came_since_the_first_signature_is_told_with_both_values() -> None:
    first = Signature("acme", "a", {"i1": TOLD})
    signed = {("acme", "a"): content(document()), ("acme", "b"): content()}
    issued = {"i1": document() | TOLD}
    of_it = document("n1", kind="credit_note", total=-30, number="CN-1", credits_invoice={"number": "INV-1"},
                     billing_account="acme")  # fmt: skip
    another = of_it | {"number": "CN-2", "credits_invoice": {"number": "INV-7"}}
    now = content(document(), document("i2", kind="adjustment", total=20), requests=3, amount="1.5")
    rows = since_signed([first, Signature("acme", "b", {})], signed, {"acme": now}, issued, [of_it, another])
    assert [tuple(row.values()) for row in rows] == [
        ("acme", "", "2026-10", "credit note", "CN-1", "USD", "", "-0.3"),
        ("acme", "acme", "2026-10", "adjustment", "i2", "USD", "", "0.2"),
        ("acme", "acme", "2026-10", "rated", "out", "USD", "1", "1.5"),
        ("acme", "acme", "2026-10", "usage", "m/requests", "", "1", "3"),
    ]
    same = {"acme": content(document())}
    assert list(since_signed([first], signed, same, issued, [])) == []
