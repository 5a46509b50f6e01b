"""What is missing on this machine, and how this system provides it."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devstack.errors import DevstackError
from devstack.install import debian, timescaledb_build
from devstack.install.java import find_java
from devstack.install.kafka_jars import jars_complete
from devstack.install.postgres_programs import find_postgres
from devstack.install.python_environment import environment_right
from devstack.locations import REPOSITORY

PANGO_PACKAGES = ("libpango-1.0-0", "libpangoft2-1.0-0", "libharfbuzz-subset0", "fonts-dejavu-core")
"""What PDF documents are set with. Without root, or apt, the rest goes on: a PDF then says what it lacks."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What has to be installed. False everywhere: nothing to do."""

    python_environment: bool
    venv_module: bool
    java: bool
    maven: bool
    kafka_jars: bool
    timescaledb: bool
    pango: bool = False

    def anything(self) -> bool:
        return self.python_environment or self.kafka_jars or self.of_the_system()

    def of_the_system(self) -> bool:
        """Whether something is missing that root has to install."""
        return self.venv_module or self.java or self.maven or self.timescaledb or self.pango


def find_missing(cache: Path, environ: Mapping[str, str] | None = None, system_only: bool = False) -> Missing:
    """Look at the machine. Kafka (or PostgreSQL) is not needed where the environment names one that runs elsewhere.

    `system_only`: what root has to install for a clone of any user, whatever this one has in clone and cache.
    """
    environ = os.environ if environ is None else environ
    own_kafka = not environ.get("TOLLBOOK_KAFKA")
    own_postgres = not environ.get("TOLLBOOK_DATABASE_URL")
    environment = system_only or not environment_right()
    jars = own_kafka and (system_only or not jars_complete(cache))
    return Missing(
        python_environment=environment and not system_only,
        venv_module=environment and importlib.util.find_spec("ensurepip") is None,
        java=own_kafka and find_java() is None,
        maven=jars and shutil.which("mvn") is None,
        kafka_jars=jars and not system_only,
        timescaledb=own_postgres and not any(postgres.has_timescaledb for postgres in find_postgres()),
        pango=_pango_missing() and debian.has_apt() and debian.as_root() is not None,
    )


def _pango_missing() -> bool:
    return any(ctypes.util.find_library(name) is None for name in ("pango-1.0", "pangoft2-1.0", "harfbuzz-subset"))


@dataclass(frozen=True, slots=True)
class SystemPackages:
    """Packages to install with apt: what the Python environment needs (at once), and the rest (beside it)."""

    first: list[str]
    others: list[str]
    build_timescaledb: bool


def system_packages(missing: Missing, cache: Path, apt: debian.AptInstaller) -> SystemPackages:
    """The packages that this Debian (or relative) offers for what is missing. Brings the package lists up to date."""
    first = ["python3-venv"] if missing.venv_module else []
    others = ["default-jre-headless"] if missing.java else []
    others += ["maven"] if missing.maven else []
    others += PANGO_PACKAGES if missing.pango else ()
    build = False
    if missing.timescaledb:
        apt.update()
        packages, build = _timescaledb_packages(apt, cache)
        others += packages
    return SystemPackages(first, others, build)


def _timescaledb_packages(apt: debian.AptInstaller, cache: Path) -> tuple[list[str], bool]:
    offered = apt.available("postgresql-")
    majors = [
        int(name.split("-")[1]) for name in offered if name.endswith("-timescaledb") and name.split("-")[1].isdigit()
    ]
    if majors:
        newest = max(majors)
        return [f"postgresql-{newest}", f"postgresql-{newest}-timescaledb"], False
    if debian.system() == ("debian", "12"):
        server = f"postgresql-{timescaledb_build.POSTGRES_MAJOR}"
        if built := timescaledb_build.built_package(cache):
            return [server, str(built)], False
        return [server, *timescaledb_build.BUILD_PACKAGES], True
    apt.raise_failed_update()
    raise DevstackError(
        "this system offers no package of TimescaleDB. Install PostgreSQL (14 to 17) with TimescaleDB by its guide,\n"
        "or start compose.yaml's, and name it: export TOLLBOOK_DATABASE_URL=postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    )


def by_hand(missing: Missing) -> str:
    """What a person would have to do where packages cannot be installed from here."""
    elsewhere_kafka = "or name a Kafka that runs elsewhere: export TOLLBOOK_KAFKA=HOST:PORT"
    elsewhere_postgres = (
        "or name a PostgreSQL (14 to 17) with TimescaleDB that runs elsewhere (compose.yaml starts one):",
        "  export TOLLBOOK_DATABASE_URL=postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    )
    lines = []
    if debian.has_apt():
        packages = [
            *(["python3-venv"] if missing.venv_module else []),
            *(["default-jre-headless"] if missing.java else []),
            *(["maven"] if missing.maven else []),
        ]
        if missing.timescaledb:
            lines.append(f"as root, in {REPOSITORY}: python3 -m devstack.install --system")
            lines.append(f"  (it installs {', '.join([*packages, 'PostgreSQL'])} and TimescaleDB, built on Debian 12)")
        else:
            install = f"apt-get install --no-install-recommends {' '.join(packages)}"
            lines.append(f"as root: apt-get update && {install}")
    else:
        if missing.venv_module:
            lines.append(f"install Python's venv module (ensurepip) for {sys.executable}")
        if missing.java or missing.maven:
            lines.append("install a Java runtime (17 or newer) and Apache Maven,")
        if missing.timescaledb:
            lines.append("install PostgreSQL (14 to 17) with TimescaleDB, by its own guide,")
    if missing.java or missing.maven:
        lines.append(f"  {elsewhere_kafka}")
    if missing.timescaledb:
        lines += [f"  {line}" for line in elsewhere_postgres]
    return "\n".join("  " + line for line in lines)
