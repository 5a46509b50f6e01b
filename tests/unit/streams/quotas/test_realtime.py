"""A shard that runs before whatever else wants its core."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from console.main import app
from streams.errors import CannotServe
from streams.quotas import journal
from streams.quotas.server import check_may_run_ahead


def refused(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_who_may_not_run_ahead_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with pytest.raises(CannotServe, match=r"CAP_SYS_NICE.*LimitRTPRIO=1"):
        check_may_run_ahead()


def test_who_may_not_run_ahead_takes_no_shard_from_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    monkeypatch.setattr(journal, "divide", lambda *given: taken.append(given))
    monkeypatch.setattr(journal, "take", lambda *given, **more: taken.append((given, more)))
    result = CliRunner().invoke(app, ["quota", "serve", "--realtime", "--shards", "3"])
    assert isinstance(result.exception, CannotServe)
    assert not taken
