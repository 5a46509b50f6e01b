"""`tollbook-adapter register|list|remove|share|rollback`: the platform's hand on the registry, and its audit log."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from serving_adapter.adapters.lora_files import AdapterRefused, Bounds, base_shapes, check
from serving_adapter.adapters.registry_folder import RegistryBroken, RegistryFolder
from serving_adapter.clock import rfc3339
from serving_adapter.isolation import registry as names
from serving_adapter.isolation.registry import Registry, RegistryRefused
from serving_adapter.isolation.rules import Target

VERBS: Final = {
    "register": "check a tenant's LoRA adapter, and add it as a dated version",
    "list": "versions, what names point to, and how each replica serves them, as JSON",
    "remove": "take an adapter, or one version of it, from its tenant; replicas unload it",
    "share": "point a name to versions by share (canary): REVISION=SHARE …, or ENGINE@REVISION=SHARE … for a model",
    "rollback": "point a name to what it pointed to before",
}


def add_verbs(verbs: Any) -> None:
    """Their arguments."""
    for verb, told in VERBS.items():
        parser = verbs.add_parser(verb, help=told)
        parser.add_argument(
            "--registry", type=Path, required=not os.environ.get("TOLLBOOK_ADAPTER_REGISTRY"),
            default=os.environ.get("TOLLBOOK_ADAPTER_REGISTRY"),
        )  # fmt: skip
        if verb == "list":
            continue
        parser.add_argument("--as", "--by", dest="by", default=getpass.getuser(), help="who does it, for the audit log")
        parser.add_argument("--tenant", required=verb in ("register", "remove"), default="")
        parser.add_argument("--name", required=True)
        if verb == "register":
            parser.add_argument("folder", type=Path)
            parser.add_argument("--base", required=True, help="the engine's name of the base model")
            parser.add_argument("--base-name", action="append", help="what the adapter may call its base model")
            parser.add_argument(
                "--base-shapes",
                type=Path,
                help="the base's safetensors file, or a folder of them: layers must fit",
            )
            parser.add_argument("--max-rank", type=int, default=64)
            parser.add_argument("--max-bytes", type=int, default=2 << 30)
            parser.add_argument("--max-versions", type=int, default=16, help="that the tenant may have, of all names")
            parser.add_argument("--share", type=int, help="percent of the name's requests; all without it")
        elif verb == "remove":
            parser.add_argument("--revision")
        elif verb == "share":
            parser.add_argument("targets", nargs="+")


def run(given: argparse.Namespace) -> None:
    """Raises AdapterRefused, RegistryRefused, RegistryBroken."""
    folder = RegistryFolder(given.registry)
    if given.verb == "list":
        print(json.dumps(listed(folder), indent=1))
    elif given.verb == "register":
        print(json.dumps(register(folder, given)))
    elif given.verb == "remove":
        before = folder.read()
        _change(folder, given, lambda now: names.removed(now, given.tenant, given.name, given.revision),
                revision=given.revision or "all")  # fmt: skip
        left = {version.engine for version in folder.read().versions}
        for version in before.versions:
            if version.engine not in left:
                _forget_trial(folder, version.engine)
    elif given.verb == "share":
        _change(
            folder, given, lambda now: names.pointed(now, given.tenant, given.name, targets_of(now, given)),
            targets=given.targets,
        )  # fmt: skip
    else:
        _change(folder, given, lambda now: names.rolled_back(now, given.tenant, given.name))


def _forget_trial(folder: RegistryFolder, engine: str) -> None:
    """What is registered anew may be loaded anew. Raises RegistryBroken."""
    try:
        folder.end_trial(engine, None)
    except OSError as error:  # written by replicas, perhaps as another user
        raise RegistryBroken(
            f"it is removed, but {error}: delete that file, or replicas will not load the same content again"
        ) from None


def register(folder: RegistryFolder, given: argparse.Namespace) -> dict[str, Any]:
    """Copy, check the copy, and point to it. A refusal is audited too, whatever its reason: somebody tried."""
    bounds = Bounds(given.base_name or [given.base], given.max_rank, given.max_bytes)
    now = time.time_ns()
    made: list[names.Version] = []
    try:
        base = base_shapes(given.base_shapes) if given.base_shapes else None
        with folder.copy_of(given.folder, bounds) as copy:
            checked = check(copy, bounds, base)

            def add(registry: Registry) -> Registry:
                version = names.new_version(
                    registry, given.tenant, given.name, given.base, checked.digest, checked.rank, rfc3339(now)[:10]
                )
                grown = names.registered(registry, version, given.share, given.max_versions)
                folder.take(copy, version)
                made.append(version)
                return grown

            _change(folder, given, add, digest=checked.digest, share=given.share or 100)
    except (AdapterRefused, RegistryRefused) as error:
        _change(folder, given, lambda registry: registry, action="register refused", why=str(error))
        raise
    (version,) = made
    shapes = "as the base's" if base is not None else "not compared with the base's: give --base-shapes"
    return {
        "engine": version.engine, "revision": version.revision, "rank": version.rank, "digest": version.digest,
        "shapes": shapes,
    }  # fmt: skip


def listed(folder: RegistryFolder) -> dict[str, Any]:
    """What is there, for people. Raises RegistryBroken where the audit log was changed."""
    registry, audited = folder.read(), folder.audited()
    shares = {
        target.engine: target.share / sum(each.share for each in pointing.targets)
        for pointing in registry.names
        for target in pointing.targets
    }
    replicas = {status.replica_id: status.adapters for status in folder.statuses()}
    return {
        "adapters": [
            {
                "tenant_id": version.tenant_id, "name": version.name, "revision": version.revision,
                "base": version.base, "rank": version.rank, "engine": version.engine,
                "share": round(shares.get(version.engine, 0.0), 4),
                "replicas": {
                    replica: {"state": served.state, "why": served.why, "load_ms": served.load_ms}
                    for replica, adapters in replicas.items()
                    if (served := adapters.get(version.engine)) is not None
                },
            }
            for version in registry.versions
        ],
        "models": {
            pointing.name: [f"{t.engine}@{t.revision}={t.share}" for t in pointing.targets]
            for pointing in registry.names
            if not pointing.tenant_id
        },
        "changes": len(audited),
        "last_change": audited[-1] if audited else None,
        "as_audited": folder.as_audited(),
    }  # fmt: skip


def targets_of(registry: Registry, given: argparse.Namespace) -> list[Target]:
    """What the arguments of `share` name. Raises RegistryRefused."""
    own = {v.revision: v.engine for v in registry.versions if (v.tenant_id, v.name) == (given.tenant, given.name)}
    found = []
    for text in given.targets:
        named, _, share = text.rpartition("=")
        engine, _, revision = named.rpartition("@") if not given.tenant else (own.get(named, ""), "", named)
        if not engine or not share.isdigit() or not 1 <= int(share) <= 1_000_000:
            wanted = f"REVISION=SHARE of {sorted(own)}" if given.tenant else "ENGINE@REVISION=SHARE"
            raise RegistryRefused(f"{text!r}: expected {wanted}")
        found.append(Target(engine=engine, revision=revision, share=int(share)))
    return found


def _change(
    folder: RegistryFolder, given: argparse.Namespace, make: Callable[[Registry], Registry], *, action: str = "",
    **about: Any,
) -> None:  # fmt: skip
    folder.change(
        make, at=rfc3339(time.time_ns()), by=given.by, action=action or given.verb, tenant_id=given.tenant,
        name=given.name, **about,
    )  # fmt: skip
