"""The middleware of a bare vLLM whose sequences are looked at: `--middleware tests.vllm.tracer.FileTracer`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from tests.engine_trace import Tracer

VARIABLE: Final = "TRACED_INTO"


class FileTracer(Tracer):
    """vLLM calls it with the app alone."""

    def __init__(self, app: Any) -> None:
        super().__init__(app, Path(os.environ[VARIABLE]))
