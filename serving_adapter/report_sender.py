"""Sends what a replica says about itself, one report at a time."""

from __future__ import annotations

from typing import Final

from serving_adapter import replica_reports
from serving_adapter.errors import AdapterError
from serving_adapter.producer import EventProducer
from serving_adapter.replica_reports import Report
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS

DELIVER_WITHIN_S: Final = 10.0
"""A report that Kafka does not take in time is given up: counts are cumulative, and the next one says more."""


class ReportSender:
    """Over a producer that is made anew after it has failed."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._producer: EventProducer | None = None

    def send(self, report: Report) -> None:
        """Into the topic; returns when Kafka has it. Raises KafkaUnavailable, DeliveryFailed, MessageTooLarge."""
        try:
            if self._producer is None:
                self._producer = EventProducer(self._kafka, REPLICAS.name(self._kafka.topic_prefix), DELIVER_WITHIN_S)
            replica_reports.send(self._producer, report)
            self._producer.flush()
        except AdapterError:
            self._producer = None
            raise
