"""Versions of tenants' adapters, and what names point to: each change a value from a value, and its way back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from serving_adapter.errors import AdapterError
from serving_adapter.events import Label, Name, TenantId
from serving_adapter.isolation.rules import ADAPTER_NAME, CONTENT_TYPES, MOST_SHARE, Adapter, Rules, Target

FORMAT: Final = 1
REMEMBERED: Final = 20
"""Earlier states of a name that `rolled_back` can reach."""


class RegistryRefused(AdapterError):
    """A change that would contradict what is there."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a tenant's adapter. Never changed: another content is another version, with another name."""

    tenant_id: TenantId
    name: Annotated[str, Meta(pattern=ADAPTER_NAME)]
    engine: Name
    base: Name
    revision: Label
    """The day it came, and its number on that day: `2026-11-22.1`."""
    digest: str
    rank: int


class Pointing(msgspec.Struct, frozen=True, kw_only=True):
    """What a name means: versions of an adapter (of a tenant), or models of the engine (no tenant), by share."""

    tenant_id: str
    name: Name
    targets: list[Target]
    before: list[list[Target]] = []
    """What it meant, the latest last."""


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    format: int = FORMAT
    versions: list[Version] = []
    names: list[Pointing] = []

    def pointing(self, tenant_id: str, name: str) -> Pointing | None:
        """What a name means now."""
        found = (pointing for pointing in self.names if (pointing.tenant_id, pointing.name) == (tenant_id, name))
        return next(found, None)


def new_version(registry: Registry, tenant_id: str, name: str, base: str, digest: str, rank: int, day: str) -> Version:
    """A version of today. The engine's name for it holds the tenant and a digest of the content.

    Raises RegistryRefused: the same content is there already, or the name cannot be given.
    """
    if name in CONTENT_TYPES:
        raise RegistryRefused(f"{name!r} is the name of a content type, and would apply to everybody")
    own = [version for version in registry.versions if (version.tenant_id, version.name) == (tenant_id, name)]
    for version in own:
        if version.digest == digest:
            raise RegistryRefused(f"this content is there already, as version {version.revision}")
    number = 1 + max((int(v.revision.rpartition(".")[2]) for v in own if v.revision.startswith(f"{day}.")), default=0)
    whose = hashlib.sha256(tenant_id.encode()).hexdigest()[:12]
    version = Version(
        tenant_id=tenant_id, name=name, engine=f"t_{whose}--{name}--{digest[:12]}", base=base,
        revision=f"{day}.{number}", digest=digest, rank=rank,
    )  # fmt: skip
    try:
        return msgspec.convert(msgspec.to_builtins(version), Version)
    except msgspec.ValidationError as error:
        raise RegistryRefused(str(error)) from None


def registered(registry: Registry, version: Version, percent: int | None, most: int) -> Registry:
    """With a new version. `percent` of the name's requests go to it, the rest as before; None: all of them.

    Raises RegistryRefused where its tenant has `most` already: each that is in use presses others out of the engine.
    """
    has = sum(other.tenant_id == version.tenant_id for other in registry.versions)
    if has >= most:
        raise RegistryRefused(f"{version.tenant_id} has {has} versions of adapters, and may have {most}: remove one")
    registry = replace(registry, versions=[*registry.versions, version])
    now = registry.pointing(version.tenant_id, version.name)
    target = Target(engine=version.engine, revision=version.revision)
    if percent is None or now is None:
        return pointed(registry, version.tenant_id, version.name, [target])
    return pointed(registry, version.tenant_id, version.name, _beside(now.targets, target, percent))


def pointed(registry: Registry, tenant_id: str, name: str, targets: list[Target]) -> Registry:
    """With a name that means something else. Raises RegistryRefused."""
    if tenant_id:
        known = {v.engine for v in registry.versions if (v.tenant_id, v.name) == (tenant_id, name)}
        foreign = [target.engine for target in targets if target.engine not in known]
        if foreign:
            raise RegistryRefused(f"{foreign[0]} is no version of {name!r} of {tenant_id}")
    if not targets:
        raise RegistryRefused("a name must point to something")
    now = registry.pointing(tenant_id, name)
    before = [*now.before, now.targets][-REMEMBERED:] if now is not None else []
    return _with(registry, Pointing(tenant_id=tenant_id, name=name, targets=targets, before=before))


def rolled_back(registry: Registry, tenant_id: str, name: str) -> Registry:
    """With a name that means what it meant before its last change. Raises RegistryRefused."""
    now = registry.pointing(tenant_id, name)
    if now is None or not now.before:
        raise RegistryRefused(f"{name!r} has not pointed to anything else")
    known = {version.engine for version in registry.versions}
    if tenant_id and any(target.engine not in known for target in now.before[-1]):
        raise RegistryRefused(f"what {name!r} pointed to was removed")
    return _with(registry, replace(now, targets=now.before[-1], before=now.before[:-1]))


def removed(registry: Registry, tenant_id: str, name: str, revision: str | None) -> Registry:
    """Without an adapter, or without one version of it that nothing points to. Raises RegistryRefused."""
    gone = [
        version.engine
        for version in registry.versions
        if (version.tenant_id, version.name) == (tenant_id, name) and revision in (None, version.revision)
    ]
    if not gone:
        raise RegistryRefused(f"{tenant_id} has no such version of {name!r}")
    now = registry.pointing(tenant_id, name)
    if revision is not None and now is not None and any(target.engine in gone for target in now.targets):
        raise RegistryRefused(f"{name!r} points to {revision}: point it elsewhere first, or remove all of it")
    names = [p for p in registry.names if revision is not None or (p.tenant_id, p.name) != (tenant_id, name)]
    versions = [version for version in registry.versions if version.engine not in gone]
    return replace(registry, versions=versions, names=names)


def merged(rules: Rules, registry: Registry, path_of: dict[str, str]) -> Rules:
    """The file's rules with what the registry says. `path_of`: where the files of an engine's name lie.

    Raises ValueError for what contradicts the file.
    """
    versions = {version.engine: version for version in registry.versions}
    models, adapters = dict(rules.models), list(rules.adapters)
    served = {target.engine for targets in rules.models.values() for target in targets}
    for pointing in registry.names:
        if pointing.tenant_id:
            adapters += (
                Adapter(
                    tenant_id=pointing.tenant_id, name=pointing.name, engine=target.engine, share=target.share,
                    base=versions[target.engine].base, revision=target.revision, path=path_of[target.engine],
                )
                for target in pointing.targets
            )  # fmt: skip
        elif unknown := [target.engine for target in pointing.targets if target.engine not in served]:
            raise ValueError(f"{pointing.name!r} points to {unknown[0]!r}, which this replica's file does not know")
        else:
            models[pointing.name] = pointing.targets
    for adapter in adapters:
        if adapter.path is not None and adapter.base not in served:
            raise ValueError(f"{adapter.engine}: this replica does not serve its base {adapter.base!r}")
    return replace(rules, models=models, adapters=adapters)


def _with(registry: Registry, pointing: Pointing) -> Registry:
    others = [p for p in registry.names if (p.tenant_id, p.name) != (pointing.tenant_id, pointing.name)]
    return replace(registry, names=[*others, pointing])


def _beside(targets: Iterable[Target], new: Target, percent: int) -> list[Target]:
    """The earlier targets keep their proportions within what is left."""
    if not 1 <= percent <= 99:
        raise RegistryRefused("a share is 1 to 99 percent")
    earlier = list(targets)
    whole = sum(target.share for target in earlier)
    shares = [*(target.share * (100 - percent) for target in earlier), percent * whole]
    common = math.gcd(*shares)
    if max(shares) // common > MOST_SHARE:
        raise RegistryRefused("too many shares of shares: point the name anew")
    return [replace(target, share=share // common) for target, share in zip([*earlier, new], shares, strict=True)]
