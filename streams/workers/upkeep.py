"""What a worker does beside applying chunks, on a connection of its own: the completeness check, alerts, letting go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg

from serving_adapter.errors import AdapterError, MessageTooLarge
from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import ALERTS
from streams import alert_webhook, alerts
from streams.alert_webhook import Webhook, WebhookNotTaken
from streams.alerts import Alert
from streams.completeness.completeness_check import CompletenessCheck, deliver_alerts
from streams.database import connect
from streams.errors import DatabaseUnavailable
from streams.retention import retention_store
from streams.retention.expiry import Retention
from streams.settings import CompletenessSettings, DatabaseSettings, RetentionSettings
from streams.workers.worker_health import UpkeepSigns

SHARE_OF_TIME: Final = 0.05
"""Of a worker's time so much, at most, goes into checks."""
RESTS_AT_MOST_S: Final = 5.0
"""Far less than completeness_check.PAUSE: who rests longer than that counts silence anew each time."""
WEBHOOK_RESTS_S: Final = 30.0
"""After a webhook did not take an alert."""
WEEKS_AHEAD_EVERY_S: Final = 3600.0
"""How often partitions for the ids of coming weeks are made."""
WEEKS_AGAIN_AFTER_S: Final = 60.0
"""How soon it is tried again where somebody reads identities for long: each time chunks wait, too."""


@dataclass(frozen=True, slots=True)
class _Session:
    """A connection in autocommit mode, and who works over it."""

    connection: psycopg.Connection
    check: CompletenessCheck
    retention: Retention


class Upkeep:
    """One round whenever told. What fails is said and tried again in the next round: usage goes on meanwhile.

    `signs` tell whoever watches the worker.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        database: DatabaseSettings,
        settings: CompletenessSettings,
        say: Callable[[str], None] = print,
        retention: RetentionSettings | None = None,
    ) -> None:
        self._kafka = kafka
        self._database = database
        self._settings = settings
        self._say = say
        self._retention_settings = retention or RetentionSettings.from_environment()
        self._webhook = Webhook.from_environment()
        self._webhook_says = ""
        self._tell_at = -math.inf
        self._session: _Session | None = None
        self._producer: EventProducer | None = None
        self.signs = UpkeepSigns(time.monotonic())
        self._failing = False
        self._weeks_due_at = -math.inf
        self._not_before = -math.inf

    def round(self, *, at_once: bool = False) -> bool:
        """Take each step once. False if one failed, the database or Kafka being away; said once, until all work.

        A step that fails keeps no other from being taken: what is old is let go of while alerts cannot be delivered. A
        check that takes long, because a backlog brings numbers out of order, is made less often unless `at_once`.
        """
        if time.monotonic() < self._not_before and not at_once:
            return True
        failed = self._take_steps()
        if failed:
            because = str(failed[0]).splitlines()[0]
            if not self._failing:
                self._say(f"upkeep: {because}; trying again, nothing is lost")
            self._failing = True
            self.signs.failures += 1
            self.signs.because = because
            self.close()
            return False
        self._failing = False
        self.signs.went_well_at, self.signs.because = time.monotonic(), ""
        return True

    def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            self._session.connection.close()
        self._session = self._producer = None

    def _take_steps(self) -> list[Exception]:
        """Take each step; returns what failed."""
        try:
            session = self._session = self._session or self._connect()
        except DatabaseUnavailable as error:
            return [error]
        failed: list[Exception] = []
        steps: tuple[Callable[[_Session], object], ...] = (
            self._look,
            self._add_weeks,
            self._deliver,
            self._let_go,
            self._tell,
        )
        for step in steps:
            try:
                step(session)
            except (psycopg.Error, DatabaseUnavailable, AdapterError) as error:
                failed.append(error)
        return failed

    def _connect(self) -> _Session:
        connection = connect(self._database.url, application="tollbook streams upkeep")
        return _Session(
            connection,
            CompletenessCheck(connection, self._settings),
            Retention(connection, self._retention_settings),
        )

    def _look(self, session: _Session) -> None:
        began = time.monotonic()
        session.check.run()
        ended = time.monotonic()
        self._not_before = ended + min((ended - began) / SHARE_OF_TIME, RESTS_AT_MOST_S)

    def _add_weeks(self, session: _Session) -> None:
        if time.monotonic() < self._weeks_due_at:
            return
        try:
            retention_store.add_weeks(session.connection)
            self._weeks_due_at = time.monotonic() + WEEKS_AHEAD_EVERY_S
        except psycopg.errors.LockNotAvailable:  # meanwhile the ids of a week without a partition go into the rest
            self._weeks_due_at = time.monotonic() + WEEKS_AGAIN_AFTER_S

    def _deliver(self, session: _Session) -> None:
        deliver_alerts(session.connection, self._send)

    def _tell(self, session: _Session) -> None:
        if self._webhook is None or time.monotonic() < self._tell_at:
            return
        try:
            told = alert_webhook.deliver(session.connection, self._webhook)
            if told.refused:
                self._say(
                    f"upkeep: the alerts' webhook refused {told.refused} ({told.status}); they are told again later"
                )
            self._webhook_says = ""
        except WebhookNotTaken as error:  # somebody else's server: no failure of ours
            self._tell_at = time.monotonic() + WEBHOOK_RESTS_S
            if not self._webhook_says:
                self._say(f"upkeep: {error}; trying again, no alert is lost")
            self._webhook_says = str(error)

    def _let_go(self, session: _Session) -> None:
        session.retention.step_when_due()

    def _send(self, waiting: list[Alert], acknowledged: Callable[[Alert], None]) -> None:
        """Into the topic; returns when Kafka has all of them. One that it does not take keeps no other from it."""
        producer = self._producer = self._producer or EventProducer(self._kafka, ALERTS.name(self._kafka.topic_prefix))
        too_large: MessageTooLarge | None = None
        for alert in waiting:
            try:
                producer.send(alert.key.encode(), alerts.encode(alert), told=_telling(acknowledged, alert))
            except MessageTooLarge as error:
                too_large = error
        producer.flush()
        if too_large is not None:
            raise too_large


def _telling(acknowledged: Callable[[Alert], None], alert: Alert) -> Callable[[int, int], None]:
    """Tells of the alert when its message is acknowledged."""
    return lambda _partition, _offset: acknowledged(alert)
