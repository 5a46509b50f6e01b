"""The local Kafka broker: one KRaft node from the fetched jars."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from devstack import ports, processes
from devstack.errors import DevstackError
from devstack.install.java import OLDEST, find_java
from devstack.install.kafka_jars import jars_complete, jars_folder
from devstack.processes import ProcessId
from devstack.service import Service

# Kafka's own start script's choices
JVM = ("-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
       "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true")  # fmt: skip
JVM_BRIEF = ("-XX:TieredStopAtLevel=1",)

PROPERTIES = """\
# Written by devstack/kafka_broker.py at each start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
# A typing error in a topic's name is an error, not a new topic.
auto.create.topics.enable=false
log.message.timestamp.type=LogAppendTime
# One broker: no copies; few partitions of the internal topics, which would all be made at the first group's join.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# After a kill the controller keeps the dead broker's place this long (9 s by default), and the new one waits.
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=1000
# Otherwise each first join of a group waits 3 s for more members.
group.initial.rebalance.delay.ms=0
# 128 MB by default, a quarter of the heap; only the internal topics are compacted here.
log.cleaner.dedupe.buffer.size=16777216
"""

LOG4J = """\
status=warn
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={log}
appender.file.filePattern={log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{yyyy-MM-dd HH:mm:ss.SSS}} %-5p %m (%c{{1}})%n
appender.file.policies.type=SizeBasedTriggeringPolicy
appender.file.policies.size=20MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
# The settings, some 500 lines, at each start
logger.config.name=kafka.server.KafkaConfig
logger.config.level=warn
logger.common.name=org.apache.kafka.common.config
logger.common.level=warn
"""


class KafkaBroker(Service):
    name: ClassVar[str] = "kafka"
    title: ClassVar[str] = "Kafka"
    port_names: ClassVar[tuple[str, ...]] = ("kafka", "kafka_controller")
    heap: ClassVar[tuple[str, ...]] = ("-Xms256m", "-Xmx512m")
    brief: bool = False
    """On for a broker of some tests: compiling well what runs for a minute takes longer than it saves."""

    def address(self) -> str:
        return f"{ports.HOST}:{self.port}"

    def is_mine(self, arguments: list[str]) -> bool:
        return arguments[-3:-1] == ["kafka.Kafka", str(self._properties)]

    def prepare(self) -> None:
        java = self._java()
        self.data.mkdir(parents=True, exist_ok=True)
        self._properties.write_text(self.server_properties(self._log_dirs))
        (self.data / "log4j2.properties").write_text(LOG4J.format(log=self.log))
        if not (self._log_dirs / "meta.properties").exists():
            self._format(java)

    def launch(self) -> ProcessId:
        log4j = f"-Dlog4j2.configurationFile={self.data / 'log4j2.properties'}"
        jvm = (*self.heap, *JVM, *(JVM_BRIEF if self.brief else ()))
        # What is printed before (or beside) the log file's own lines goes to the same file
        return processes.start(
            [self._java(), *jvm, log4j, "-cp", self._classpath(), "kafka.Kafka", self._properties],
            log=self.log,
            environ={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            cwd=self.data,
        )

    def check(self) -> str | None:
        # Imported here: installing and stopping do without the Python environment
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({**self.client_properties(), "log_level": 0, "socket.timeout.ms": 5000})
        try:
            topics = admin.list_topics(timeout=5).topics.values()
        except KafkaException as error:
            return str(error.args[0].str())
        leaderless = [str(topic.topic) for topic in topics if any(p.leader < 0 for p in topic.partitions.values())]
        return f"no leader yet for {', '.join(leaderless)}" if leaderless else None

    def complete(self) -> None:
        """Create the topics that are missing."""
        from devstack.kafka_topics import create_topics

        prefix = {name: os.environ[name] for name in ("TOLLBOOK_TOPIC_PREFIX",) if os.environ.get(name)}
        create_topics({"TOLLBOOK_KAFKA": self.address(), **prefix})

    def client_properties(self) -> dict[str, str]:
        """What a client of this broker is configured with."""
        return {"bootstrap.servers": self.address()}

    def server_properties(self, log_dirs: Path) -> str:
        """The broker's own configuration."""
        return PROPERTIES.format(
            port=self.settings.ports["kafka"],
            controller_port=self.settings.ports["kafka_controller"],
            data=str(log_dirs).replace("\\", "\\\\"),
        )

    def cluster_id(self) -> str:
        """The id of the cluster that a data folder is made for."""
        return base64.urlsafe_b64encode(b"T" + secrets.token_bytes(15)).decode()[:22]

    @property
    def _properties(self) -> Path:
        return self.data / "server.properties"

    @property
    def _log_dirs(self) -> Path:
        return self.data / "data"

    def _format(self, java: Path) -> None:
        """Give the data folder its cluster id: under another name first, so that a kill leaves no half-made one."""
        unfinished = self.data / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(self._log_dirs, ignore_errors=True)  # without meta.properties it was never in use
        properties = self.data / "format.properties"
        properties.write_text(self.server_properties(unfinished))
        formatted = subprocess.run(
            [java, *JVM_BRIEF, "-cp", self._classpath(), "kafka.tools.StorageTool", "format",
             "-t", self.cluster_id(), "-c", properties],
            capture_output=True, text=True, check=False, cwd=self.data, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if formatted.returncode != 0:
            last = (formatted.stdout + formatted.stderr).strip().splitlines()[-3:]
            raise DevstackError("Kafka's data folder could not be prepared:\n" + "\n".join("  | " + x for x in last))
        os.replace(unfinished, self._log_dirs)

    def _classpath(self) -> str:
        return f"{jars_folder(self.places.cache)}/*"

    def _java(self) -> Path:
        java = find_java()
        if java is None:
            raise DevstackError(
                f"Kafka needs Java {OLDEST} or newer, and none was found. `make up` installs it on Debian;\n"
                "elsewhere put one on PATH or in JAVA_HOME, or set TOLLBOOK_KAFKA to a broker's HOST:PORT."
            )
        if not jars_complete(self.places.cache):
            raise DevstackError(
                f"Kafka's jars are missing in {jars_folder(self.places.cache)}. `make up` fetches them."
            )
        return java
