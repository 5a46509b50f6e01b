"""The fields of a body that tenants may fill: OpenAI's, and what engines usually take for sampling and templates.

Deny by default: engines add fields with each version, and among them are some that name another tenant's adapter,
session or slot (SGLang's `lora_path`, `session_params`, `rid`; llama.cpp's `lora`, `id_slot`; TGI's `adapter_id`).
"""

from __future__ import annotations

from typing import Final

import msgspec

TAKEN_OUT: Final = frozenset(
    {
        "cache_salt", "priority", "request_id", "kv_transfer_params", "ec_transfer_params", "session_id", "vllm_xargs",
        "data_parallel_rank", "store", "return_token_ids", "service_tier", "prompt_cache_key",
        "prompt_cache_retention", "media_io_kwargs",
    }
)  # fmt: skip
"""What crosses tenants, changes the bill, or names a request: the platform's to say, or nobody's."""
REFUSED: Final = (
    "use_beam_search", "background", "previous_response_id", "previous_input_messages", "conversation",
    "prompt_embeds", "mm_processor_kwargs", "structured_outputs_backend",
)  # fmt: skip
"""What cannot be metered or kept apart: refused where it asks for something."""
_OPENAI: Final = frozenset(
    {
        "model", "audio", "best_of", "dimensions", "echo", "encoding_format", "frequency_penalty", "function_call",
        "functions", "include", "instructions", "logit_bias", "logprobs", "max_completion_tokens", "max_output_tokens",
        "max_tokens", "max_tool_calls", "metadata", "modalities", "n", "parallel_tool_calls", "prediction",
        "presence_penalty", "reasoning", "reasoning_effort", "response_format", "safety_identifier", "seed", "stop",
        "stream", "stream_options", "suffix", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p",
        "truncation", "user", "verbosity",
    }
)  # fmt: skip
_ENGINES: Final = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "chat_template",
        "chat_template_kwargs", "continue_final_message", "documents", "embed_dtype", "enable_response_messages",
        "endianness", "ignore_eos", "include_reasoning", "include_stop_str_in_output", "length_penalty",
        "logprob_token_ids", "min_p", "min_tokens", "padding", "prompt_logprobs", "repetition_detection",
        "repetition_penalty", "return_prompt_text", "return_token_offsets", "return_tokens_as_token_ids",
        "routed_experts_prompt_start", "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids",
        "stream_interval", "structured_outputs", "thinking_token_budget", "top_k", "truncate_prompt_tokens",
        "truncation_side", "use_activation", "watermarking",
    }
)  # fmt: skip
"""vLLM 0.32's own, each of which was looked at; others know some of them."""


class KnownFields(msgspec.Struct, frozen=True):
    """Which fields pass, and what happens to others. The field of the route's prompt passes always."""

    names: frozenset[str] = _OPENAI | _ENGINES
    refuse_others: bool = False
    """Else they are taken out: what vLLM does not know it ignores, and so does this."""


VLLM: Final = KnownFields()


def of_engine_behind(further: list[str]) -> KnownFields:
    """Before an engine of another kind, which may obey what is not known here: a 400 says so, as OpenAI's does.

    `further`: what the operator knows it to take. Raises ValueError for what may not pass.
    """
    for name in further:
        if name in TAKEN_OUT or name in REFUSED:
            raise ValueError(f"{name!r} crosses tenants, or cannot be metered: it may not be among them")
    return KnownFields(VLLM.names | frozenset(further), refuse_others=True)
