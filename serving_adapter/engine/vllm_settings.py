"""How the engine was started, as far as it opens what the adapter closes, or makes it slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving_adapter.engine.vllm_hooks import EngineUnfit
from serving_adapter.isolation.rules import Rules


class EngineUnsafe(EngineUnfit):
    """An engine that could be metered, and keeps no tenants apart."""


def check_settings(client: Any, args: Any, rules: Rules, environ: Mapping[str, str]) -> list[str]:
    """What to warn of. `args`: the command line's, as vLLM read it. Raises EngineUnsafe, EngineUnfit."""
    if getattr(args, "api_key", None) or environ.get("VLLM_API_KEY"):
        raise EngineUnfit(
            "--api-key (VLLM_API_KEY): who asks is the adapter's to know, and no request would have this key: every one"
            " would be 401. Start vLLM without it"
        )
    if environ.get("VLLM_SKIP_MODEL_NAME_VALIDATION", "0").strip().lower() in ("1", "true"):
        raise EngineUnsafe(
            "VLLM_SKIP_MODEL_NAME_VALIDATION: an adapter that is not loaded would be answered without it"
        )
    config = getattr(client, "vllm_config", None)
    told = []
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
