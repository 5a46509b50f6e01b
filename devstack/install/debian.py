"""Installing Debian's own packages: what is missing, one update, and as root or through sudo, without a question."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from devstack.errors import DevstackError
from devstack.install.tools import ToolLog, run

# Another apt (unattended upgrades, another `make`) may hold the lock: wait for it rather than fail.
APT_OPTIONS = ("-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", "-o", "Dpkg::Use-Pty=0")
# Keeps the server package from making and starting a cluster "main" that nobody asked for. Only there during the
# installation: the system's habits are not ours to change.
NO_SYSTEM_CLUSTER = Path("/etc/postgresql-common/createcluster.d/tollbook.conf")


def system() -> tuple[str, str]:
    """The system's name and version, e.g. ("debian", "12"); ("", "") where /etc/os-release does not tell."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/etc/os-release").read_text().splitlines():
            name, _, value = line.partition("=")
            fields[name] = value.strip().strip('"')
    except OSError:
        pass
    return fields.get("ID", ""), fields.get("VERSION_ID", "")


def has_apt() -> bool:
    return shutil.which("apt-get") is not None and shutil.which("dpkg-query") is not None


def as_root() -> list[str] | None:
    """What to put before a command so that it runs as root without asking; None where that is not possible."""
    if os.geteuid() == 0:
        return []
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n"]
    return None


class AptInstaller:
    """apt-get for one installation: the package lists are brought up to date once, at the first need."""

    def __init__(self, log: ToolLog) -> None:
        self._log = log
        self._updated = False
        self._update_failed: DevstackError | None = None

    def update(self) -> None:
        """Bring the package lists up to date. That a source fails is kept: it only matters if a package then lacks."""
        if self._updated:
            return
        try:
            self._run(["apt-get", *APT_OPTIONS, "-o", "APT::Update::Error-Mode=any", "-q", "update"])
        except DevstackError as error:
            self._update_failed = error
        self._updated = True

    def available(self, prefix: str) -> list[str]:
        """Names of the packages this system offers that begin with `prefix`."""
        return run(self._log, ["apt-cache", "pkgnames", prefix]).split()

    def raise_failed_update(self) -> None:
        """Raise what went wrong with the package lists, if anything: the likely cause of a missing package."""
        if self._update_failed is not None:
            raise self._update_failed

    def install(self, packages: Sequence[str]) -> None:
        """Install `packages` (names, or paths of .deb files). What is installed is not brought to a newer version."""
        self.update()
        self._install(install_command(_not_installed(packages)))

    def install_postgres(self, packages: Sequence[str]) -> None:
        """The same for a set with a PostgreSQL server in it, without its package's own cluster."""
        self.update()
        folder = NO_SYSTEM_CLUSTER.parent
        install = install_command(_not_installed(packages))
        script = (
            f"trap 'rm -f {NO_SYSTEM_CLUSTER}; rmdir --ignore-fail-on-non-empty {folder}' EXIT; "
            f"mkdir -p {folder} && echo 'create_main_cluster = false' > {NO_SYSTEM_CLUSTER} && "
            f"{shlex.join(install)}"
        )
        self._install(["sh", "-c", script], shown=install)

    def _install(self, command: Sequence[str], shown: Sequence[str] = ()) -> None:
        try:
            self._run(command, shown)
        except DevstackError as error:
            if "dpkg --configure -a" not in str(error):
                self.raise_failed_update()
                raise
            # An earlier installation on this machine was killed: put its packages in order first, as dpkg asks
            self._run(["dpkg", "--configure", "-a"])
            self._run(command, shown)

    def _run(self, command: Sequence[str], shown: Sequence[str] = ()) -> None:
        prefix = as_root()
        if prefix is None:
            raise DevstackError(f"this needs root rights: {shlex.join(command)}")
        quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "LC_ALL=C.UTF-8"]
        run(self._log, [*prefix, *quiet, *command], cwd=Path("/"), shown=[*prefix, *(shown or command)])


def install_command(packages: Sequence[str]) -> list[str]:
    return ["apt-get", *APT_OPTIONS, "install", "-y", "-q", "--no-install-recommends", *packages]


def _not_installed(packages: Sequence[str]) -> list[str]:
    """Leaves out what is installed: an upgrade would restart a server that is not ours."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages]
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    installed = {line.split()[0] for line in listed if line.endswith(" installed")}
    return [package for package in packages if package not in installed]
