"""The scheduler in the engine's process, over a double of vLLM's: what it tells, and what it needs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from serving_adapter.engine import gpu_reports


class AsyncScheduler:
    """vLLM's names."""

    def __init__(self, *, world_size: int = 1) -> None:
        self.parallel_config = SimpleNamespace(world_size=world_size)
        self.requests = {"q1": SimpleNamespace(request_id="q1", num_computed_tokens=4, num_prompt_tokens=4)}

    def schedule(self) -> Any:
        return SimpleNamespace(num_scheduled_tokens=dict.fromkeys(self.requests, 4))

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> None:
        pass

    def finish_requests(self) -> None:
        self._free_request(self.requests.pop("q1"))

    def _free_request(self, request: Any) -> None:
        pass


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("vllm.v1.core.sched.async_scheduler")
    module.AsyncScheduler = AsyncScheduler  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "serving_adapter.engine.vllm_scheduler", raising=False)
    return importlib.import_module("serving_adapter.engine.vllm_scheduler")


def test_a_request_that_runs_is_told_with_its_time_so_far_and_one_that_ended_with_all_of_it(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = list[tuple[Any, ...]]()
    monkeypatch.setattr(gpu_reports.GpuSender, "send", lambda self, *report: told.append(report))
    at = iter(range(10**7, 10**9, 10**6))
    monkeypatch.setattr(scheduler, "_now_us", lambda: next(at))
    engine = scheduler.MeteringScheduler()
    engine.update_from_output(engine.schedule(), None)
    engine.finish_requests()
    (_, busy_us, gpus, running), (final, *_) = told
    assert (gpus, running) == (1, [("q1", busy_us)])
    assert final == [("q1", busy_us)]
    assert busy_us > 0


@pytest.mark.parametrize("name", ["_free_request", "finish_requests"])
def test_a_scheduler_without_a_name_that_is_needed_does_not_start(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(AsyncScheduler, name)
    with pytest.raises(scheduler.SchedulerUnfit, match=name):
        scheduler.MeteringScheduler()
