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
from serving_adapter.metering.gpu_shares import StepLedger, Work

TOTALS_EACH_US: Final = 500_000


class MeteringScheduler(AsyncScheduler):
    """vLLM's own, whose steps are timed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
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
        final = self._tollbook.take_final()
        if final or self._tollbook_sender.waiting or now_us - self._tollbook_told_us > TOTALS_EACH_US:
            self._tollbook_told_us = now_us
            with contextlib.suppress(OSError):
                self._tollbook_sender.send(final, self._tollbook.busy_us, self._tollbook.gpus)


def _now_us() -> int:
    return time.monotonic_ns() // 1000
