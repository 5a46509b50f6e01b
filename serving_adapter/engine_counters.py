"""What an engine's `/metrics` says: vLLM's counters by model, and from when on they count. Values in, values out.

Read in vLLM 0.32's source (`v1/metrics/loggers.py`, `stats.py`), all kept by the API server's process:

- `vllm:prompt_tokens_total` grows by a sequence's prompt with its first token: `n > 1` counts the prompt n times, an
  abort before the first token counts none.
- `vllm:generation_tokens_total` grows with each step's new tokens: those of aborted requests too, up to the abort.
- `vllm:prompt_tokens_cached_total` grows with `vllm:prompt_tokens_total`, by what of the prompt was cached. A preempted
  request is not counted again.
- `vllm:request_success_total` grows when a sequence finishes, by reason. Aborted ones are in none.

`vllm:prefix_cache_hits_total` is not read: it grows in the scheduler, also for requests that end before their first
token and for none that skip the lookup, so that it equals no sum of events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from serving_adapter.errors import BadMetrics
from serving_adapter.prometheus_text import Sample, number, samples, whole
from serving_adapter.replica_reports import EngineModel

PROMPT: Final = "vllm:prompt_tokens_total"
GENERATION: Final = "vllm:generation_tokens_total"
CACHED: Final = "vllm:prompt_tokens_cached_total"
FINISHED: Final = "vllm:request_success_total"
STARTED: Final = "process_start_time_seconds"
BOOT: Final = "tollbook_boot_info"
"""What the adapter inside the engine adds to the page: a gauge of 1 with the label `boot_id`."""
LLAMA_CPP: Final = (
    "llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total", "llamacpp:tokens_predicted_total",
)  # fmt: skip
"""llama.cpp's (`--metrics`), which names no model: the first without what was cached. Seen to be its events' sums."""
_WANTED: Final = frozenset({PROMPT, GENERATION, CACHED, FINISHED, STARTED, BOOT})


@dataclass(frozen=True, slots=True)
class Page:
    """One reading: counters by model, the process's start and the adapter's boot where the page tells them."""

    models: tuple[EngineModel, ...]
    started_at: datetime | None = None
    boot_id: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch over which an engine's counters only grow."""

    page: Page
    since: datetime
    """When the process started, or when the counters were seen to begin again, or first seen at all."""
    from_zero: bool
    """Whether all since the run's beginning is in the counters: false where the first look came at an unknown time."""


def totals(text: str) -> tuple[int, int, int] | None:
    """Tokens of prompts, made, and cached of the prompts, of all models: by vLLM's page, or llama.cpp's.

    None: the page has neither's. Raises BadMetrics where it is not in the format.
    """
    found = {sample.name: whole(sample) for sample in samples(text, LLAMA_CPP)}
    if len(found) == len(LLAMA_CPP):
        worked_on, cached, made = (found[name] for name in LLAMA_CPP)
        return worked_on + cached, made, cached
    if not any(True for _ in samples(text, (PROMPT, GENERATION))):
        return None
    models = read(text).models
    return (
        sum(m.prompt_tokens for m in models), sum(m.generation_tokens for m in models),
        sum(m.cached_tokens or 0 for m in models),
    )  # fmt: skip


def read(text: str) -> Page:
    """A page of metrics. Raises BadMetrics where it is not vLLM's, breaks off, or is not in the format."""
    found: dict[str, list[Sample]] = defaultdict(list)
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for sample in samples(text, _WANTED):
        series = (sample.name, frozenset(sample.labels.items()))
        if series in seen:
            raise BadMetrics(f"line {sample.line}: {sample.name} with the same labels twice")
        seen.add(series)
        found[sample.name].append(sample)
    prompt, generation, cached = (_by_model(found[name]) for name in (PROMPT, GENERATION, CACHED))
    if not prompt or prompt.keys() != generation.keys():
        raise BadMetrics(
            f"no {PROMPT} and {GENERATION} of the same models:"
            " is this the /metrics of a vLLM that runs without --disable-log-stats?"
        )
    finished: dict[str, dict[str, int]] = defaultdict(dict)
    for sample in found[FINISHED]:
        reasons = finished[_label(sample, "model_name")]
        reason = _label(sample, "finished_reason")
        reasons[reason] = reasons.get(reason, 0) + whole(sample)
    models = tuple(
        EngineModel(
            model=model, prompt_tokens=prompt[model], generation_tokens=generation[model],
            cached_tokens=cached.get(model), finished=finished[model],
        )
        for model in sorted(prompt)
    )  # fmt: skip
    return Page(models, _started_at(found[STARTED]), _boot_id(found[BOOT]))


def follow(before: Run | None, page: Page, at: datetime) -> Run:
    """The run that a page read at `at` belongs to: the one before, or a new one.

    A new one where the process's start is another, or a counter is lower than it was, or is gone.
    """
    if before is None:
        return Run(page, page.started_at or at, from_zero=page.started_at is not None)
    if page.started_at != before.page.started_at:
        return Run(page, page.started_at or at, from_zero=True)
    if _fell(before.page.models, page.models):
        return Run(page, at, from_zero=True)
    return replace(before, page=page)


def _fell(before: Iterable[EngineModel], after: Iterable[EngineModel]) -> bool:
    now = {model.model: model for model in after}
    for was in before:
        found = now.get(was.model)
        if found is None or (
            found.prompt_tokens < was.prompt_tokens
            or found.generation_tokens < was.generation_tokens
            or (found.cached_tokens or 0) < (was.cached_tokens or 0)
        ):
            return True
    return False


def _by_model(found: Iterable[Sample]) -> dict[str, int]:
    """A counter by model, over the engines that one API server stands for (data parallel)."""
    sums: dict[str, int] = defaultdict(int)
    for sample in found:
        sums[_label(sample, "model_name")] += whole(sample)
    return dict(sums)


def _label(sample: Sample, name: str) -> str:
    value = sample.labels.get(name, "")
    if not value:
        raise BadMetrics(f"line {sample.line}: {sample.name} has no label {name}")
    return value


def _started_at(found: list[Sample]) -> datetime | None:
    """With several API server processes there is none: the page then stands for all of them."""
    if not found:
        return None
    try:
        return datetime.fromtimestamp(number(found[0]), UTC)
    except (ValueError, OverflowError, OSError):
        raise BadMetrics(f"line {found[0].line}: {STARTED} is {found[0].value}, expected seconds since 1970") from None


def _boot_id(found: list[Sample]) -> str | None:
    boots = sorted({_label(sample, "boot_id") for sample in found})
    if len(boots) > 1:
        raise BadMetrics(
            f"{BOOT} names {len(boots)} boots: counters of several API server processes cannot be told apart"
        )
    return boots[0] if boots else None
