"""What tenants may ask of this replica: models, adapters, tiers, limits. Checked when read, and frozen."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from serving_adapter.events import KeyName, Label, Name, TenantId
from serving_adapter.isolation.refusal import Refusal

ADAPTER_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)"
CONTENT_TYPES: Final = frozenset(
    {"text", "image", "audio", "video", "image_url", "audio_url", "video_url", "input_audio"}
)
"""vLLM applies an adapter of such a name to everybody's requests with content of that type."""


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as the engine knows it, with its revision, and its share of the alias's requests."""

    engine: Name
    revision: Label = ""
    share: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's LoRA adapter: the tenant's name for it, and the engine's, which holds a digest of its content."""

    tenant_id: TenantId
    name: Annotated[str, Meta(pattern=ADAPTER_NAME)]
    engine: Name
    base: Name
    revision: Label = ""


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

    def __post_init__(self) -> None:
        """Raises ValueError for what contradicts itself, or would let one tenant's name reach another's."""
        named = [(adapter.tenant_id, adapter.name) for adapter in self.adapters]
        if len(set(named)) < len(named):
            raise ValueError("adapters: a tenant has the same name twice")
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

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._adapters = {(adapter.tenant_id, adapter.name): adapter for adapter in rules.adapters}
        self._revisions = {target.engine: target.revision for targets in rules.models.values() for target in targets}

    def resolve(self, tenant_id: str, asked: str, request_id: str) -> Resolved:
        """Raises Refusal (404)."""
        adapter = self._adapters.get((tenant_id, asked))
        if adapter is not None:
            revision = self._revisions.get(adapter.base, "")
            return Resolved(asked, adapter.engine, adapter.base, revision, adapter.name, adapter.revision)
        targets = self._rules.models.get(asked)
        if targets is None:
            raise Refusal(404, "model_not_found", f"The model `{asked[:256]}` does not exist.", "model")
        target = targets[0] if len(targets) == 1 else _share(targets, request_id)
        return Resolved(asked, target.engine, target.engine, target.revision, "", "")

    def visible(self, tenant_id: str) -> list[str]:
        """The names that a tenant may ask for."""
        own = [name for tenant, name in self._adapters if tenant == tenant_id]
        return [*self._rules.models, *own]


def salt(key: bytes, tenant_id: str) -> str:
    """The cache salt of a tenant: blocks are shared within it, and with nobody else. 43 characters."""
    return urlsafe_b64encode(hmac.new(key, tenant_id.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()


def _share(targets: list[Target], request_id: str) -> Target:
    """One of several targets by the request's id, each as often as its share says."""
    whole = sum(target.share for target in targets)
    drawn = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") % whole
    for target in targets:
        drawn -= target.share
        if drawn < 0:
            return target
    return targets[-1]
