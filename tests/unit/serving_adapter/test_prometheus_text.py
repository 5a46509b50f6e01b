"""Prometheus' text format: read as it is written, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest

from serving_adapter.errors import BadMetrics
from serving_adapter.prometheus_text import Sample, samples, whole


def one(line: str) -> Sample:
    (found,) = samples(line + "\n", {"a_total"})
    return found


def test_only_wanted_samples_are_read_and_comments_are_passed_over() -> None:
    text = "# HELP a_total An a.\n# TYPE a_total counter\n\na_total 1.0\na_total_created 2.0\nb_total{x=\n"
    assert [sample.name for sample in samples(text, {"a_total"})] == ["a_total"]


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("a_total 7", {}, 7),
        ("a_total{} 7.0", {}, 7),
        ('a_total{x="1",y="b c"} 1.2345678e+07', {"x": "1", "y": "b c"}, 12345678),
        ('a_total{x="1",} 7 1793534400000', {"x": "1"}, 7),
        ('a_total{x="q\\"u\\\\o\\nte}"} 9.007199254740991e+15', {"x": 'q"u\\o\nte}'}, 2**53 - 1),
    ],
)
def test_labels_and_whole_numbers_are_read_exactly(line: str, labels: dict[str, str], value: int) -> None:
    found = one(line)
    assert (found.labels, whole(found)) == (labels, value)


@pytest.mark.parametrize(
    "line",
    ["a_total", 'a_total{x="1" 7', 'a_total{x=1} 7', 'a_total{x="1"y="2"} 7', 'a_total{x="\\t"} 7', "7 a_total",
     'a_total{x="1",x="2"} 7', "a_total 7 8 9", 'a_total{x="1"}'],
)  # fmt: skip
def test_a_line_that_is_not_in_the_format_is_refused(line: str) -> None:
    with pytest.raises(BadMetrics, match="line 1"):
        one(line)


@pytest.mark.parametrize("value", ["1.5", "-1", "NaN", "+Inf", "9007199254740992", "seven", "1e400"])
def test_a_value_that_is_no_exact_count_is_refused(value: str) -> None:
    with pytest.raises(BadMetrics, match="line 1"):
        whole(one(f"a_total {value}"))


def test_a_page_that_breaks_off_is_refused() -> None:
    with pytest.raises(BadMetrics, match="breaks off"):
        list(samples("a_total 1\na_total 12", {"b_total"}))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**53 - 1), max_size=5))
def test_what_the_engines_library_writes_is_read_back(counts: dict[str, int]) -> None:
    registry = CollectorRegistry()
    counter = Counter("a", "An a.", ["model"], registry=registry)
    for model, count in counts.items():
        counter.labels(model).inc(count)
    found = samples(generate_latest(registry).decode(), {"a_total"})
    assert {sample.labels["model"]: whole(sample) for sample in found} == counts
