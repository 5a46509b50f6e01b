"""`python -m devstack.testrun [pytest arguments]`: the tests, on services of their own that are gone afterwards.

Each run takes the first free numbered folder below build/, so that runs can go on side by side, and beside the
services of `make up`. What a killed run left behind in its folder is stopped and removed by the next one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from devstack.errors import DevstackError
from devstack.locations import REPOSITORY
from devstack.locking import if_free
from devstack.progress import Progress
from devstack.stack import Stack

BUILD = REPOSITORY / "build"
MOST_RUNS = 20  # side by side; each takes about 1 GB of memory
ARGUMENTS = ("-n", "2", "--dist", "loadgroup", "tests")


class Stopped(Exception):
    """SIGTERM or SIGHUP came (a cancelled CI job)."""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    arguments = [*ARGUMENTS, *shlex.split(os.environ.get("PYTEST_ARGS", "")), *sys.argv[1:]]
    progress = Progress()
    try:
        with _own_stack(progress) as stack:
            environ = {**os.environ, **stack.environment()}
            return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environ, cwd=REPOSITORY).returncode
    except DevstackError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped):
        print("Interrupted; the services of this test run were stopped and removed.", file=sys.stderr)
        return 130


@contextmanager
def _own_stack(progress: Progress) -> Iterator[Stack]:
    """Services that run inside the block; stopped and removed at its end, however it ends, with their logs kept."""
    with ExitStack() as held:
        home = _free_home(held)
        stack = Stack(home, _without_local_services())
        stack.clean(progress)
        stack = Stack(home, _without_local_services())
        try:
            stack.up(progress)
            yield stack
        finally:
            _keep_logs(home)
            stack.clean(progress)


def _free_home(held: ExitStack) -> Path:
    for number in range(1, MOST_RUNS + 1):
        home = BUILD / f"test-stack-{number}"
        if held.enter_context(if_free(home.with_suffix(".lock"))):
            return home
    raise DevstackError(f"{MOST_RUNS} test runs are going on in this clone already.")


def _without_local_services() -> dict[str, str]:
    """The process's environment without the addresses of `make up`'s services (a shell that read `tollbook dev env`).

    Other addresses are meant: services that the tests shall use instead of own ones.
    """
    local = Stack(environ={k: v for k, v in os.environ.items() if k in ("TOLLBOOK_HOME", "HOME", "XDG_CACHE_HOME")})
    own = {name: value for name, value in local.environment().items() if name.startswith("TOLLBOOK_")}
    kept = ("TOLLBOOK_CACHE",)
    return {name: value for name, value in os.environ.items() if name in kept or own.get(name) != value}


def _keep_logs(home: Path) -> None:
    kept = BUILD / "test-logs"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(home / "log", kept, dirs_exist_ok=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
