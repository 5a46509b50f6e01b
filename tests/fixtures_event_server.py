"""`tollbook events serve` as a process, and what is in Kafka."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams.http import access_keys
from streams.http.event_server import PATH
from tests.builders import EVENT
from tests.waiting import PATIENCE_S, wait_for

STOPS_WITHIN_S = PATIENCE_S
JSON = "application/json"


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class EventServerProcess:
    """A running server and a key that it takes."""

    process: subprocess.Popen[str]
    port: int
    secret: str

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            text = reply.read()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, found, json.loads(text) if found.get("content-type") == JSON else text.decode())

    def post(
        self, body: bytes | Iterator[bytes] | list[Any] | dict[str, Any], media_type: str = JSON, **headers: str
    ) -> Reply:
        """Send events with the key; an iterator without announcing the length."""
        sent = {"Authorization": f"Bearer {self.secret}", "Content-Type": media_type, **headers}
        return self.request("POST", PATH, json.dumps(body).encode() if isinstance(body, list | dict) else body, sent)

    def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit code and what was printed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=STOPS_WITHIN_S)
        return self.process.returncode, printed


StartServer = Callable[..., EventServerProcess]


@pytest.fixture
def secret(connection: psycopg.Connection) -> str:
    """The secret of an emitter's key for tenant_1 and tenant_2."""
    secret = access_keys.secret_from(os.urandom(access_keys.SECRET_BYTES))
    for tenant in ("tenant_1", "tenant_2"):
        connection.execute("insert into usage.tenants (tenant_id, name) values (%s, %s)", (tenant, tenant))
    access_keys.add(
        connection, kind="emitter", name="gateway", tenant_ids=["tenant_1", "tenant_2"], all_tenants=False,
        secret=secret, actor="test",
    )  # fmt: skip
    return secret


@pytest.fixture
def start_server(kafka: KafkaSettings, own_database_url: str, secret: str) -> Iterator[StartServer]:
    """Starts servers on the test's topics and database; further environment by keyword."""
    started: list[EventServerProcess] = []

    def start(*arguments: str, **more: str) -> EventServerProcess:
        environ = os.environ | {
            "TOLLBOOK_KAFKA": kafka.bootstrap,
            "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
            "TOLLBOOK_DATABASE_URL": own_database_url,
            **more,
        }
        command = [sys.executable, "-m", "console.main", "events", "serve", "--port", "0", *arguments]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        server = EventServerProcess(process, 0, secret)
        started.append(server)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        line = process.stdout.readline() if ready else ""
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1/events", line)
        assert found, f"the server did not start: {line}{process.stdout.read() if process.poll() is not None else ''}"
        server.port = int(found.group(1))
        wait_for(lambda: server.request("GET", "/readyz").status == 200, "a server that is ready")
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate()


@pytest.fixture
def server(start_server: StartServer) -> EventServerProcess:
    """A server that can be sent events."""
    return start_server()


@pytest.fixture
def start_worker(kafka: KafkaSettings, own_database_url: str) -> Callable[..., str]:
    """Runs `tollbook streams run …` to its end and returns what it printed; further environment by keyword."""

    def run(*arguments: str, **more: str) -> str:
        environ = os.environ | {
            "TOLLBOOK_KAFKA": kafka.bootstrap,
            "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
            "TOLLBOOK_DATABASE_URL": own_database_url,
            **more,
        }
        command = [sys.executable, "-m", "console.main", "streams", "run", *arguments]
        done = subprocess.run(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
        )
        return done.stdout

    return run


def messages(kafka: KafkaSettings) -> list[Message]:
    """Everything in the usage topic, by partition and offset."""
    topic = USAGE.name(kafka.topic_prefix)
    consumer = Consumer(kafka.client(**{"group.id": "test", "enable.auto.commit": False, "check.crcs": True}))
    with closing(consumer):
        partitions = [TopicPartition(topic, number, 0) for number in range(USAGE.partitions)]
        due = sum(consumer.get_watermark_offsets(partition, timeout=60)[1] for partition in partitions)
        consumer.assign(partitions)
        found: list[Message] = []
        while len(found) < due:
            found += [message for message in consumer.consume(due - len(found), timeout=10) if message.error() is None]
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def usage_event(number: int, **changed: Any) -> dict[str, Any]:
    """One of many events."""
    return EVENT | {"request_id": f"req-{number}"} | changed
