"""The registry's folder, which replicas read and the platform's commands write.

`registry.json` is replaced whole; `audit.jsonl` only grows, each line holding the digest of the one before it;
`files/<engine's name>/` are read-only copies; `status/<replica>.json` is what each replica says of itself;
`trials/<engine's name>.json` is who loaded it first, and how that went.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from serving_adapter.adapters.lora_files import TAKEN, AdapterRefused, Bounds, check_listing
from serving_adapter.errors import AdapterError
from serving_adapter.isolation.registry import FORMAT, Registry, Version
from serving_adapter.spool.folders import sync_folder

EMPTY: Final = Registry()
_FIRST: Final = "0" * 64
Kind = TypeVar("Kind")


class RegistryBroken(AdapterError):
    """The folder cannot be read, or its audit log was changed."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter on one replica. `load_ms`: what loading it took.

    `state`: `waiting` (another replica tries it first), `trying`, `serving`, `failed` (tried again each minute), `died`
    (the engine ended of it: not tried again by itself).
    """

    state: str
    why: str = ""
    load_ms: int = 0
    trial: str = ""
    """Of what `died`: which trial that was; after another one, of what was registered anew, it is forgotten."""


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica says of the adapters it should serve, by the engine's names."""

    replica_id: str
    boot_id: str
    at: str
    adapters: dict[str, Served]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The first replica to load an adapter. `state`: `trying`, `serving`, `died`; `number`: how many tried."""

    id: str
    replica_id: str
    boot_id: str
    at: str
    state: str
    number: int = 1


class RegistryFolder:
    """One folder, on a disk that the replicas see too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "registry.json"
        self.audit = root / "audit.jsonl"

    def read(self) -> Registry:
        """The registry; empty where there is none yet. Raises RegistryBroken."""
        try:
            registry = msgspec.json.decode(self.file.read_bytes(), type=Registry)
        except FileNotFoundError:
            return EMPTY
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RegistryBroken(f"{self.file}: {error}") from None
        if registry.format > FORMAT:
            raise RegistryBroken(f"{self.file}: format {registry.format}, this version reads {FORMAT}")
        return registry

    def files_of(self, engine: str) -> Path:
        """Where an adapter's files lie."""
        return self.root / "files" / engine

    def change(self, make: Callable[[Registry], Registry], *, at: str, by: str, action: str, **about: Any) -> Registry:
        """Make a change, and write down who did what. The audit line comes first, and names the file it leads to.

        Raises what `make` raises, RegistryBroken.
        """
        with self.alone():
            registry = make(self.read())
            data = msgspec.json.format(msgspec.json.encode(registry), indent=1)
            line = {"at": at, "by": by, "action": action, **about, "registry": hashlib.sha256(data).hexdigest()}
            self._append(line)
            _replace(self.file, data)
        return registry

    @contextlib.contextmanager
    def copy_of(self, source: Path, bounds: Bounds) -> Iterator[Path]:
        """A copy of an adapter's two files that nobody else writes to, to be checked, and taken or forgotten.

        Raises AdapterRefused.
        """
        check_listing(source, bounds)
        (self.root / "files").mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".", dir=self.root / "files"))
        beside.chmod(0o755)  # replicas are other users
        try:
            left = bounds.size_bytes
            for name in TAKEN:
                left -= _copy(source / name, beside / name, left)
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def take(self, copy: Path, version: Version) -> None:
        """Keep a copy that was checked as a version's files; once."""
        target = self.files_of(version.engine)
        if target.exists():
            return
        sync_folder(copy)
        copy.rename(target)
        sync_folder(target.parent)

    def say(self, status: ReplicaStatus) -> None:
        """A replica's word."""
        folder = self.root / "status"
        folder.mkdir(exist_ok=True)
        _replace(folder / f"{quote(status.replica_id, safe='')}.json", msgspec.json.encode(status))

    def status_of(self, replica_id: str) -> ReplicaStatus | None:
        """What a replica has said last, if that can be read."""
        return _read(self.root / "status" / f"{quote(replica_id, safe='')}.json", ReplicaStatus)

    def trial(self, engine: str) -> Trial | None:
        """Who loaded an adapter first."""
        return _read(self._trial(engine), Trial)

    def begin_trial(self, engine: str, trial: Trial) -> bool:
        """Whether this one is the first: of several at once, one is."""
        path = self._trial(engine)
        path.parent.mkdir(exist_ok=True)
        try:
            file = path.open("xb")  # what every shared file system can do, and links are not
        except FileExistsError:
            return False
        with file:
            file.write(msgspec.json.encode(trial))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        return True

    def end_trial(self, engine: str, trial: Trial | None) -> None:
        """How it went. None: as if nobody had tried."""
        path = self._trial(engine)
        if trial is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            _replace(path, msgspec.json.encode(trial))

    def _trial(self, engine: str) -> Path:
        return self.root / "trials" / f"{quote(engine, safe='')}.json"

    def statuses(self) -> list[ReplicaStatus]:
        """What replicas have said last."""
        found = []
        for path in sorted((self.root / "status").glob("*.json")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=ReplicaStatus))
        return found

    def audited(self) -> list[dict[str, Any]]:
        """All that was done, earliest first. Raises RegistryBroken where a line was changed or taken out."""
        try:
            lines = self.audit.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = []
        previous = _FIRST
        for number, line in enumerate(lines, 1):
            try:
                entry = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RegistryBroken(f"{self.audit}, line {number}: {error}") from None
            if entry.get("previous") != previous:
                raise RegistryBroken(f"{self.audit}, line {number}: what stands before it is not what stood there")
            previous = hashlib.sha256(line).hexdigest()
            found.append(entry)
        return found

    def as_audited(self) -> bool:
        """Whether the registry is what the last change made of it; else one was cut off, or a hand was in it."""
        audited = self.audited()
        if not audited:
            return not self.file.exists()
        return self.file.exists() and hashlib.sha256(self.file.read_bytes()).hexdigest() == audited[-1]["registry"]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other command changes the registry meanwhile."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RegistryBroken(f"{self.root}: {error}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _append(self, entry: dict[str, Any]) -> None:
        self._cut_off_torn_line()
        self.audited()
        lines = self.audit.read_bytes().splitlines() if self.audit.exists() else []
        previous = hashlib.sha256(lines[-1]).hexdigest() if lines else _FIRST
        with self.audit.open("ab") as file:
            file.write(msgspec.json.encode({**entry, "previous": previous}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.root)

    def _cut_off_torn_line(self) -> None:
        """A line that a killed command had begun: what it was to say did not happen."""
        if self.audit.exists():
            data = self.audit.read_bytes()
            if data and not data.endswith(b"\n"):
                os.truncate(self.audit, data.rfind(b"\n") + 1)


def _copy(source: Path, target: Path, most: int) -> int:
    """Copy a plain file of `most` bytes at most, read-only and on disk; how many it had. Raises AdapterRefused."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise AdapterRefused(f"{source.name} cannot be read: {error.strerror}") from None
    with open(fd, "rb") as read, target.open("xb") as written:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise AdapterRefused(f"{source.name} is not a plain file")
        while part := read.read(1 << 20):
            most -= len(part)
            if most < 0:
                raise AdapterRefused(f"{source.name} grew while it was taken")
            written.write(part)
        written.flush()
        os.fsync(written.fileno())
        size = written.tell()
    target.chmod(0o444)
    return size


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all, and on disk."""
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    sync_folder(path.parent)
