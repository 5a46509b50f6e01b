"""The example of a daily job says what the command line understands."""

from __future__ import annotations

import shlex
from configparser import ConfigParser
from pathlib import Path

from typer.testing import CliRunner

from console.main import app
from streams.settings import archive_address

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def test_the_daily_job_is_a_command_that_the_console_understands() -> None:
    unit = ConfigParser(interpolation=None)
    unit.read(EXAMPLES / "tollbook-retain.service")
    name, _, value = unit["Service"]["Environment"].partition("=")
    assert archive_address({name: value}) == value
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "tollbook"
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
    assert (EXAMPLES / "tollbook-retain.timer").is_file(), "what starts it, by its name"
