"""TimescaleDB for Debian 12, which has none: Debian 13's source package, built against Debian 12's PostgreSQL.

The source comes from the machine's own Debian mirror with Debian's signature checked by apt. Headers are unpacked
beside the source instead of being installed (postgresql-server-dev-15 would bring all of clang and llvm, 0.6 GB). The
result is a small Debian package in the cache, so that dpkg knows its files, removal is one command, and the next
clone on this machine installs it in a second. Headers are those of the server that is installed: what is built with a
later minor version's may use functions that the server lacks, and is not loaded. Where apt no longer has them, they are
the newest, and the package depends on that server, so that apt brings it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devstack.errors import DevstackError
from devstack.install.tools import ToolLog, run
from devstack.locking import exclusive

SOURCE_SUITE = "trixie"
POSTGRES_MAJOR = 15
BUILD_PACKAGES = ("cmake", "gcc", "libc6-dev", "make", "xz-utils")
SERVER_PACKAGE = f"postgresql-{POSTGRES_MAJOR}"
SERVER_HEADERS = f"postgresql-server-dev-{POSTGRES_MAJOR}"
# What PostgreSQL's own headers include.
OTHER_HEADERS = ("libpq-dev", "libkrb5-dev", "krb5-multidev", "libssl-dev")
PACKAGE = f"tollbook-timescaledb-postgresql-{POSTGRES_MAJOR}"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def built_package(cache: Path) -> Path | None:
    """The newest package that was built on this machine's kind of processor, if any."""
    found = sorted((cache / "timescaledb").glob(f"{PACKAGE}_*+pg*_{os.uname().machine}.deb"))
    return found[-1] if found else None


def fetch(folder: Path, log: ToolLog) -> None:
    """Fetch the source, by apt with lists of its own (the system's stay as they are), and the header packages."""
    lists, sources = folder / "lists", folder / "sources"
    for made in (lists / "partial", sources, folder / "cache/archives/partial"):
        made.mkdir(parents=True)
    signed = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
    (sources / "source.sources").write_text(
        f"Types: deb-src\nURIs: {_mirror(log)}\nSuites: {SOURCE_SUITE}\nComponents: main\n{signed}"
    )
    options = [
        "-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={sources}",
        "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}",
        "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "-q",
    ]  # fmt: skip
    run(log, ["apt-get", *options, "update"])
    run(log, ["apt-get", *options, "source", "--download-only", "timescaledb"], cwd=folder)
    download = folder / "header-packages"
    download.mkdir()
    packages = (_headers(log), *OTHER_HEADERS)
    run(log, ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=download)


def _headers(log: ToolLog) -> str:
    """The package of headers to ask apt for: those of the server installed, where apt has them."""
    server = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", SERVER_PACKAGE],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    status, _, version = server.partition(" ")
    offered = run(log, ["apt-cache", "madison", SERVER_HEADERS])
    if status == "installed" and any(line.split("|")[1].strip() == version for line in offered.splitlines()):
        return f"{SERVER_HEADERS}={version}"
    return SERVER_HEADERS


def build_package(cache: Path, folder: Path, log: ToolLog) -> Path:
    """Compile what `fetch` brought, and put the finished package into the cache. Needs BUILD_PACKAGES."""
    (folder / "source").mkdir()
    archive = _only(folder, "timescaledb_*.orig.tar.*")
    run(log, ["tar", "-xf", str(archive), "-C", str(folder / "source"), "--strip-components=1"])
    for package in (folder / "header-packages").glob("*.deb"):
        run(log, ["dpkg-deb", "-x", str(package), str(folder / "headers")])
    headers = folder / "headers/usr/include"
    pg_config = folder / "pg_config"
    pg_config.write_text(
        "#!/bin/sh\n# PostgreSQL as installed, except for the headers\n"
        f'/usr/lib/postgresql/{POSTGRES_MAJOR}/bin/pg_config "$@" | '
        f"sed 's#/usr/include/postgresql#{headers}/postgresql#g; "
        f"s#/usr/lib/postgresql/{POSTGRES_MAJOR}/lib/pgxs#{folder}/headers/usr/lib/postgresql/{POSTGRES_MAJOR}/lib/pgxs#'\n"
    )
    pg_config.chmod(0o755)
    include = [headers, *headers.glob("*-linux-gnu"), headers / "mit-krb5"]
    run(
        log,
        ["cmake", "-S", str(folder / "source"), "-B", str(folder / "build"), f"-DPG_CONFIG={pg_config}",
         "-DCMAKE_BUILD_TYPE=Release", "-DAPACHE_ONLY=1", "-DREGRESS_CHECKS=OFF", "-DTAP_CHECKS=OFF",
         "-DWARNINGS_AS_ERRORS=OFF", "-DUSE_OPENSSL=0"],
        environ={"CFLAGS": " ".join(f"-isystem {path}" for path in include)},
    )  # fmt: skip
    run(log, ["make", "-C", str(folder / "build"), f"-j{len(os.sched_getaffinity(0))}"])
    staged = folder / "package"
    run(log, ["make", "-C", str(folder / "build"), "install"], environ={"DESTDIR": str(staged)})
    source = _only(folder, "timescaledb_*.dsc").name.split("_")[1].removesuffix(".dsc")
    built_with = _only(folder / "header-packages", f"{SERVER_HEADERS}_*.deb").name.split("_")[1].partition("-")[0]
    return _package(cache, staged, source, built_with, log)


def _package(cache: Path, staged: Path, source: str, built_with: str, log: ToolLog) -> Path:
    """The package of what is `staged`: TimescaleDB's `source` version, `built_with` that of PostgreSQL (15.18)."""
    version = f"{source}+pg{built_with}"
    architecture = run(log, ["dpkg", "--print-architecture"]).strip()
    (staged / "DEBIAN").mkdir(mode=0o755)
    (staged / "DEBIAN/control").write_text(
        f"Package: {PACKAGE}\nVersion: {version}\nArchitecture: {architecture}\n"
        f"Maintainer: Tollbook (built on this machine) <root@localhost>\nDepends: {SERVER_PACKAGE} (>= {built_with})\n"
        f"Conflicts: {SERVER_PACKAGE}-timescaledb\n"
        f"Description: TimescaleDB for PostgreSQL {POSTGRES_MAJOR} (Apache-2 edition, Debian's {SOURCE_SUITE} source)\n"
    )
    name = f"{PACKAGE}_{version}_{os.uname().machine}.deb"
    unfinished = staged.parent / name
    run(log, ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(staged), str(unfinished)])
    finished = cache / "timescaledb" / name
    shutil.copyfile(unfinished, finished.with_suffix(".unfinished"))
    os.replace(finished.with_suffix(".unfinished"), finished)
    return finished


@contextmanager
def build_folder(cache: Path) -> Iterator[Path]:
    """A new folder for one build, removed afterwards; a second build at the same time waits for the first."""
    place = cache / "timescaledb"
    place.mkdir(parents=True, exist_ok=True)
    with exclusive(place / "lock"):
        for left in place.glob("build-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        # CFLAGS and pg_config cannot carry a path with a blank in it
        folder = Path(tempfile.mkdtemp(prefix="build-", dir=None if " " in str(place) else place))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _mirror(log: ToolLog) -> str:
    """The address of the Debian archive that this machine itself uses, by apt's own account."""
    listed = run(
        log,
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(LABEL)",
            "Created-By: Packages",
        ],
    )
    for line in listed.splitlines():
        address, codename, component, label = line.split("|")
        if component == "main" and label == "Debian" and "-" not in codename:
            return address
    raise DevstackError(
        "TimescaleDB is built from Debian's source, and this machine's apt names no Debian archive.\n"
        "Add one to /etc/apt/sources.list.d, or set TOLLBOOK_DATABASE_URL to a PostgreSQL with TimescaleDB."
    )


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DevstackError(
            f"expected one {pattern} in {folder}, found {len(found)}: Debian's source package has changed."
        )
    return found[0]
