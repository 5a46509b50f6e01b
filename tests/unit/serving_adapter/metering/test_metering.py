"""Counts, outcomes and metrics: values in, values out."""

from __future__ import annotations

import json

import pytest

from serving_adapter.metering.counts import Sequence, TokenCounts, count
from serving_adapter.metering.outcome import Ending, outcome
from serving_adapter.metering.stated_usage import Hidden, StatedUsage
from serving_adapter.metering.tenant_metrics import TTFT_BUCKETS, Histogram, TenantMetrics
from serving_adapter.prometheus_text import samples
from tests.adapter_builders import ended


def test_a_prompt_is_billed_once_and_the_engine_counted_it_for_each_sequence() -> None:
    children = [Sequence("p", child, 45, 4, cached, True) for child, cached in ((2, 32), (0, 0), (1, 32))]
    assert count(children) == TokenCounts(45, 12, 0, 135, 64)
    assert count(children).of_engine == {"engine_input_tokens": 135, "engine_cached_tokens": 64}
    one = count([Sequence("p", 0, 45, 4, 32, True)])
    assert one == TokenCounts(45, 4, 32, 45, 32)
    assert one.of_engine == {}


def test_a_prompt_whose_first_token_never_came_is_not_counted() -> None:
    assert count([Sequence("p", 0, 45, 0, 32, False), Sequence("q", 0, 3, 1, 0, True)]) == TokenCounts(3, 1, 0, 3, 0)
    assert count([]) == TokenCounts()


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Ending(200, True, reasons={"stop"}), ("ok", "none", "stop")),
        (Ending(200, True, reasons={"stop", "length"}), ("ok", "none", "length,stop")),
        (Ending(200, True, client_gone=True, reasons={"abort"}), ("aborted", "client", "client_gone")),
        (Ending(200, True, reasons={"abort"}), ("aborted", "platform", "engine_abort")),
        (Ending(200, False), ("aborted", "platform", "engine_abort")),
        (Ending(200, True, reasons={"error"}), ("error", "platform", "engine_error")),
        (Ending(400, True, reasons={"error"}), ("rejected", "client", "http_400")),
        (Ending(500, True), ("error", "platform", "engine_error")),
        (Ending(None, failed=True), ("error", "platform", "engine_error")),
        (Ending(504, timed_out=True, reasons={"abort"}), ("error", "platform", "timeout")),
        (Ending(200, shut_down=True, client_gone=True), ("aborted", "platform", "shutdown")),
    ],
)
def test_how_an_attempt_ended(seen: Ending, told: tuple[str, str, str]) -> None:
    assert tuple(outcome(seen)) == told


def test_pieces_of_a_stream_are_timed_choice_by_choice_and_by_their_tokens() -> None:
    times = iter([1.0, 1.5, 2.0, 4.0, 4.5])
    gaps = list[tuple[float, int]]()
    usage = StatedUsage(lambda: next(times), lambda *gap: gaps.append(gap))

    def piece(choice: int, tokens: int, text: str = "x") -> None:
        said = {"prompt_tokens": 3, "completion_tokens": tokens}
        usage.piece(json.dumps({"choices": [{"index": choice, "text": text}], "usage": said}).encode(), Hidden())

    piece(0, 1)
    piece(1, 1)
    piece(0, 3)
    piece(0, 3, text="")  # only says that it ends
    piece(1, 2)
    usage.piece(b'{"type": "response.output_text.delta", "delta": "y"}', Hidden())
    assert gaps == [(0.5, 2), (2.5, 1), (2.5, 1)]
    assert usage.look().first_at == 1.0


def test_a_tool_call_in_pieces_is_output() -> None:
    usage = StatedUsage(lambda: 0.0)
    for part in ('{"name": "look", "arguments": ""}', '{"arguments": "{}"}'):
        piece = f'{{"choices": [{{"delta": {{"tool_calls": [{{"index": 0, "function": {part}}}]}}}}]}}'
        assert usage.piece(piece.encode(), Hidden()) == piece.encode()
    assert usage.look().output_tokens == 2
    usage.piece(b'{"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}', Hidden())
    usage.piece(b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 15}}', Hidden())
    assert (usage.look().prompt_tokens, usage.look().output_tokens, usage.reasons) == (7, 15, {"tool_calls"})


def test_a_stream_of_several_prompts_that_is_cut_off_has_read_all_that_were_answered() -> None:
    """vLLM and SGLang state in each piece what its own prompt comes to, and the sum in the last one alone."""
    usage = StatedUsage(lambda: 0.0, n=2)
    for choice, prompt_tokens in ((0, 20), (1, 20), (3, 30), (2, 30), (0, 20), (4, 50)):
        said = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
        usage.piece(json.dumps({"choices": [{"index": choice, "text": "x"}], "usage": said}).encode(), Hidden())
    assert (usage.look().prompt_tokens, usage.look().output_tokens) == (20 + 30 + 50, 5)
    usage.piece(b'{"choices": [], "usage": {"prompt_tokens": 140, "completion_tokens": 9}}', Hidden())
    assert (usage.look().prompt_tokens, usage.look().output_tokens) == (140, 9)


def test_the_page_is_in_the_format_and_bounded_in_tenants() -> None:
    metrics = TenantMetrics('r"1\n', "b1", most_tenants=2)
    for tenant in ("tenant_a", "tenant_b", "tenant_c", "tenant_d"):
        metrics.began(tenant)
        metrics.ended(ended("q", tenant))
        metrics.first_token(tenant, 0.03)
        metrics.on_gap(tenant)(0.1, 3)
    names = {"tenant_requests_total", "tollbook_boot_info", "tenant_time_to_first_token_seconds_count"}
    found = list(samples(metrics.page(), frozenset(names)))
    by_tenant = {s.labels["tenant"]: s.value for s in found if s.name == "tenant_requests_total"}
    assert by_tenant == {"tenant_a": "1", "tenant_b": "1", "_other": "2"}
    assert [s.labels["replica_id"] for s in found if s.name == "tollbook_boot_info"] == ['r"1\n']


def test_a_histogram_counts_a_value_in_every_bound_that_holds_it() -> None:
    histogram = Histogram(TTFT_BUCKETS)
    for seconds in (0.01, 0.02, 99.0):
        histogram.observe(seconds)
    lines = list(histogram.lines("h", 'tenant="a"'))
    assert 'h_bucket{tenant="a",le="0.01"} 1' in lines
    assert 'h_bucket{tenant="a",le="0.025"} 2' in lines
    assert 'h_bucket{tenant="a",le="+Inf"} 3' in lines
    assert lines[-1] == 'h_count{tenant="a"} 3'
