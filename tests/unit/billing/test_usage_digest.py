"""The digest of billed events: the tree of RFC 6962, canonical leaves, and what is refused."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import EventsRefused
from billing.usage.usage_digest import BilledEvent, TenantCount, TenantUsage, event_of_line, usage_digest
from streams.merkle import MerkleTree, merkle_root

AT = datetime(2026, 10, 1, 12, 0, 0, 250000, tzinfo=UTC)


def billed(**changed: Any) -> BilledEvent:
    values: dict[str, Any] = {
        "completed_at": AT, "tenant_id": "acme", "request_id": "r-1", "attempt": 1, "kind": "usage", "correction_no": 0,
        "model": "llama", "adapter": "", "region": "eu", "tier": "", "status": "ok", "fault": "none",
        "usage_source": "engine", "input_tokens": 10, "cache_hit_tokens": 4, "output_tokens": 5, "gpu_us": 7,
    }  # fmt: skip
    return BilledEvent(**(values | changed))


def counted(*events: BilledEvent, tenant_id: str = "acme") -> TenantUsage:
    count = TenantCount(tenant_id)
    for event in sorted(events, key=lambda event: event.order):
        count.add(event)
    return count.usage


def rfc6962(leaves: list[bytes]) -> bytes:
    """MTH as section 2.1 writes it, by recursion."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + rfc6962(leaves[:k]) + rfc6962(leaves[k:])).digest()


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_tree_built_leaf_by_leaf_is_that_of_the_rfc(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == rfc6962(leaves)


def test_the_tree_keeps_no_more_than_a_hash_per_level() -> None:
    tree = MerkleTree()
    for number in range(5000):
        tree.add(b"%d" % number)
        assert len(tree._full) == (number + 1).bit_count()


def test_a_node_is_no_leaf() -> None:
    """Two leaves whose node's bytes are given as one leaf make another root."""
    left, right = hashlib.sha256(b"\0a").digest(), hashlib.sha256(b"\0b").digest()
    assert merkle_root([b"a", b"b"]) != merkle_root([left + right])


def test_a_leaf_is_what_the_documentation_says() -> None:
    content = hashlib.sha256(b'["llama","","eu","","ok","none","engine",10,4,5,7]').hexdigest()
    expected = f'["tollbook.billed_event.v1","acme","r-1",1,"usage",0,"2026-10-01T12:00:00.250000Z","{content}"]'
    assert billed().leaf == expected.encode()
    assert billed(completed_at=AT.astimezone(timezone(timedelta(hours=5)))).leaf == billed().leaf


def test_the_invoice_s_digest_is_over_its_tenants_by_id() -> None:
    one, two = counted(billed()), counted(billed(tenant_id="Zed"), tenant_id="Zed")
    leaves = [
        f'["tollbook.tenant_usage.v1","{u.tenant_id}",1,1,10,4,5,7,"{u.root.hex()}"]'.encode() for u in (two, one)
    ]
    assert usage_digest([one, two]) == usage_digest([two, one]) == rfc6962(leaves).hex()


EVENTS = st.lists(
    st.builds(
        billed,
        completed_at=st.integers(0, 3).map(lambda n: AT + timedelta(microseconds=n)),
        request_id=st.sampled_from(["a", "B", "é", "b"]),
        attempt=st.integers(1, 2),
        input_tokens=st.integers(4, 2**31),
        kind=st.sampled_from(["usage", "correction"]),
    ),
    unique_by=lambda event: event.order,
    min_size=1,
    max_size=12,
)
CHANGES: list[dict[str, Any]] = [
    {"completed_at": AT - timedelta(days=1)}, {"request_id": "x"}, {"attempt": 9}, {"correction_no": 3},
    {"model": "x"}, {"adapter": "x"}, {"region": "x"}, {"tier": "x"}, {"status": "aborted"}, {"fault": "client"},
    {"usage_source": "gateway"}, {"input_tokens": 3}, {"cache_hit_tokens": 3}, {"output_tokens": 4}, {"gpu_us": 8},
]  # fmt: skip


@given(EVENTS, st.randoms(use_true_random=False), st.sampled_from(CHANGES))
def test_order_of_arrival_does_not_matter_and_one_changed_event_does(
    events: list[BilledEvent], chance: random.Random, change: dict[str, Any]
) -> None:
    whole = counted(*events)
    chance.shuffle(events)
    assert counted(*events) == whole
    values = {name: getattr(events[0], name) for name in events[0].__struct_fields__}
    assert counted(billed(**(values | change)), *events[1:]).root != whole.root
    assert counted(*events[1:]).root != whole.root


def test_an_event_twice_or_out_of_order_or_of_another_is_refused() -> None:
    for second, reason in (
        (billed(), "is there twice"),
        (billed(request_id="a"), "is out of order"),
        (billed(tenant_id="bolt"), "among those of acme"),
    ):
        count = TenantCount("acme")
        count.add(billed())
        with pytest.raises(EventsRefused, match=reason):
            count.add(second)


def test_a_line_of_an_export_comes_back_and_a_bad_one_is_named() -> None:
    event = billed(request_id="é\n")
    assert event_of_line(event.line, 1) == event
    for broken in (
        event.line.replace(b'"attempt":1', b'"attempt":"1"'),
        event.line.replace(b'"attempt"', b'"attempts"'),
        event.line.replace(b'00Z"', b'00"').replace(b'000Z"', b'"').replace(b"250000Z", b"250000"),
        b"{",
    ):
        with pytest.raises(EventsRefused, match="line 7"):
            event_of_line(broken, 7)
