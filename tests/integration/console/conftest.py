"""The command line on services of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from console.main import main
from serving_adapter.settings import KafkaSettings

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def run(
    kafka: KafkaSettings, own_database_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Runs `tollbook …` and returns what came of it; further environment by keyword.

    In this process, which saves the second that the imports take; `streams run` in one of its own, since it ends it.
    """
    environ = {
        "TOLLBOOK_KAFKA": kafka.bootstrap,
        "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
        "TOLLBOOK_DATABASE_URL": own_database_url,
        "COLUMNS": "200",
    }

    def here(*arguments: str, **more: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in (environ | more).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["tollbook", *arguments])
            capfd.readouterr()
            code: object = 0
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        printed = capfd.readouterr()
        return Done(arguments, code if isinstance(code, int) else 0, printed.out, printed.err)

    def process(*arguments: str, **more: str) -> Done:
        command = [sys.executable, "-m", "console.main", *arguments]
        return subprocess.run(
            command, env=os.environ | environ | more, capture_output=True, text=True, timeout=120, check=False
        )

    def tollbook(*arguments: str, **more: str) -> Done:
        return (process if arguments[:2] == ("streams", "run") else here)(*arguments, **more)

    return tollbook
