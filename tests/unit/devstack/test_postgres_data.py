"""The data folder is found again, and never deleted by a start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devstack import postgres_server
from devstack.locations import locations, prepare_home
from devstack.postgres_server import PostgresServer
from devstack.settings import Settings


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """A server whose settings were lost; its passwords are there."""
    monkeypatch.setattr(postgres_server, "SYSTEM_DATA", tmp_path / "system")
    home = tmp_path / "home"
    prepare_home(home)
    (home / "postgres").mkdir()
    (home / "postgres" / "superuser.password").write_text("secret\n")
    return PostgresServer(locations(home, {}), Settings())


def made(data: Path) -> Path:
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("17\n")
    (data / "kept").write_text("a table")
    return data


def test_data_outside_the_home_is_found_again_without_the_settings(server: PostgresServer) -> None:
    data = made(server._system_folder / "data")
    server._recover()
    assert server.data == data


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_of_the_data_is_found_again_without_the_settings(server: PostgresServer) -> None:
    data = made(server._home_folder / "data")
    os.chown(data / "PG_VERSION", 1, 1)  # the user daemon, on every Debian
    server._recover()
    assert (server.data, server.settings.postgres_user) == (data, "daemon")


def test_ones_own_data_in_the_home_needs_no_settings(server: PostgresServer) -> None:
    data = made(server._home_folder / "data")
    server._recover()
    assert (server.data, server.settings.postgres_user) == (data, None)


def test_data_without_its_passwords_is_an_earlier_homes_and_is_not_taken(server: PostgresServer) -> None:
    made(server._system_folder / "data")
    (server.places.home / "postgres" / "superuser.password").unlink()
    server._recover()
    assert server.settings == Settings()


def test_what_lies_where_new_data_goes_is_renamed_and_never_deleted(server: PostgresServer) -> None:
    for number in (1, 2):
        server._put_aside(made(server._home_folder / "data"))
        assert not (server._home_folder / "data").exists()
        assert (server._home_folder / f"data.aside-{number}" / "kept").read_text() == "a table"
