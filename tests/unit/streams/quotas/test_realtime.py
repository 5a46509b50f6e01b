"""A shard that runs before whatever else wants its core."""

from __future__ import annotations

import os

import pytest

from streams.errors import CannotServe
from streams.quotas.server import run_ahead


def test_who_may_not_run_ahead_is_told_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with pytest.raises(CannotServe, match=r"CAP_SYS_NICE.*LimitRTPRIO=1"):
        run_ahead()
