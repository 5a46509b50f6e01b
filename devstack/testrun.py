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
from devstack.stack import DATABASE, KAFKA, Stack

BUILD = REPOSITORY / "build"
MOST_RUNS = 20  # side by side; each takes about 1 GB of memory
SERVICES = (KAFKA, DATABASE)
ARGUMENTS = ("-n", "3", "--dist", "loadgroup", "tests")


class Stopped(Exception):
    """SIGTERM or SIGHUP came (a cancelled CI job)."""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    arguments = [*ARGUMENTS, *shlex.split(os.environ.get("PYTEST_ARGS", "")), *sys.argv[1:]]
    progress = Progress()
    try:
        with own_stack(progress) as stack:
            environ = {**environment_for_tests(), **stack.environment()}
            return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environ, cwd=REPOSITORY).returncode
    except (DevstackError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped):
        print("Interrupted; the services of this test run were stopped and removed.", file=sys.stderr)
        return 130


@contextmanager
def own_stack(progress: Progress) -> Iterator[Stack]:
    """Services that run inside the block; stopped and removed at its end, however it ends, with their logs kept."""
    with ExitStack() as held:
        home = _free_home(held)
        environ = environment_for_tests()
        Stack(home, environ).clean(progress)
        stack = Stack(home, environ)
        stack.postgres.durable = False  # tests of what survives start a server of their own
        stack.kafka.brief = True
        try:
            stack.up(progress)
            yield stack
            progress.say("Tests ended; removing their services...")
        finally:
            _keep_logs(home)
            stack.clean(progress)


def remove_left(progress: Progress) -> None:
    """Stop and remove what killed test runs left behind. Raises DevstackError while a test run goes on."""
    for lock in BUILD.glob("test-stack-*.lock"):
        with if_free(lock) as taken:
            if not taken:
                raise DevstackError(f"a test run goes on in {lock.with_suffix('')}: let it end, or stop it (Ctrl-C).")
            Stack(lock.with_suffix("")).clean(progress)


def _free_home(held: ExitStack) -> Path:
    for number in range(1, MOST_RUNS + 1):
        home = BUILD / f"test-stack-{number}"
        if held.enter_context(if_free(home.with_suffix(".lock"))):
            return home
    raise DevstackError(f"{MOST_RUNS} test runs are going on in this clone already.")


def environment_for_tests() -> dict[str, str]:
    """The process's environment without the addresses of `make up`'s services (a shell that read `tollbook dev env`).

    Another Kafka or database that it names is meant: it is used instead of an own one. Stripe never is: tests talk to
    the twin, whatever key is at hand.
    """
    local = Stack(environ={name: value for name, value in os.environ.items() if name not in SERVICES}).environment()
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TOLLBOOK_STRIPE_") and not (name in SERVICES and value == local.get(name))
    }


def _keep_logs(home: Path) -> None:
    kept = BUILD / "test-logs" / home.name
    shutil.rmtree(kept, ignore_errors=True)
    if (home / "log").is_dir():
        shutil.copytree(home / "log", kept)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
