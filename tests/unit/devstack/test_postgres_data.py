"""The data folder is found again, and never deleted by a start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devstack import postgres_folders
from devstack.locations import locations, prepare_home
from devstack.postgres_server import PostgresServer
from devstack.settings import Settings


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """A server whose settings were lost; its passwords are there."""
    monkeypatch.setattr(postgres_folders, "SYSTEM", tmp_path / "system")
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
    data = made(server._folders.system / "data")
    server._recover()
    assert server.data == data


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_of_the_data_is_found_again_without_the_settings(server: PostgresServer) -> None:
    data = made(server._folders.usual / "data")
    os.chown(data / "PG_VERSION", 1, 1)  # the user daemon, on every Debian
    server._recover()
    assert (server.data, server.settings.postgres_user) == (data, "daemon")


def test_ones_own_data_in_the_home_needs_no_settings(server: PostgresServer) -> None:
    data = made(server._folders.usual / "data")
    server._recover()
    assert (server.data, server.settings.postgres_user) == (data, None)


def test_data_without_its_passwords_is_an_earlier_homes_and_is_not_taken(server: PostgresServer) -> None:
    made(server._folders.system / "data")
    (server.places.home / "postgres" / "superuser.password").unlink()
    server._recover()
    assert server.settings == Settings()


def test_what_lies_where_new_data_goes_is_renamed_and_never_deleted(server: PostgresServer) -> None:
    for number in (1, 2):
        server._put_aside(made(server._folders.usual / "data"))
        assert not (server._folders.usual / "data").exists()
        assert (server._folders.usual / f"data.aside-{number}" / "kept").read_text() == "a table"


@pytest.mark.parametrize(("needed", "in_memory"), [(1, True), (2**60, False)])
def test_data_to_be_thrown_away_is_in_memory_where_there_is_room(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, in_memory: bool
) -> None:
    monkeypatch.setattr(postgres_folders, "MEMORY_NEEDED", needed)
    folders = server._folders
    found = folders.fresh_in_memory()
    assert found == (folders.memory if in_memory else None)
    if found is not None:
        made(found / "data")
        server._recover()
        assert server.data == found / "data"
        assert folders.fresh_in_memory() == found
        assert list(found.iterdir()) == []  # an earlier home's is never taken over
    folders.remove()
    assert not folders.memory.exists()
