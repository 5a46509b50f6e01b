"""`tollbook plan validate | price`: what a plan's file says, without a database."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from billing.errors import PlanInvalid
from console.commands.plan import app

PLAN = """\
plan: pro
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: short, model: per_unit, metric: input, price: "1", where: {context_up_to: 100}}
      - {key: long, model: per_unit, metric: input, price: "2", where: {context_over: 100}}
"""


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_plans_file_is_validated_with_the_line_and_field_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    assert run("validate", str(file)) == "plan pro, USD: v1 from 2026-01-01\n"
    file.write_text(PLAN.replace('price: "2"', 'price: "-2"'))
    with pytest.raises(PlanInvalid, match=r"plan\.yaml:8.*price"):
        run("validate", str(file))


@pytest.mark.parametrize(("context", "told"), [("100", "short: 7 × 1 = 7"), ("101", "long: 7 × 2 = 14")])
def test_a_request_is_priced_by_its_step_of_context_length(tmp_path: Path, context: str, told: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    of = ("--metric", "input", "--quantity", "7", "--at", "2026-10-09T00:00:00Z", "--context", context)
    assert told in run("price", str(file), *of)
