"""What a page of vLLM's metrics says, and when its counters have begun again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from serving_adapter.engine_counters import Page, Run, follow, read, totals
from serving_adapter.errors import BadMetrics
from serving_adapter.replica_reports import EngineModel
from tests.fake_engine import FakeEngine

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
STARTED = datetime(2026, 11, 1, 11, tzinfo=UTC)


def page(prompt: int, started: datetime | None = None, *, model: str = "m", cached: int | None = 0) -> Page:
    counted = EngineModel(model=model, prompt_tokens=prompt, generation_tokens=prompt, cached_tokens=cached)
    return Page((counted,), started)


def test_counters_are_read_by_model_over_all_engines() -> None:
    engine = FakeEngine(engines=2)
    engine.serve(135, 12, 64)
    engine.serve(7, 900, 0, reason="length", engine=1)
    engine.serve(8, 44, reason=None)
    found = read(engine.page().decode())
    (model,) = found.models
    assert (model.model, model.prompt_tokens, model.generation_tokens, model.cached_tokens) == ("llama", 150, 956, 64)
    assert model.finished == {"stop": 1, "length": 1, "abort": 0, "error": 0, "repetition": 0}
    assert found.started_at == datetime(2026, 11, 1, 12, 0, 0, 250_000, tzinfo=UTC)
    assert found.boot_id == "b1"


def test_several_api_servers_tell_no_start_and_an_older_engine_no_cached_tokens() -> None:
    text = "".join(
        f"{line}\n"
        for line in FakeEngine(started=None, boot=None).page().decode().splitlines()
        if "prompt_tokens_cached" not in line
    )
    found = read(text)
    assert (found.started_at, found.boot_id, found.models[0].cached_tokens) == (None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "up 1\n",
        'vllm:prompt_tokens_total{model_name="m"} 1\n',
        'vllm:prompt_tokens_total{model_name="m"} 1\nvllm:generation_tokens_total{model_name="n"} 1\n',
        'vllm:prompt_tokens_total{engine="0"} 1\nvllm:generation_tokens_total{engine="0"} 1\n',
        'vllm:prompt_tokens_total{model_name="m"} 1\n' * 2 + 'vllm:generation_tokens_total{model_name="m"} 1\n',
    ],
)
def test_a_page_that_is_not_vllms_is_refused(text: str) -> None:
    with pytest.raises(BadMetrics):
        read(text)


def test_a_page_of_two_boots_is_refused() -> None:
    text = FakeEngine().page().decode() + 'tollbook_boot_info{boot_id="b2"} 1\n'
    with pytest.raises(BadMetrics, match="2 boots"):
        read(text)


def test_a_run_goes_on_while_counters_only_grow() -> None:
    first = follow(None, page(5, STARTED), AT)
    assert (first.since, first.from_zero) == (STARTED, True)
    again = follow(first, page(5, STARTED), AT + timedelta(seconds=15))
    assert again == Run(page(5, STARTED), STARTED, from_zero=True)


def test_a_new_process_is_a_new_run_although_its_counters_are_higher() -> None:
    first = follow(None, page(5, STARTED), AT)
    restarted = AT + timedelta(seconds=10)
    assert follow(first, page(9, restarted), AT + timedelta(seconds=15)).since == restarted


@pytest.mark.parametrize("later", [page(4), page(9, model="other"), Page(())])
def test_counters_that_fall_or_go_are_a_new_run_from_zero(later: Page) -> None:
    first = follow(None, page(5), AT)
    assert (first.since, first.from_zero) == (AT, False)
    second = follow(first, later, AT + timedelta(seconds=15))
    assert (second.since, second.from_zero) == (AT + timedelta(seconds=15), True)


def test_a_run_found_by_a_reset_stays_the_same_until_the_next() -> None:
    reset = follow(follow(None, page(5, STARTED), AT), page(1, STARTED), AT + timedelta(seconds=15))
    assert reset.since == AT + timedelta(seconds=15)
    assert follow(reset, page(7, STARTED), AT + timedelta(seconds=30)).since == reset.since


def test_the_sums_of_a_page_are_vllms_or_llama_cpps() -> None:
    engine = FakeEngine()
    engine.serve(135, 12, 64)
    assert totals(engine.page().decode()) == (135, 12, 64)
    counted = {"prompt_tokens": 5, "prompt_tokens_cached": 3, "tokens_predicted": 8}
    lines = [f"llamacpp:{name}_total {number}\n" for name, number in counted.items()]
    assert totals("".join(lines)) == (5 + 3, 8, 3)
    assert totals(lines[0] + lines[2]) is None, "an older one does not say what it found in its cache"
    assert totals("sglang:prompt_tokens_total 5\n") is None
