from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from devstack.errors import DevstackError
from devstack.install import kafka_jars
from devstack.install.plan import Missing, by_hand
from devstack.install.python_environment import whole
from devstack.install.tools import ToolLog, run


@pytest.fixture
def log(tmp_path: Path) -> ToolLog:
    return ToolLog(tmp_path / "log")


def test_a_failed_command_is_shown_with_its_last_lines_and_all_of_it_is_in_the_log(log: ToolLog) -> None:
    code = "import sys; [print('line', n) for n in range(30)]; sys.exit(3)"
    with pytest.raises(DevstackError) as failed:
        run(log, [sys.executable, "-c", code])
    message = str(failed.value)
    assert f"(exit code 3): {sys.executable} -c" in message
    assert "| line 29\n" in message
    assert "| line 3\n" not in message
    assert str(log.path) in message
    assert "line 3\n" in log.path.read_text()


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("tar: x: Cannot write: No space left on device", "make room"),
        ("E: Temporary failure resolving 'mirror'", "check the network"),
        ("something else", "what the caller says"),
    ],
)
def test_a_failed_command_ends_with_what_to_do(log: ToolLog, output: str, advice: str) -> None:
    with pytest.raises(DevstackError, match=advice):
        run(log, [sys.executable, "-c", f"exit({output!r})"], what_to_do="what the caller says")


def test_a_command_that_is_not_there_is_an_expected_failure(log: ToolLog) -> None:
    with pytest.raises(DevstackError, match="cannot run no-such-command"):
        run(log, ["no-such-command"])


def jars(cache: Path) -> Path:
    folder = kafka_jars.jars_folder(cache)
    folder.mkdir(parents=True)
    for name in kafka_jars.expected_jars():
        (folder / name).write_text(name)
    (folder / "sizes").write_text("".join(f"{len(name)} {name}\n" for name in kafka_jars.expected_jars()))
    return folder


def test_the_committed_list_of_jars_is_whole() -> None:
    expected = kafka_jars.expected_jars()
    assert f"kafka_2.13-{kafka_jars.VERSION}.jar" in expected
    assert all(len(digest) == hashlib.sha256().digest_size * 2 for digest in expected.values())


def test_jars_are_complete_only_with_every_file_at_its_size(tmp_path: Path) -> None:
    folder = jars(tmp_path)
    assert kafka_jars.jars_complete(tmp_path)
    one = folder / next(iter(kafka_jars.expected_jars()))
    one.write_text(one.name + "!")
    assert not kafka_jars.jars_complete(tmp_path)
    one.write_text(one.name)
    assert kafka_jars.jars_complete(tmp_path)
    one.unlink()
    assert not kafka_jars.jars_complete(tmp_path)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment with one package, as an installer leaves it."""
    info = tmp_path / "venv/lib/python3.11/site-packages/thing-1.0.dist-info"
    info.mkdir(parents=True)
    (info.parent / "thing.py").write_text("x = 1\n")
    (info / "RECORD").write_text(
        "thing.py,sha256=abc,6\n__pycache__/thing.cpython-311.pyc,,\nthing-1.0.dist-info/RECORD,,\n"
    )
    return tmp_path / "venv"


def test_an_environment_is_whole_when_its_packages_files_are_there_at_their_size(venv: Path) -> None:
    assert whole(venv)


@pytest.mark.parametrize("damage", ["thing.py", "thing-1.0.dist-info/RECORD"])
def test_an_environment_with_a_missing_file_is_not_whole(venv: Path, damage: str) -> None:
    (venv / "lib/python3.11/site-packages" / damage).unlink()
    assert not whole(venv)


def test_an_environment_with_a_file_cut_short_is_not_whole(venv: Path) -> None:
    (venv / "lib/python3.11/site-packages/thing.py").write_text("x")
    assert not whole(venv)


def test_an_empty_environment_is_not_whole(tmp_path: Path) -> None:
    assert not whole(tmp_path)


def test_what_to_do_by_hand_names_the_way_round_each_missing_service() -> None:
    missing = Missing(
        python_environment=True, venv_module=True, java=True, maven=True, kafka_jars=True, timescaledb=True
    )
    advice = by_hand(missing)
    assert "TOLLBOOK_KAFKA=" in advice
    assert "TOLLBOOK_DATABASE_URL=" in advice
