"""`python3 -m devstack.install`: install what the project needs and is missing. Standard library only.

Safe to run again at any time: what is right is left alone (in less than a second), what is half done is done anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from devstack.errors import DevstackError
from devstack.install import debian, timescaledb_build
from devstack.install.kafka_jars import VERSION, fetch_jars
from devstack.install.plan import Missing, SystemPackages, by_hand, find_missing, system_packages
from devstack.install.python_environment import make_environment
from devstack.install.tools import ToolLog
from devstack.locations import REPOSITORY, Locations, check_writable, locations, prepare_home
from devstack.locking import exclusive
from devstack.progress import Progress


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m devstack.install", description=__doc__)
    parser.add_argument("--system", action="store_true", help="only what root has to install, for any user's clone")
    system_only = parser.parse_args().system
    try:
        install(locations(), Progress(), system_only)
    except DevstackError as error:
        print(f"Installation stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where this one stopped.", file=sys.stderr)
        return 130
    return 0


def install(places: Locations, progress: Progress, system_only: bool = False) -> None:
    """Install what is missing, or only what of it takes root (then nothing is written to home or clone).

    Raises DevstackError.
    """
    missing = find_missing(places.cache, system_only=system_only)
    if not missing.anything():
        return
    _check_cache(places.cache)
    if system_only:
        folder = places.cache
    else:
        prepare_home(places.home)
        _check_clone()
        folder = places.log
    # One installation at a time for this clone (its .venv); what clones share has locks of its own.
    with exclusive(REPOSITORY, lambda: progress.say("waiting for another installation of this clone to end...")):
        missing = find_missing(places.cache, system_only=system_only)
        if not missing.anything():
            return
        log = ToolLog(folder / f"install-{time.strftime('%Y%m%dT%H%M%S')}.log")
        log.write(f"missing: {missing}")
        progress.say(f"Installing what is missing. Everything that is done is written to {log.path}")
        if missing.of_the_system():
            _with_packages(missing, places, progress, log)
        else:
            _run_together(_later_steps(missing, None, places, progress, log))
        progress.say("Installed.")


def _with_packages(missing: Missing, places: Locations, progress: Progress, log: ToolLog) -> None:
    if not debian.has_apt() or debian.as_root() is None:
        reason = "this system has no apt-get" if not debian.has_apt() else "that takes root, or sudo without a password"
        raise DevstackError(
            f"system packages are missing and cannot be installed from here: {reason}. Do this by hand:\n"
            f"{by_hand(missing)}\nThen run the same command again."
        )
    apt = debian.AptInstaller(log)
    with progress.step("System package lists"):
        apt.update()
    packages = system_packages(missing, places.cache, apt)
    if packages.first:
        with progress.step(f"System packages {' '.join(packages.first)}"):
            apt.install(packages.first)
    _run_together(_later_steps(missing, (packages, apt), places, progress, log))


def _later_steps(
    missing: Missing,
    system: tuple[SystemPackages, debian.AptInstaller] | None,
    places: Locations,
    progress: Progress,
    log: ToolLog,
) -> list[Callable[[], None]]:
    """What can go on side by side: the Python environment; and system packages, with what needs them after them."""

    def python_environment() -> None:
        with progress.step("Python packages (requirements.lock) in .venv"):
            make_environment(log)

    def kafka() -> None:
        with progress.step(f"Apache Kafka {VERSION} (jars, 43 MB)"):
            fetch_jars(places.cache, log)

    def timescaledb_source(folder: Path) -> None:
        with progress.step("TimescaleDB: source from Debian 13"):
            timescaledb_build.fetch(folder, log)

    def timescaledb(folder: Path, apt: debian.AptInstaller) -> None:
        with progress.step("TimescaleDB: building for PostgreSQL 15"):
            package = timescaledb_build.build_package(places.cache, folder, log)
        with progress.step("TimescaleDB: installing"):
            apt.install([str(package)])

    def system_then_kafka_and_timescaledb() -> None:
        if system is None:
            kafka()
            return
        packages, apt = system

        def system_packages() -> None:
            with progress.step(f"System packages {' '.join(packages.others)}"):
                apt.install_postgres(packages.others)

        steps: list[Callable[[], None]] = [system_packages] if packages.others else []
        after: list[Callable[[], None]] = [kafka] if missing.kafka_jars else []
        with ExitStack() as stack:
            if packages.build_timescaledb:
                folder = stack.enter_context(timescaledb_build.build_folder(places.cache))
                steps.append(lambda: timescaledb_source(folder))
                after.append(lambda: timescaledb(folder, apt))
            _run_together(steps)
            _run_together(after)

    steps: list[Callable[[], None]] = []
    if system is not None or missing.kafka_jars:
        steps.append(system_then_kafka_and_timescaledb)
    if missing.python_environment:
        steps.append(python_environment)
    return steps


def _run_together(steps: list[Callable[[], None]]) -> None:
    """Run the steps side by side; all end before the first error is raised, so that none is cut off in the middle."""
    if not steps:
        return
    with ThreadPoolExecutor(len(steps)) as pool:
        futures: list[Future[None]] = [pool.submit(step) for step in steps]
    errors = [error for future in futures if (error := future.exception()) is not None]
    expected = [error for error in errors if isinstance(error, DevstackError)]
    if expected and len(expected) == len(errors):
        raise DevstackError("\n\n".join(str(error) for error in expected))
    for error in errors:
        raise error


def _check_cache(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        check_writable(cache)
    except OSError as error:
        raise DevstackError(
            f"cannot write to {cache}: {error.strerror or error}.\n"
            "Set TOLLBOOK_CACHE to a folder that you can write to."
        ) from None


def _check_clone() -> None:
    try:
        check_writable(REPOSITORY)
    except OSError as error:
        raise DevstackError(
            f"cannot write to {REPOSITORY}: {error.strerror or error}.\n"
            "The virtual environment .venv belongs there: use a clone of your own, or make room on the disk."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
