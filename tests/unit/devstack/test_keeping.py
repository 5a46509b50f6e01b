"""What is kept below a home: settings, secrets, the mark, the lock."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import settings
from devstack.errors import DevstackError
from devstack.locations import MARKER, REPOSITORY, locations, prepare_home
from devstack.locking import exclusive, if_free
from devstack.settings import Settings


def test_settings_come_back_as_they_were_saved(tmp_path: Path) -> None:
    saved = Settings({"kafka": 20001, "postgres": 20002}, "/somewhere/data", "postgres")
    settings.save(tmp_path / "services.json", saved)
    assert settings.load(tmp_path / "services.json") == saved


def test_there_are_fresh_settings_where_none_were_saved(tmp_path: Path) -> None:
    assert settings.load(tmp_path / "services.json") == Settings()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ports": 3}', '{"ports": {"kafka": "many"}}'])
def test_damaged_settings_are_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "services.json").write_text(text)
    with pytest.raises(DevstackError, match=r"services\.json is damaged\. Remove it"):
        settings.load(tmp_path / "services.json")


def test_a_secret_stays_the_same_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = settings.secret(tmp_path / "made" / "key", prefix="sk_test_")
    assert settings.secret(tmp_path / "made" / "key") == first
    assert first.startswith("sk_test_")
    assert stat.S_IMODE((tmp_path / "made" / "key").stat().st_mode) == 0o600


def test_a_home_is_made_with_its_mark_and_may_be_prepared_again(tmp_path: Path) -> None:
    for _ in range(2):
        prepare_home(tmp_path / "a" / "home")
    assert (tmp_path / "a" / "home" / MARKER).is_file()


def test_a_folder_with_other_things_in_it_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DevstackError, match="holds other things"):
        prepare_home(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_home_that_cannot_be_written_is_refused_in_two_lines() -> None:
    with pytest.raises(DevstackError, match="Set TOLLBOOK_HOME") as refused:
        prepare_home(Path("/proc/tollbook"))
    assert len(str(refused.value).splitlines()) == 2


def test_relative_folders_are_taken_from_the_repository() -> None:
    places = locations(environ={"TOLLBOOK_HOME": "build/x/../y", "TOLLBOOK_CACHE": "build/cache"})
    assert (places.home, places.cache) == (REPOSITORY / "build/y", REPOSITORY / "build/cache")


def test_a_lock_is_held_by_one_and_released_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from devstack.locking import exclusive\n"
            "with exclusive(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(lock),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with if_free(lock) as taken:
        assert not taken
    holder.kill()
    waited: list[str] = []
    with exclusive(lock, lambda: waited.append("waited")):
        pass
    holder.communicate()
    with if_free(lock) as taken:
        assert taken
