"""The local services together: up, down, status, clean, and the environment in which programs find them.

A service that the environment names elsewhere (TOLLBOOK_KAFKA, TOLLBOOK_DATABASE_URL, TOLLBOOK_STRIPE_API or a
TOLLBOOK_STRIPE_KEY alone) is used where it is, and none is started for it here.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from devstack import postgres_setup
from devstack import settings as remembering
from devstack.errors import DevstackError
from devstack.kafka_broker import KafkaBroker
from devstack.locations import MARKER, Locations, locations, prepare_home
from devstack.locking import exclusive
from devstack.postgres_server import PostgresServer
from devstack.progress import Progress
from devstack.service import Service
from devstack.settings import Settings
from devstack.stripe_twin_server import StripeTwinServer

KAFKA, DEV_KAFKA, DATABASE, STRIPE_API, STRIPE_KEY = (
    "TOLLBOOK_KAFKA",
    "TOLLBOOK_DEV_KAFKA",
    "TOLLBOOK_DATABASE_URL",
    "TOLLBOOK_STRIPE_API",
    "TOLLBOOK_STRIPE_KEY",
)


class Stack:
    """The services of one home."""

    def __init__(self, home: str | Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self.places: Locations = locations(home, self._environ)
        self.settings: Settings = remembering.load(self.places.settings)
        self.kafka = KafkaBroker(self.places, self.settings)
        self.postgres = PostgresServer(self.places, self.settings)
        self.stripe_twin = StripeTwinServer(self.places, self.settings)

    @property
    def services(self) -> tuple[Service, ...]:
        return (self.kafka, self.postgres, self.stripe_twin)

    def elsewhere(self) -> dict[str, str]:
        """Name of the service → address, for those that the environment names and that are not this stack's own."""
        given = {
            self.kafka.name: self._given(KAFKA, self.kafka),
            self.postgres.name: self._given(DATABASE, self.postgres),
            self.stripe_twin.name: self._given(STRIPE_API, self.stripe_twin)
            or ("Stripe itself" if self._stripe_keys() and not self._environ.get(STRIPE_API) else None),
        }
        return {name: address for name, address in given.items() if address}

    def own(self) -> list[Service]:
        """The services that this stack runs itself."""
        elsewhere = self.elsewhere()
        return [service for service in self.services if service.name not in elsewhere]

    def environment(self) -> dict[str, str]:
        """The variables by which the project finds its services: the process's own values, else the remembered ones.

        A service that was never started has no variable. Contains the twin's key, never a database password.
        """
        found = {"TOLLBOOK_HOME": str(self.places.home), "TOLLBOOK_CACHE": str(self.places.cache)}
        elsewhere = self.elsewhere()
        if self.kafka.name not in elsewhere and self.kafka.port:
            # By name: a broker of which one copy of a message is enough (serving_adapter/topic_check.py)
            found[KAFKA] = found[DEV_KAFKA] = self.kafka.address()
        if self.postgres.name not in elsewhere and self.postgres.port:
            found[DATABASE] = self.postgres.address()
        if self.stripe_twin.name not in elsewhere and self.stripe_twin.port:
            found[STRIPE_API] = self.stripe_twin.address()
            found[STRIPE_KEY] = self.stripe_twin.key()
        given = [KAFKA, "TOLLBOOK_KAFKA_CONFIG", DATABASE, STRIPE_API, *self._stripe_keys()]
        given += [name for name in self._environ if name.startswith("TOLLBOOK_STRIPE_WEBHOOK_SECRET")]
        if DEV_KAFKA not in found:
            given.append(DEV_KAFKA)
        return {**found, **{name: self._environ[name] for name in given if self._environ.get(name)}}

    def _stripe_keys(self) -> list[str]:
        """The variables with keys of Stripe: `TOLLBOOK_STRIPE_KEY`, and one for each further legal entity."""
        return [name for name, value in self._environ.items() if name.startswith(STRIPE_KEY) and value]

    def up(self, progress: Progress) -> None:
        """Start what does not run, side by side, and wait until all of it works; raises DevstackError."""
        prepare_home(self.places.home)
        with self._alone(progress):
            self._use_elsewhere(progress)
            # Before anything starts, and one after another: no two services may choose the same port
            starting = self.own()
            for service in starting:
                if service.running() is None:
                    service.choose_ports(progress)
            self._save()
            try:
                _side_by_side([partial(service.up, progress) for service in starting])
            finally:
                self._save()

    def _use_elsewhere(self, progress: Progress) -> None:
        """Say which services run elsewhere, and check them: Kafka by making its topics, PostgreSQL by a query."""
        elsewhere = self.elsewhere()
        for service in self.services:
            if service.name in elsewhere:
                shown = masked(elsewhere[service.name])
                progress.say(f"{service.title}: {shown}, as the environment says; none is started here")
        if self.kafka.name in elsewhere:
            from devstack.kafka_topics import create_topics

            try:
                create_topics(self._environ)
            except DevstackError as error:
                unset = "TOLLBOOK_KAFKA is set in this shell; without it (unset TOLLBOOK_KAFKA) a local one is used."
                raise DevstackError(f"{error}\n{unset}") from None
        if self.postgres.name in elsewhere:
            postgres_setup.check_elsewhere(elsewhere[self.postgres.name])

    def down(self, progress: Progress) -> None:
        """Stop every service of this home that runs, side by side. Data stays."""
        # Where the home was removed under running services there is no lock to take, and still something to stop
        with self._alone(progress) if (self.places.home / MARKER).exists() else nullcontext():
            _side_by_side([partial(service.down, progress) for service in self.services])

    def clean(self, progress: Progress) -> None:
        """Stop the services and remove the home with all data. Only a folder that bears our mark is removed."""
        home = self.places.home
        if home.is_dir() and os.listdir(home) and not (home / MARKER).exists():
            raise DevstackError(f"{home} does not bear the mark of local services ({MARKER}) and is left as it is.")
        self.down(progress)
        for service in self.services:
            service.remove_data()
        if not home.is_dir():
            return
        try:
            shutil.rmtree(self.places.home)
        except OSError as error:
            raise DevstackError(
                f"cannot remove {error.filename}: {error.strerror}. It may be another user's: run the same with sudo."
            ) from None

    def _given(self, variable: str, service: Service) -> str | None:
        """The environment's address, unless it is this stack's own (a shell into which `env` was read)."""
        address = self._environ.get(variable)
        return address if address and not (service.port and address == service.address()) else None

    def _save(self) -> None:
        remembering.save(self.places.settings, self.settings)

    @contextmanager
    def _alone(self, progress: Progress) -> Iterator[None]:
        """One command at a time; with the settings as the one before left them."""
        waiting = "waiting for another command on these services to end..."
        with exclusive(self.places.home / "lock", lambda: progress.say(waiting)):
            latest = remembering.load(self.places.settings)
            self.settings.ports = latest.ports
            self.settings.postgres_data, self.settings.postgres_user = latest.postgres_data, latest.postgres_user
            yield


def environment(home: str | Path | None = None) -> dict[str, str]:
    """The environment of the stack at `home` (see Stack.environment)."""
    return Stack(home).environment()


def masked(address: str) -> str:
    """An address without the password that it may hold."""
    return re.sub(r"(://[^:/@?]*):[^/?]*@", r"\1:***@", address)


def _side_by_side(actions: Sequence[Callable[[], None]]) -> None:
    """Run all to their end, then raise what went wrong in any, in one error.

    In daemon threads: Ctrl-C ends the command at once, and the next one finds the services as they are.
    """
    errors: list[BaseException] = []

    def attempt(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, DevstackError | OSError):
            raise error
    if errors:
        raise DevstackError("\n".join(str(error) for error in errors))
