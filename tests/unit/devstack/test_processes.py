from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from devstack import processes
from devstack.processes import ProcessId


def sleeper(tmp_path: Path, code: str = "import time; time.sleep(600)") -> ProcessId:
    process = processes.start(
        [sys.executable, "-c", code], log=tmp_path / "log", environ={"PYTHONUNBUFFERED": "1"}, cwd=tmp_path
    )
    assert process.alive()
    return process


def test_a_started_process_is_detached_and_its_output_is_in_the_log(tmp_path: Path) -> None:
    process = sleeper(tmp_path, "import os; print('session', os.getsid(0), os.getpid()); import time; time.sleep(600)")
    try:
        assert processes.wait_until(lambda: b"session" in (tmp_path / "log").read_bytes(), 60)
        _, session, pid = (tmp_path / "log").read_text().split()
        assert session == pid == str(process.pid)
        assert os.getsid(0) != int(session)
    finally:
        processes.stop(process, signal.SIGKILL, 60)


def test_a_process_that_is_stopped_or_killed_is_no_longer_alive(tmp_path: Path) -> None:
    stopped, killed = sleeper(tmp_path), sleeper(tmp_path)
    assert processes.stop(stopped, signal.SIGTERM, 60)
    os.kill(killed.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not killed.alive(), 60)
    assert not stopped.alive()


def test_a_process_that_ignores_the_signal_is_killed_after_the_wait(tmp_path: Path) -> None:
    process = sleeper(
        tmp_path,
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)",
    )
    assert processes.wait_until(lambda: b"deaf" in (tmp_path / "log").read_bytes(), 60)
    assert not processes.stop(process, signal.SIGTERM, 0.3)
    assert not process.alive()


@pytest.mark.parametrize("other", [{"started_ticks": 1}, {"boot": "another boot"}])
def test_a_later_process_with_the_same_pid_is_never_signalled(tmp_path: Path, other: dict[str, object]) -> None:
    mine = sleeper(tmp_path)
    fields = {"pid": mine.pid, "started_ticks": mine.started_ticks, "boot": mine.boot} | other
    earlier = ProcessId(**fields)  # type: ignore[arg-type]
    try:
        assert not earlier.alive()
        assert processes.stop(earlier, signal.SIGKILL, 0.1)
        assert mine.alive()
    finally:
        processes.stop(mine, signal.SIGKILL, 60)


def test_a_remembered_process_is_found_again_until_it_ends(tmp_path: Path) -> None:
    process, record = sleeper(tmp_path), tmp_path / "run" / "service.json"
    processes.remember(record, process)
    assert processes.remembered(record) == process
    processes.stop(process, signal.SIGKILL, 60)
    assert processes.remembered(record) is None


@pytest.mark.parametrize("text", ["", "{}", '{"pid": "x"}', "[1]", "\x00"])
def test_a_damaged_record_is_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "service.json").write_text(text)
    assert processes.remembered(tmp_path / "service.json") is None


def test_a_process_without_a_record_is_found_by_its_command_line(tmp_path: Path) -> None:
    process = processes.start(
        [sys.executable, "-c", "import time; time.sleep(600)", str(tmp_path)],
        log=tmp_path / "log",
        environ={},
        cwd=tmp_path,
    )
    try:
        assert processes.wait_until(lambda: processes.find(lambda line: str(tmp_path) in line) == process, 60)
    finally:
        processes.stop(process, signal.SIGKILL, 60)
    assert processes.find(lambda line: str(tmp_path) in line) is None
