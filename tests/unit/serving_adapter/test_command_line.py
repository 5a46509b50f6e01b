"""`tollbook-adapter` without Kafka: what it says, and its exit codes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from serving_adapter.command_line import main
from tests.adapter_builders import ended, lost, open_journal


def test_spool_shows_each_boot_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = open_journal(tmp_path)
    journal.end(asyncio.run(journal.start(lost("q1"))), ended("q1"))
    asyncio.run(journal.start(lost("q2")))
    journal.close()
    before = journal.folder.segment(1).read_bytes()
    assert main(["spool", "--spool", str(tmp_path)]) == 0
    (boot,) = json.loads(capsys.readouterr().out)
    assert (boot["replica_id"], boot["boot_id"], boot["state"]) == ("r1", journal.boot_id, "running or broken off")
    assert (boot["started"], boot["ended"], boot["open"], boot["shipped"]) == (2, 1, 1, 0)
    assert journal.folder.segment(1).read_bytes() == before


def test_without_kafka_ship_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOLLBOOK_KAFKA", raising=False)
    assert main(["ship", "--spool", str(tmp_path)]) == 1
    assert "TOLLBOOK_KAFKA is not set" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong_use:
        main(["ship"])
    assert wrong_use.value.code == 2
