"""`--scheduler-cls tests.vllm.failing_scheduler.FailingScheduler`: runs in vLLM's own environment, in its engine."""

from __future__ import annotations

from typing import Any

from vllm.v1.request import RequestStatus

from serving_adapter.engine.vllm_scheduler import MeteringScheduler
from tests.vllm.failing import ENDS_ENGINE, FAILS, FAILS_UNREAD


class FailingScheduler(MeteringScheduler):
    """The adapter's, with errors that are made where vLLM notes requests whose grammar it could not compile."""

    def add_request(self, request: Any) -> None:
        """One that fails unread waits for its grammar as such requests do."""
        if _seed(request) == FAILS_UNREAD:
            request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            self.grammar_compile_error_reqs.add(request.request_id)
        super().add_request(request)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Those that fail after some tokens, and one that ends the engine."""
        for name, request in self.requests.items():
            if request.num_output_tokens >= 2:
                if _seed(request) == ENDS_ENGINE:
                    raise RuntimeError("made by the tests")
                if _seed(request) == FAILS:
                    self.grammar_compile_error_reqs.add(name)
        return super().update_from_output(*args, **kwargs)


def _seed(request: Any) -> int | None:
    params = request.sampling_params
    return None if params is None else params.seed
