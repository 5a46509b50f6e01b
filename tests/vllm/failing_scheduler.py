"""`--scheduler-cls tests.vllm.failing_scheduler.FailingScheduler`: runs in vLLM's own environment, in its engine."""

from __future__ import annotations

from typing import Any

from serving_adapter.engine.vllm_scheduler import MeteringScheduler
from tests.vllm.failing import FAILS


class FailingScheduler(MeteringScheduler):
    """The adapter's, with errors that are made."""

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Those that fail stand where vLLM notes requests whose grammar it could not compile."""
        for name, request in self.requests.items():
            if _seed(request) == FAILS and request.num_output_tokens >= 2:
                self.grammar_compile_error_reqs.add(name)
        return super().update_from_output(*args, **kwargs)


def _seed(request: Any) -> int | None:
    params = request.sampling_params
    return None if params is None else params.seed
