"""`vllm serve … --scheduler-cls serving_adapter.engine.vllm_scheduler.MeteringScheduler`: whose time each step was.

Runs in the engine's own process, and tells the adapter's over a socket of this machine. What the adapter has not taken
is kept, and told again: an engine that starts first loses nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Final

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from serving_adapter.engine.gpu_reports import GpuSender
from serving_adapter.errors import AdapterError
from serving_adapter.metering.gpu_shares import StepLedger, Work

TOTALS_EACH_US: Final = 500_000


NAMES: Final = ("schedule", "update_from_output", "finish_requests", "_free_request")
"""What of vLLM's is called, overridden, or looked at; none of it is promised to stay."""


class SchedulerUnfit(AdapterError):
    """A scheduler that is not one whose steps can be timed: the engine does not start."""


class MeteringScheduler(AsyncScheduler):
    """vLLM's own, whose steps are timed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises SchedulerUnfit."""
        super().__init__(*args, **kwargs)
        missing = [name for name in NAMES if not callable(getattr(AsyncScheduler, name, None))]
        missing += [name for name in ("requests", "parallel_config") if not hasattr(self, name)]
        if missing:
            raise SchedulerUnfit(f"vLLM's scheduler has no {', '.join(missing)}: start without --scheduler-cls")
        self._tollbook = StepLedger(self.parallel_config.world_size)
        self._tollbook_sender = GpuSender.from_environment(os.environ)
        self._tollbook_told_us = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """A step begins."""
        began_us = _now_us()
        output = super().schedule(*args, **kwargs)
        work = {}
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.requests.get(name)
            before = request.num_computed_tokens - tokens if request is not None else 0
            prefill = min(tokens, max(0, request.num_prompt_tokens - before)) if request is not None else tokens
            work[name] = Work(prefill, tokens - prefill)
        self._tollbook.begun(id(output), began_us, work)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """And ends. What is told here reaches the adapter before the engine's answer does, or with it."""
        self._tollbook.done(id(scheduler_output), _now_us())
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._tollbook_tell()
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._free_request(request, *args, **kwargs)
        self._tollbook.ended(request.request_id)
        return result

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """Requests are cut off from outside, perhaps with no step to come."""
        result = super().finish_requests(*args, **kwargs)
        self._tollbook_tell()
        return result

    def _tollbook_tell(self) -> None:
        now_us = _now_us()
        final, running = self._tollbook.take_final(), list[tuple[str, int]]()
        if all_of_it := now_us - self._tollbook_told_us > TOTALS_EACH_US:
            self._tollbook_told_us, running = now_us, self._tollbook.running()
        if final or self._tollbook_sender.waiting or all_of_it:
            with contextlib.suppress(OSError):
                self._tollbook_sender.send(final, self._tollbook.busy_us, self._tollbook.gpus, running)


def _now_us() -> int:
    return time.monotonic_ns() // 1000
