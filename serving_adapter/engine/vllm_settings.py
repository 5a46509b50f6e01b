"""How the engine was started, as far as it opens what the adapter closes, or makes it slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving_adapter.engine.vllm_hooks import EngineUnfit
from serving_adapter.isolation.rules import Rules


class EngineUnsafe(EngineUnfit):
    """An engine that keeps no tenants apart, is several, or answers nobody: counting from its answers mends nothing."""


def check_settings(client: Any, args: Any, rules: Rules, environ: Mapping[str, str]) -> list[str]:
    """What to warn of. `args`: the command line's, as vLLM read it. Raises EngineUnsafe."""
    if getattr(args, "api_key", None) or environ.get("VLLM_API_KEY"):
        raise EngineUnsafe(
            "--api-key (VLLM_API_KEY): who asks is the adapter's to know, and no request would have this key: every one"
            " would be 401. Start vLLM without it"
        )
    if environ.get("VLLM_SKIP_MODEL_NAME_VALIDATION", "0").strip().lower() in ("1", "true"):
        raise EngineUnsafe(
            "VLLM_SKIP_MODEL_NAME_VALIDATION: an adapter that is not loaded would be answered without it"
        )
    told = not_served(served_names(args), rules)
    config = getattr(client, "vllm_config", None)
    _require_one_process(getattr(config, "parallel_config", None))
    if getattr(getattr(config, "kv_events_config", None), "enable_kv_cache_events", False):
        told.append("key-value events carry tenants' salts and tokens: let nobody but the platform read them")
    places = getattr(getattr(config, "lora_config", None), "max_cpu_loras", None)
    adapters = len(rules.adapters)
    if places is not None and places < adapters:
        told.append(f"--max-cpu-loras {places} for {adapters} adapters: each that does not fit is read from disk")
    if isinstance(rules.media, list):
        if not getattr(getattr(config, "model_config", None), "allowed_media_domains", None):
            told.append(f"rules.media names hosts, the engine none: --allowed-media-domains {' '.join(rules.media)}")
        if environ.get("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1").strip() != "0":
            told.append("a host of rules.media may send the engine on to any other: VLLM_MEDIA_URL_ALLOW_REDIRECTS=0")
    return told


def served_names(args: Any) -> list[str]:
    """The names of the engine's one model; none where that is not known."""
    names = getattr(args, "served_model_name", None) or getattr(args, "model", None) or []
    return [names] if isinstance(names, str) else list(names)


def not_served(served: list[str], rules: Rules) -> list[str]:
    """What to say of names that the rules ask of an engine which serves others (`served`: empty where unknown)."""
    asked = {target.engine: name for name, targets in rules.models.items() for target in targets}
    return [
        f"rules.models: {name!r} shares with {engine!r}, which this engine does not serve: it serves"
        f" {', '.join(map(repr, served))}, and its tenants get 404"
        for engine, name in asked.items()
        if served and engine not in served
    ]


def _require_one_process(parallel: Any) -> None:
    """A replica is one server with one engine: one boot, one page of counters, one GPU clock. Raises EngineUnsafe."""
    servers = getattr(parallel, "_api_process_count", 1)
    if servers > 1:
        raise EngineUnsafe(
            f"{servers} API servers at one port: each would be a boot of its own, and /metrics that of any of them."
            " Start vLLM with --api-server-count 1, and more replicas"
        )
    ranks = getattr(parallel, "data_parallel_size", 1)
    if ranks > 1 and not getattr(parallel, "data_parallel_external_lb", False):
        raise EngineUnsafe(
            f"--data-parallel-size {ranks} behind one server: GPU time and counters of several engines would be taken"
            " for those of one. Give each rank a server and a replica of its own (--data-parallel-external-lb)"
        )
