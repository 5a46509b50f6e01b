"""The adapter's one file (TOML), which `TOLLBOOK_ADAPTER_CONFIG` names; a few values may come from the environment."""

from __future__ import annotations

import os
import socket
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from serving_adapter.engine.stream_counting import READ_ON_S
from serving_adapter.events import KeyName, Name
from serving_adapter.isolation.fields import KnownFields, of_engine_behind
from serving_adapter.isolation.rules import Rules
from serving_adapter.isolation.token_settings import TokenSettings
from serving_adapter.settings import SettingsError
from serving_adapter.spool.disk_bound import Policy
from serving_adapter.spool.journal import BOUND_BYTES

LEAST_KEY_BYTES: Final = 32
PROBE: Final = "_probe"
"""The id of `probe_key`."""
OVERRIDES: Final = {"TOLLBOOK_REPLICA_ID": "replica_id", "TOLLBOOK_REGION": "region", "TOLLBOOK_POOL": "pool"}


class SpoolSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the spool lies, its bound with all boots, and what happens when it is reached."""

    folder: str
    bound_bytes: Annotated[int, Meta(ge=64 * 1024 * 1024)] = BOUND_BYTES
    policy: Policy = "block"


class QuotaSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Admission by the quota service of `TOLLBOOK_QUOTA_URL`.

    `prompt_bytes_per_token`: what a prompt reserves before it is tokenized, of the bytes of its whole body. 1 is the
    bound that no tokenizer of bytes passes; 3 is near the truth, and lets a hard budget be passed by what it guesses
    too low. `tokens_per_media_part`: the same for each image, sound, film or file: as many as the model makes of the
    largest that it takes. `tokens_per_template`: what the model's chat template adds to a request by itself (a system
    prompt of its own, instructions for tools), beyond the JSON around the messages, which is counted as prompt.
    """

    enabled: bool = False
    prompt_bytes_per_token: Annotated[float, Meta(ge=1)] = 1.0
    tokens_per_media_part: Annotated[int, Meta(ge=0)] = 8192
    tokens_per_template: Annotated[int, Meta(ge=0)] = 0


class ProxySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tollbook-adapter proxy`: the engine's server, and where tenants' gateways find it.

    `continuous_usage`: the engine can state usage in each piece of a stream (vLLM, SGLang), so that what was cut off is
    counted. `engine_fields`: it takes `cache_salt` and `priority`. `states_all`: the usage of an answer is that of all
    its choices and prompts (vLLM, SGLang); llama.cpp states one's. Without it: as `engine_fields`.
    """

    upstream: str
    listen: Annotated[str, Meta(pattern=r"^.+:\d{1,5}$")] = "0.0.0.0:8000"
    continuous_usage: bool = False
    engine_fields: bool = True
    states_all: bool | None = None
    upstream_key: str | None = None
    """A file with the bearer secret that the engine's server wants."""
    tokenizer: str | None = None
    """The model's `tokenizer.json`: what answers state is compared with a count of our own."""
    fields: list[str] = []
    """What tenants may ask of it beside OpenAI's fields and the usual ones (`isolation/fields.py`)."""
    read_on_s: Annotated[float, Meta(ge=0, le=3600)] = READ_ON_S
    """A client has left, and the engine has stated no usage yet: it is read from for so long, until it has."""
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    """After SIGTERM requests in flight have so long."""

    def __post_init__(self) -> None:
        """Raises ValueError for a field that may not pass."""
        assert self.known_fields

    @property
    def counts_several(self) -> bool:
        """Whether a request may have several choices or prompts, and is counted."""
        return self.engine_fields if self.states_all is None else self.states_all

    @property
    def known_fields(self) -> KnownFields:
        """All that tenants may ask of it."""
        return of_engine_behind(self.fields)


class PlacesSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests the engine is given at once, and how long others wait for their turn (docs/quotas.md)."""

    at_once: Annotated[int, Meta(ge=1)]
    wait_s: Annotated[float, Meta(gt=0)] = 5.0


class AdapterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Keys are named by file, so that no secret stands in this one."""

    replica_id: Name
    spool: SpoolSection
    salt_key: str
    rules: Rules
    region: KeyName = ""
    pool: KeyName = ""
    gateway_keys: str | None = None
    """A file of lines `KEY-ID SECRET`; each may sign."""
    tokens: TokenSettings | None = None
    metrics_secret: str | None = None
    """A file with the bearer secret for `/metrics`; without it only this machine may read them."""
    probe_key: str | None = None
    """A file with the secret that `adapter probe` signs with, for `_platform` alone; a key of a gateway without it."""
    ready_after_probe: bool = True
    """`/health` says 503 until `adapter probe` has passed."""
    quota: QuotaSection = QuotaSection()
    places: PlacesSection | None = None
    """Without it the engine's own queue decides, by priority alone."""
    registry: str | None = None
    """The registry's folder: adapters and names that the platform's commands change (`tollbook-adapter register`)."""
    proxy: ProxySection | None = None
    on_unknown_engine: Literal["refuse", "stream"] = "refuse"
    """`stream`: a vLLM without the hook points is counted from its answers."""
    untested_vllm: list[Literal["0.29", "0.33"]] = []
    """Versions that are metered from within though the tests never ran on them."""

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> AdapterSettings:
        """Raises SettingsError, which names the field."""
        path = environ.get("TOLLBOOK_ADAPTER_CONFIG", "")
        if not path:
            raise SettingsError("TOLLBOOK_ADAPTER_CONFIG is not set: it names the adapter's file (docs/adapter.md)")
        try:
            with Path(path).open("rb") as file:
                read: dict[str, Any] = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"TOLLBOOK_ADAPTER_CONFIG: {path}: {error}") from None
        read.setdefault("replica_id", socket.gethostname())
        read |= {field: environ[name] for name, field in OVERRIDES.items() if environ.get(name)}
        try:
            settings = msgspec.convert(read, AdapterSettings)
        except (msgspec.ValidationError, ValueError) as error:
            raise SettingsError(f"TOLLBOOK_ADAPTER_CONFIG: {path}: {error}") from None
        if settings.gateway_keys is None and settings.tokens is None:
            raise SettingsError(f"{path}: neither gateway_keys nor tokens: nobody could be served")
        return settings


def config_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The adapter's file, if one is named."""
    path = environ.get("TOLLBOOK_ADAPTER_CONFIG")
    return Path(path) if path else None


def metrics_secret(environ: Mapping[str, str] = os.environ) -> bytes | None:
    """What opens `/metrics`, where `TOLLBOOK_ADAPTER_CONFIG` names a file with one. Raises SettingsError."""
    if config_path(environ) is None:
        return None
    path = AdapterSettings.from_environment(environ).metrics_secret
    return read_key(path) if path else None


def read_key(path: str) -> bytes:
    """A secret of at least 32 bytes, in a file that only its owner reads. Raises SettingsError."""
    text = _private(path).strip()
    if len(text) < LEAST_KEY_BYTES:
        raise SettingsError(f"{path}: a key has at least {LEAST_KEY_BYTES} bytes")
    return text


def read_gateway_keys(path: str) -> dict[str, bytes]:
    """Keys by their ids. Raises SettingsError."""
    keys = {}
    for number, line in enumerate(_private(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        if len(words) != 2 or len(words[1]) < LEAST_KEY_BYTES or b"." in words[0]:
            raise SettingsError(f"{path}, line {number}: expected KEY-ID SECRET, the secret of at least 32 bytes")
        keys[words[0].decode("ascii", "replace")] = words[1]
    if not keys:
        raise SettingsError(f"{path}: no key in it")
    return keys


def _private(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
                raise SettingsError(f"{path} can be read by everybody: chmod o= {path}")
            return file.read()
    except OSError as error:
        raise SettingsError(f"{path}: {error}") from None
