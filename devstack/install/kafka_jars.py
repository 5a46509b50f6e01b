"""Kafka as its published jars: fetched by Maven once, checked against the committed list, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from devstack.errors import DevstackError
from devstack.install.tools import ToolLog, run
from devstack.locking import exclusive

VERSION = "4.1.1"
DEFINITION = Path(__file__).resolve().parent.parent / "kafka_jars"


def jars_folder(cache: Path) -> Path:
    """Where the jars are; the name changes with the list, so that a clone with another list has a folder of its own."""
    return cache / f"kafka-{VERSION}-{hashlib.sha256((DEFINITION / 'jars.sha256').read_bytes()).hexdigest()[:12]}"


def expected_jars() -> dict[str, str]:
    """File name → SHA-256, as committed."""
    lines = (DEFINITION / "jars.sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def jars_complete(cache: Path) -> bool:
    """Whether every jar is there with the size it had when its content was checked (a quick look, not a re-check)."""
    folder = jars_folder(cache)
    try:
        sizes = {
            name: int(size) for size, name in (line.split() for line in (folder / "sizes").read_text().splitlines())
        }
        return sizes.keys() == expected_jars().keys() and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError):
        return False


def fetch_jars(cache: Path, log: ToolLog) -> None:
    """Fetch what jars.sha256 names, check each file's content, and only then put the folder in its place."""
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / "kafka.lock"):
        if jars_complete(cache):
            return
        for left in cache.glob("kafka-fetching-*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="kafka-fetching-", dir=cache))
        try:
            fetched = folder / "jars"
            run(
                log,
                # -C: a file whose checksum differs from the repository's ends the run (Maven 3 would only warn)
                ["mvn", "-B", "-q", "-C", "-f", str(DEFINITION / "pom.xml"), "dependency:copy-dependencies",
                 f"-DoutputDirectory={fetched}", "-DincludeScope=runtime"],
                what_to_do="Maven could not fetch Kafka's jars: ~/.m2/settings.xml says from where it does.",
            )  # fmt: skip
            _check(fetched)
            sizes = "".join(f"{(fetched / name).stat().st_size} {name}\n" for name in sorted(expected_jars()))
            (fetched / "sizes").write_text(sizes)
            fetched.chmod(0o755)
            shutil.rmtree(jars_folder(cache), ignore_errors=True)
            os.replace(fetched, jars_folder(cache))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check(folder: Path) -> None:
    for name, digest in expected_jars().items():
        try:
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            raise DevstackError(f"Maven did not fetch {name}, which devstack/kafka_jars/jars.sha256 names.") from None
        if actual != digest:
            raise DevstackError(
                f"{name} is not the file that devstack/kafka_jars/jars.sha256 names (SHA-256 {actual}).\n"
                "The Maven repository of this machine gave another file, or ~/.m2/repository holds a damaged one: "
                "remove it there and run the same command again."
            )
    for extra in {path.name for path in folder.iterdir()} - expected_jars().keys():
        raise DevstackError(f"Maven fetched {extra}, which devstack/kafka_jars/jars.sha256 does not name.")
