from __future__ import annotations

import os
import socket
from io import StringIO
from pathlib import Path

import pytest

from devstack import ports, settings
from devstack.errors import DevstackError
from devstack.locations import MARKER, prepare_home
from devstack.progress import Progress
from devstack.settings import Settings
from devstack.stack import Stack, masked

PORTS = {"kafka": 20001, "kafka_controller": 20002, "postgres": 20003, "stripe_twin": 20004}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose services were started before, and do not run now."""
    prepare_home(tmp_path / "home")
    settings.save(tmp_path / "home" / "services.json", Settings(dict(PORTS)))
    return tmp_path / "home"


def test_the_environment_names_the_remembered_services(home: Path) -> None:
    found = Stack(home, {"TOLLBOOK_CACHE": "/cache"}).environment()
    assert found["TOLLBOOK_KAFKA"] == "127.0.0.1:20001"
    assert found["TOLLBOOK_DATABASE_URL"].startswith("postgresql://tollbook@127.0.0.1:20003/tollbook?passfile=")
    assert found["TOLLBOOK_STRIPE_API"] == "http://127.0.0.1:20004"
    assert found["TOLLBOOK_STRIPE_KEY"].startswith("sk_test_")
    assert (found["TOLLBOOK_HOME"], found["TOLLBOOK_CACHE"]) == (str(home), "/cache")


def test_a_service_that_was_never_started_has_no_variable(tmp_path: Path) -> None:
    assert Stack(tmp_path / "new", {}).environment().keys() == {"TOLLBOOK_HOME", "TOLLBOOK_CACHE"}


def test_the_processs_own_values_win_and_their_services_are_not_started_here(home: Path) -> None:
    given = {"TOLLBOOK_KAFKA": "broker.example:9092", "TOLLBOOK_DATABASE_URL": "postgresql://u@db.example/t"}
    stack = Stack(home, given)
    assert given.items() <= stack.environment().items()
    assert [service.name for service in stack.own()] == ["stripe_twin"]


def test_values_that_were_read_from_this_stack_itself_mean_this_stack(home: Path) -> None:
    again = Stack(home, Stack(home, {}).environment())
    assert again.elsewhere() == {}
    assert [service.name for service in again.own()] == ["kafka", "postgres", "stripe_twin"]


def test_a_stripe_key_alone_means_stripe_itself_and_is_never_joined_with_the_twins_address(home: Path) -> None:
    stack = Stack(home, {"TOLLBOOK_STRIPE_KEY": "sk_test_of_an_account"})
    assert "TOLLBOOK_STRIPE_API" not in stack.environment()
    assert "stripe_twin" not in [service.name for service in stack.own()]


def test_a_remembered_port_that_another_program_took_is_replaced_and_said(home: Path) -> None:
    stack, out = Stack(home, {}), StringIO()
    with socket.socket() as stranger:
        stranger.bind(("0.0.0.0", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        stack.settings.ports["stripe_twin"] = taken
        stack.stripe_twin.choose_ports(Progress(out))
    assert stack.stripe_twin.port != taken
    assert f"port {taken} is taken by another program; using {stack.stripe_twin.port}" in out.getvalue()


def test_a_remembered_port_that_is_free_stays(home: Path) -> None:
    stack, out = Stack(home, {}), StringIO()
    stack.settings.ports["stripe_twin"] = port = ports.choose()
    stack.stripe_twin.choose_ports(Progress(out))
    assert (stack.stripe_twin.port, out.getvalue()) == (port, "")


def test_clean_removes_a_marked_home_whole(home: Path) -> None:
    (home / "kafka").mkdir()
    Stack(home, {}).clean(Progress(StringIO()))
    assert not home.exists()


def test_clean_leaves_a_folder_without_the_mark_alone(home: Path) -> None:
    (home / MARKER).unlink()
    before = sorted(os.listdir(home))
    with pytest.raises(DevstackError, match="left as it is"):
        Stack(home, {}).clean(Progress(StringIO()))
    assert sorted(os.listdir(home)) == before


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://user:secret@host:5432/db?x=1", "postgresql://user:***@host:5432/db?x=1"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://user:p:w@d@host/db", "postgresql://user:***@host/db"),
        ("127.0.0.1:9092", "127.0.0.1:9092"),
    ],
)
def test_a_password_in_an_address_is_never_shown(address: str, shown: str) -> None:
    assert masked(address) == shown
