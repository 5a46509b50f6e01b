"""What tenants may ask of this replica: models, adapters, tiers, limits. Checked when read, and frozen."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from serving_adapter.events import KeyName, Label, Name, TenantId
from serving_adapter.isolation.media import MediaRule
from serving_adapter.isolation.refusal import Refusal

ADAPTER_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)"
MOST_SHARE: Final = 1_000_000
CONTENT_TYPES: Final = frozenset(
    {"text", "image", "audio", "video", "image_url", "audio_url", "video_url", "input_audio"}
)
"""vLLM applies an adapter of such a name to everybody's requests with content of that type."""


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as the engine knows it, with its revision, and its share of the alias's requests."""

    engine: Name
    revision: Label = ""
    share: Annotated[int, Meta(ge=1, le=MOST_SHARE)] = 1


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's LoRA adapter: the tenant's name for it, and the engine's, which holds a digest of its content."""

    tenant_id: TenantId
    name: Annotated[str, Meta(pattern=ADAPTER_NAME)]
    engine: Name
    base: Name
    revision: Label = ""
    share: Annotated[int, Meta(ge=1, le=MOST_SHARE)] = 1
    """Of the requests for this name, where several versions have it."""
    path: str | None = None
    """Where its files lie; the replica loads them. None: the engine was started with it."""


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`priority`: lower is sooner. `may_be_shed`: refused first when the spool's disk fills up."""

    priority: Annotated[int, Meta(ge=-(2**31), le=2**31)] = 0
    may_be_shed: bool = False


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may be."""

    body_bytes: Annotated[int, Meta(ge=1)] = 4 * 1024 * 1024
    prompts: Annotated[int, Meta(ge=1)] = 64
    n: Annotated[int, Meta(ge=1)] = 16
    max_tokens: Annotated[int, Meta(ge=1)] = 1 << 20
    seconds: Annotated[float, Meta(gt=0)] = 900.0
    """After so long a request is ended."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. `models`: what tenants ask for, and what the engine is asked for."""

    models: dict[Name, list[Target]]
    adapters: list[Adapter] = []
    tiers: dict[KeyName, Tier] = {}
    limits: Limits = Limits()
    media: MediaRule = "data"
    """Images, sounds, films and files: `none`, in the request itself, or also from the hosts that are listed."""

    def __post_init__(self) -> None:
        """Raises ValueError for what contradicts itself, or would let one tenant's name reach another's."""
        named = [(adapter.tenant_id, adapter.name, adapter.engine) for adapter in self.adapters]
        if len(set(named)) < len(named):
            raise ValueError("adapters: a tenant has the same name twice")
        owners = {(adapter.engine, adapter.tenant_id) for adapter in self.adapters}
        if len({engine for engine, _ in owners}) < len(owners):
            raise ValueError("adapters: two tenants have the same one")
        for adapter in self.adapters:
            if adapter.name in CONTENT_TYPES or adapter.engine in CONTENT_TYPES:
                raise ValueError(
                    f"adapters: {adapter.name!r} is the name of a content type, and would apply to everybody"
                )
            if adapter.name in self.models:
                raise ValueError(f"adapters: {adapter.name!r} is the name of a model")
        for name, targets in self.models.items():
            if not targets:
                raise ValueError(f"models: {name!r} has no target")


class Resolved(msgspec.Struct, frozen=True):
    """What a tenant's name for a model means for one request."""

    asked: str
    """As the tenant wrote it; answers show this name."""
    engine: str
    """The name that the engine is asked for."""
    model: str
    """The base model, as the engine's own counters call it."""
    model_revision: str
    adapter: str
    adapter_revision: str


class Resolver:
    """From a tenant's name to the engine's. A foreign adapter and one that does not exist have the same answer."""

    def __init__(self, rules: Rules, unready: Mapping[str, str] = MappingProxyType({})) -> None:
        """`unready`: the engine's names of adapters that cannot be served yet, with the reason for their tenant."""
        self._rules = rules
        self._unready = unready
        self._adapters: dict[tuple[str, str], list[Adapter]] = {}
        for adapter in rules.adapters:
            self._adapters.setdefault((adapter.tenant_id, adapter.name), []).append(adapter)
        self._revisions = {target.engine: target.revision for targets in rules.models.values() for target in targets}

    def resolve(self, tenant_id: str, asked: str, request_id: str) -> Resolved:
        """Raises Refusal (404; 503 for an own adapter that is not ready)."""
        versions = self._adapters.get((tenant_id, asked))
        if versions is not None:
            adapter = _share([version for version in versions if version.engine not in self._unready], request_id)
            if adapter is None:
                why = self._unready[versions[0].engine]
                raise Refusal(503, "adapter_not_ready", f"Your adapter `{asked}` is not ready here: {why}", "model")
            return self.of(adapter)
        targets = self._rules.models.get(asked)
        if targets is None:
            raise unknown_model(asked)
        target = _share(targets, request_id)
        assert target is not None  # no name without a target is read
        return Resolved(asked, target.engine, target.engine, target.revision, "", "")

    def of(self, adapter: Adapter) -> Resolved:
        """One version of an adapter, whatever its share."""
        revision = self._revisions.get(adapter.base, "")
        return Resolved(adapter.name, adapter.engine, adapter.base, revision, adapter.name, adapter.revision)

    def visible(self, tenant_id: str) -> list[str]:
        """The names that a tenant may ask for."""
        own = [name for tenant, name in self._adapters if tenant == tenant_id]  # one that is not ready has its reason
        return [*self._rules.models, *own]


def unknown_model(asked: str) -> Refusal:
    """The same for what is another tenant's."""
    return Refusal(404, "model_not_found", f"The model `{asked[:256]}` does not exist.", "model")


def salt(key: bytes, tenant_id: str) -> str:
    """The cache salt of a tenant: blocks are shared within it, and with nobody else. 43 characters."""
    return urlsafe_b64encode(hmac.new(key, tenant_id.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()


Shared = TypeVar("Shared", Target, Adapter)


def _share(among: Sequence[Shared], request_id: str) -> Shared | None:
    """One of several by the request's id, each as often as its share says; None of none."""
    if len(among) < 2:
        return among[0] if among else None
    drawn = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") % sum(each.share for each in among)
    for each in among:
        drawn -= each.share
        if drawn < 0:
            break
    return each
