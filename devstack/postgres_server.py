"""The local PostgreSQL server with TimescaleDB, in a data folder of its own."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from devstack import ports, postgres_setup, processes
from devstack.errors import DevstackError
from devstack.install.postgres_programs import PostgresPrograms, find_postgres
from devstack.postgres_folders import PostgresFolders
from devstack.processes import ProcessId
from devstack.service import Service
from devstack.settings import secret, write_private

ENVIRON = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
SYSTEM_USER = "postgres"  # PostgreSQL refuses to run as root: root's server runs as this user, who comes with it
CONFIGURATION = """\
# Written by devstack/postgres_server.py at each start. With fsync a committed transaction survives a power failure.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''            # one way in, and no limit on the length of the folder's name
max_connections = 200
shared_preload_libraries = 'timescaledb'
timescaledb.telemetry_level = off
timescaledb.max_background_workers = 8
max_worker_processes = 24
max_locks_per_transaction = 1024        # a transaction locks each chunk it touches, with its indexes: years of days

shared_buffers = {shared_buffers}MB
effective_cache_size = {effective_cache_size}MB
work_mem = 16MB
maintenance_work_mem = 128MB
random_page_cost = 1.1
jit = off                               # costs more than it gains on many small chunks

fsync = {fsync}
synchronous_commit = on
full_page_writes = on
wal_compression = lz4
max_wal_size = {max_wal_size}
min_wal_size = 256MB
checkpoint_timeout = 15min

timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %u@%d '
log_lock_waits = on
log_autovacuum_min_duration = 10s
password_encryption = 'scram-sha-256'
"""


class PostgresServer(Service):
    name: ClassVar[str] = "postgres"
    title: ClassVar[str] = "PostgreSQL"
    port_names: ClassVar[tuple[str, ...]] = ("postgres",)
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": SIGTERM would wait for every client to go
    durable: bool = True
    """Off for data that is thrown away, whatever happens: a power failure may then damage it, a kill does not."""
    start_patience_s: ClassVar[float] = 300.0  # after a crash it first replays up to max_wal_size of WAL
    stop_patience_s: ClassVar[float] = 60.0  # it writes a checkpoint

    def address(self) -> str:
        """A connection URL without a secret: the password is in the file that it names."""
        passfile = quote(str(self._passfile), safe="/")
        return (
            f"postgresql://{postgres_setup.ROLE}@{ports.HOST}:{self.port}/{postgres_setup.DATABASE}?passfile={passfile}"
        )

    @property
    def data(self) -> Path:
        return Path(self.settings.postgres_data or self._folders.usual / "data")

    def is_mine(self, arguments: list[str]) -> bool:
        places = {str(folder / "data") for folder in self._folders.all}
        return Path(arguments[0]).name == "postgres" and arguments[1:2] == ["-D"] and arguments[2] in places

    def prepare(self) -> None:
        self._recover()
        if not (self.data / "PG_VERSION").exists():
            self._initialize()
        self._write_as_owner(
            self.data / "tollbook.conf",
            CONFIGURATION.format(
                port=self.port,
                fsync="on" if self.durable else "off",
                max_wal_size="8GB" if self.durable else "512MB",
                **_memory_settings(),
            ),
        )
        write_private(self._passfile, f"{ports.HOST}:*:*:{postgres_setup.ROLE}:{self._role_password()}\n")
        self._clear_after_crash()

    def launch(self) -> ProcessId:
        return processes.start(
            [self._programs().programs / "postgres", "-D", self.data],
            log=self.log, environ=ENVIRON, cwd=Path("/"), run_as=self.settings.postgres_user,
        )  # fmt: skip

    def check(self) -> str | None:
        return postgres_setup.refusal(ports.HOST, self.settings.ports["postgres"], self._superuser_password())

    def complete(self) -> None:
        postgres_setup.complete(
            ports.HOST, self.settings.ports["postgres"], self._superuser_password(), self._role_password()
        )

    def remove_data(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.places.home / "postgres", ignore_errors=True)
        self._folders.remove()

    # ---- secrets ----

    @property
    def _passfile(self) -> Path:
        return self.places.home / "postgres" / "pgpass"

    def _superuser_password(self) -> str:
        return secret(self.places.home / "postgres" / "superuser.password")

    def _role_password(self) -> str:
        return secret(self.places.home / "postgres" / "role.password")

    # ---- the data folder ----

    def _programs(self) -> PostgresPrograms:
        """The programs that fit the data; for new data, the newest that have TimescaleDB."""
        usable = [postgres for postgres in find_postgres() if postgres.has_timescaledb]
        if not usable:
            raise DevstackError(
                "no PostgreSQL with TimescaleDB was found. `make up` installs it on Debian 12 and 13;\n"
                "elsewhere set TOLLBOOK_DATABASE_URL to one that runs (compose.yaml starts one)."
            )
        try:
            major = int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return usable[0]
        for postgres in usable:
            if postgres.major == major:
                return postgres
        raise DevstackError(
            f"{self.data} was made by PostgreSQL {major}; no PostgreSQL {major} with TimescaleDB is installed now.\n"
            "Install it, or start anew with `make clean` (this removes the local data)."
        )

    def _initialize(self) -> None:
        """Make the data folder: under another name first, so that a kill leaves no half-made one."""
        self._folders.usual.mkdir(parents=True, exist_ok=True)
        if not self.durable and (folder := self._folders.fresh_in_memory()) is not None:
            self.settings.postgres_data = str(folder / "data")
        if os.geteuid() == 0:
            self._choose_owner()
        programs = self._programs()
        unfinished = self.data.with_name("data.unfinished")
        self._as_owner(["rm", "-rf", str(unfinished)])
        password = self.data.with_name("password.unfinished")
        write_private(password, self._superuser_password())
        self._give_to_owner(password)
        try:
            self._as_owner(
                [str(programs.programs / "initdb"), "-D", str(unfinished), "-U", postgres_setup.SUPERUSER,
                 "-E", "UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password}", "--data-checksums"]
            )  # fmt: skip
        finally:
            password.unlink()
        with (unfinished / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude_if_exists = 'tollbook.conf'\n")
        self._put_aside(self.data)
        os.replace(unfinished, self.data)

    def _recover(self) -> None:
        """Where settings were lost (services.json removed), find the data and its owner on disk.

        Only where the passwords are still there: data without them is an earlier home's, whose name this one has.
        """
        if (
            self.settings.postgres_data is not None
            or not (self.places.home / "postgres" / "superuser.password").exists()
        ):
            return
        for folder in self._folders.all:
            version = folder / "data" / "PG_VERSION"
            if version.exists():
                owner = version.stat().st_uid
                if owner != os.geteuid():
                    self.settings.postgres_user = pwd.getpwuid(owner).pw_name
                    self.settings.postgres_data = str(folder / "data")
                elif folder != self._folders.usual:
                    self.settings.postgres_data = str(folder / "data")
                return

    @staticmethod
    def _put_aside(data: Path) -> None:
        """Make way for new data. What is there is never deleted, only renamed; `clean` removes it with the rest."""
        if not data.exists():
            return
        number = next(n for n in itertools.count(1) if not data.with_name(f"data.aside-{n}").exists())
        os.replace(data, data.with_name(f"data.aside-{number}"))

    def _choose_owner(self) -> None:
        """As root: the user postgres owns the data and the folder around it, one that this user reaches."""
        try:
            pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            raise DevstackError(
                f"PostgreSQL does not run as root, and there is no user {SYSTEM_USER} to run it as.\n"
                "Run the same command as an ordinary user, or set TOLLBOOK_DATABASE_URL to a server that runs."
            ) from None
        self.settings.postgres_user = SYSTEM_USER
        folder = self.data.parent
        self._give_to_owner(folder)
        reachable = subprocess.run(
            ["test", "-x", str(folder)], user=SYSTEM_USER, group=SYSTEM_USER, extra_groups=[], cwd="/", check=False
        )
        if reachable.returncode != 0:
            folder = self._folders.system
            folder.mkdir(parents=True, exist_ok=True)
            self._give_to_owner(folder)
        self.settings.postgres_data = str(folder / "data")
        # Data of an earlier home of this name, which was removed by hand together with the passwords
        if (forgotten := processes.find(self.is_mine)) is not None:
            processes.stop(forgotten, self.stop_signal, self.stop_patience_s)

    @property
    def _folders(self) -> PostgresFolders:
        return PostgresFolders(self.places.home)

    def _give_to_owner(self, path: Path) -> None:
        if self.settings.postgres_user:
            shutil.chown(path, self.settings.postgres_user, self.settings.postgres_user)

    def _write_as_owner(self, file: Path, text: str) -> None:
        write_private(file, text)
        self._give_to_owner(file)

    def _as_owner(self, command: list[str]) -> None:
        user = self.settings.postgres_user
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=ENVIRON, cwd="/", stdin=subprocess.DEVNULL,
            user=user, group=user, extra_groups=[] if user else None,
        )  # fmt: skip
        if done.returncode != 0:
            last = (done.stdout + done.stderr).strip().splitlines()[-4:]
            raise DevstackError(
                f"PostgreSQL's data folder {self.data} could not be made:\n" + "\n".join("  | " + x for x in last)
            )

    # ---- after a crash ----

    def _clear_after_crash(self) -> None:
        """Make way for a new server where the last one was killed.

        Its children may live on for a moment, and the new server refuses to start beside them; and the pid in its
        postmaster.pid may be another process's by now, which the new server would take for a running one.
        """
        if not processes.wait_until(lambda: not self._left_behind(), 5):
            for number in (signal.SIGQUIT, signal.SIGKILL):
                for pid in self._left_behind():
                    os.kill(pid, number)
                if processes.wait_until(lambda: not self._left_behind(), 5):
                    break
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _left_behind(self) -> list[int]:
        return list(self._processes_in_data())

    def _processes_in_data(self) -> Iterator[int]:
        """Processes whose working folder is the data folder: PostgreSQL's, and nobody else's."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if (
                        os.readlink(f"/proc/{entry}/cwd") == str(self.data.resolve())
                        and Path(f"/proc/{entry}/comm").read_text().strip() == "postgres"
                    ):
                        yield int(entry)
                except OSError:
                    continue


def _memory_settings() -> dict[str, int]:
    """Megabytes for PostgreSQL's caches: an eighth of the machine's memory, 128 MB to 1 GB; half for the page cache."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {"shared_buffers": max(128, min(1024, total // 8)), "effective_cache_size": max(256, total // 2)}
