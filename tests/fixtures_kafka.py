"""Kafka brokers of a test's own: one to stop and start, one that speaks only TLS and asks for a login.

Processes from the jars of devstack, below a temporary folder, on ports of their own; stopped and removed at the end.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from devstack.install.java import find_java
from devstack.kafka_broker import KafkaBroker
from devstack.locations import Locations, locations, prepare_home
from devstack.progress import Progress
from devstack.settings import Settings
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE, ensure_topics

USER = "tollbook"
SENDER = "sender"
"""May do with the usage topic what docs/kafka.md says that a sender needs, and see the replicas' topic."""
PREFIX = "own"


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker to stop and start; it runs."""
    broker = KafkaBroker(_places(tmp_path / "kafka"), Settings())
    broker.brief = True
    broker.up(QUIET)
    yield broker
    broker.down(QUIET)


@pytest.fixture(scope="session")
def secure_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafkaBroker]:
    """A broker that can be reached only with TLS and a login."""
    folder = tmp_path_factory.mktemp("secure")
    broker = SecureKafkaBroker(_places(folder / "kafka"), make_certificates(folder))
    broker.up(QUIET)
    yield broker
    broker.down(QUIET)


class BrokerOfThree(KafkaBroker):
    """One of three brokers that hold a copy of everything; two must have it before a message is acknowledged."""

    heap: ClassVar[tuple[str, ...]] = ("-Xms128m", "-Xmx256m")
    brief = True

    def __init__(self, places: Locations, node: int, all_three: list[BrokerOfThree]) -> None:
        super().__init__(places, Settings())
        self.node = node
        self._all_three = all_three
        all_three.append(self)

    def cluster_id(self) -> str:
        """The same for the three: their data lies in the same test's folder."""
        of_folder = hashlib.sha256(bytes(self.places.home.parent)).digest()
        return base64.urlsafe_b64encode(b"T" + of_folder).decode()[:22]  # never with a dash in front

    def server_properties(self, log_dirs: Path) -> str:
        """Of two lines for the same name Java takes the later."""
        voters = ",".join(f"{b.node}@127.0.0.1:{b.settings.ports['kafka_controller']}" for b in self._all_three)
        return super().server_properties(log_dirs) + "\n".join(
            [
                f"node.id={self.node}",
                f"controller.quorum.voters={voters}",
                "offsets.topic.replication.factor=3",
                "min.insync.replicas=2",
                "broker.session.timeout.ms=3000",
                "broker.heartbeat.interval.ms=500",
                "",
            ]
        )

    def complete(self) -> None:
        """Topics are made once all three are there."""


@pytest.fixture(scope="module")
def three_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[BrokerOfThree]]:
    """Three brokers, which run."""
    folder = tmp_path_factory.mktemp("three")
    made: list[BrokerOfThree] = []
    for node in (1, 2, 3):
        BrokerOfThree(_places(folder / f"kafka-{node}"), node, made).choose_ports(QUIET)
    try:
        with ThreadPoolExecutor(3) as side_by_side:  # none answers before two are there
            list(side_by_side.map(lambda broker: broker.up(QUIET), made))
        yield made
    finally:
        for broker in made:
            broker.stop_patience_s = 5.0  # the last ones would wait for a quorum
            broker.down(QUIET)


@dataclass(frozen=True)
class Certificates:
    """The broker's key store with a certificate for 127.0.0.1, its authority's certificate, and a stranger's."""

    key_store: Path
    password: str
    authority: Path
    stranger: Path


class SecureKafkaBroker(KafkaBroker):
    """SASL_SSL for clients, with PLAIN and SCRAM; the broker itself has a listener of its own. USER may do anything."""

    brief = True
    port_names: ClassVar[tuple[str, ...]] = ("kafka", "kafka_controller", "kafka_internal")

    def __init__(self, places: Locations, certificates: Certificates) -> None:
        super().__init__(places, Settings())
        self.certificates = certificates
        self.password = secrets.token_urlsafe(16)

    def server_properties(self, log_dirs: Path) -> str:
        """Of two lines for the same name Java takes the later."""
        port, controller, internal = (self.settings.ports[name] for name in self.port_names)
        modules = "org.apache.kafka.common.security"
        return super().server_properties(log_dirs) + "\n".join(
            [
                f"listeners=SASL_SSL://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}",
                f"advertised.listeners=SASL_SSL://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal}",
                "inter.broker.listener.name=INTERNAL",
                "listener.security.protocol.map=SASL_SSL:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                "listener.name.sasl_ssl.plain.sasl.jaas.config="
                f"{modules}.plain.PlainLoginModule required"
                f' user_{USER}="{self.password}" user_{SENDER}="{self.password}";',
                f"listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
                f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;",
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                f"super.users=User:{USER};User:ANONYMOUS",
                "ssl.keystore.type=PKCS12",
                f"ssl.keystore.location={self.certificates.key_store}",
                f"ssl.keystore.password={self.certificates.password}",
                "",
            ]
        )

    def client_properties(self) -> dict[str, str]:
        """For the health check: PLAIN, the login that is there from the first moment."""
        return super().client_properties() | self.login()

    def login(self, mechanism: str = "PLAIN", **changed: str) -> dict[str, str]:
        """Client properties; others by keyword, with `_` for `.`."""
        properties = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.username": USER,
            "sasl.password": self.password,
            "ssl.ca.location": str(self.certificates.authority),
        }
        return properties | {name.replace("_", "."): value for name, value in changed.items()}

    def complete(self) -> None:
        """The SCRAM logins, the topics, and what the sender may do."""
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{self.settings.ports['kafka_internal']}"})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            info = ScramCredentialInfo(mechanism, 4096)
            user = UserScramCredentialUpsertion(USER, info, self.password.encode())
            for done in admin.alter_user_scram_credentials([user]).values():
                done.result(timeout=60)
        ensure_topics(KafkaSettings(self.address(), self.login(), PREFIX))
        needs = (AclOperation.WRITE, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS)
        allowed = [
            AclBinding(
                ResourceType.TOPIC, topic.name(PREFIX), ResourcePatternType.LITERAL, f"User:{SENDER}", "*", operation,
                AclPermissionType.ALLOW,
            )
            for topic, operations in ((USAGE, needs), (REPLICAS, (AclOperation.DESCRIBE,)))
            for operation in operations
        ]  # fmt: skip
        for done in admin.create_acls(allowed).values():
            done.result(timeout=60)


def make_certificates(folder: Path) -> Certificates:
    """An authority, a certificate of the broker's from it, and another authority, by Java's own keytool."""
    java = find_java()
    assert java is not None, "the broker needs Java"
    password = secrets.token_hex(8)

    def keytool(*arguments: str | Path, store: str) -> None:
        command = [java.resolve().parent / "keytool", *arguments, "-keystore", folder / f"{store}.p12"]
        done = subprocess.run(
            [*command, "-storetype", "PKCS12", "-storepass", password], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    for name in ("authority", "stranger"):
        keytool("-genkeypair", "-alias", name, "-keyalg", "EC", "-dname", f"CN={name}", "-validity", "10",
                "-ext", "bc:c=ca:true", "-ext", "ku:c=keyCertSign,cRLSign", store=name)  # fmt: skip
        keytool("-exportcert", "-rfc", "-alias", name, "-file", folder / f"{name}.pem", store=name)
    request, signed = folder / "broker.csr", folder / "broker.pem"
    keytool(
        "-genkeypair", "-alias", "broker", "-keyalg", "EC", "-dname", "CN=broker", "-validity", "10", store="broker"
    )
    keytool("-certreq", "-alias", "broker", "-file", request, store="broker")
    keytool("-gencert", "-alias", "authority", "-infile", request, "-outfile", signed, "-rfc", "-validity", "10",
            "-ext", "san=ip:127.0.0.1", store="authority")  # fmt: skip
    keytool("-importcert", "-noprompt", "-alias", "authority", "-file", folder / "authority.pem", store="broker")
    keytool("-importcert", "-noprompt", "-alias", "broker", "-file", signed, store="broker")
    return Certificates(folder / "broker.p12", password, folder / "authority.pem", folder / "stranger.pem")


def write_properties(file: Path, properties: dict[str, str]) -> str:
    """A file for TOLLBOOK_KAFKA_CONFIG; its path."""
    file.write_text("# for a test\n" + "".join(f"{name} = {value}\n" for name, value in properties.items()))
    return str(file)


def _places(home: Path) -> Locations:
    prepare_home(home)
    return Locations(home, locations().cache)


QUIET = Progress()
