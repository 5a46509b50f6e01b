"""What was chosen once for a set of services and must stay: ports, folders, secrets. Kept below its home."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from devstack.errors import DevstackError


@dataclass(slots=True)
class Settings:
    """`ports` by name (kafka, kafka_controller, postgres, stripe_twin); `postgres_data` where it lies elsewhere."""

    ports: dict[str, int] = field(default_factory=dict)
    postgres_data: str | None = None
    postgres_user: str | None = None  # the operating-system user that owns the data, where it is not the caller


def load(file: Path) -> Settings:
    """The settings in `file`; fresh ones where there is none."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise DevstackError(f"cannot read {file}: {error.strerror}.") from None
    try:
        fields = json.loads(text)
        ports = {str(name): int(port) for name, port in fields["ports"].items()}
        return Settings(ports, fields.get("postgres_data"), fields.get("postgres_user"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DevstackError(
            f"{file} is damaged. Remove it; the services are then given new ports and keep their data."
        ) from None


def save(file: Path, settings: Settings) -> None:
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    os.replace(unfinished, file)


def secret(file: Path, prefix: str = "") -> str:
    """The secret kept in `file`, which only its owner can read; made at first use."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        pass
    file.parent.mkdir(parents=True, exist_ok=True)
    made = prefix + secrets.token_hex(16)
    write_private(file, made + "\n")
    return made


def write_private(file: Path, text: str) -> None:
    """Write `file` whole or not at all, readable by its owner alone."""
    unfinished = file.with_name(file.name + ".unfinished")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    os.replace(unfinished, file)
