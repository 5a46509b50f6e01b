"""Finding a Java that can run Kafka's broker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

OLDEST = 17  # Kafka 4's brokers ask for Java 17 or newer


def find_java() -> Path | None:
    """The `java` to use: JAVA_HOME's, the one on PATH, or any below /usr/lib/jvm that is new enough."""
    for java in _candidates():
        if java.is_file() and os.access(java, os.X_OK) and (_major_version(java) or 0) >= OLDEST:
            return java
    return None


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)
    yield from sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)


def _major_version(java: Path) -> int | None:
    """The version by the `release` file beside the program (at once), or else by asking the program (0.1 s)."""
    release = java.resolve().parent.parent / "release"
    try:
        found = re.search(r'^JAVA_VERSION="(\d+)', release.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        try:
            asked = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(r'version "(\d+)', asked.stderr + asked.stdout)
    return int(found[1]) if found else None
