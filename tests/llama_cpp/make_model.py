"""A tiny random Llama as llama.cpp reads it, with the tokenizer of a file: `python make_model.py TOKENIZER MODEL`.

Runs in the engine's own environment (gguf, numpy), and needs no network.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
from gguf import GGUFWriter, TokenType

HIDDEN, INNER, LAYERS, HEADS, CONTEXT = 64, 128, 2, 2, 8192
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main(tokenizer: Path, model: Path) -> None:
    """Writes `model`."""
    about = json.loads(tokenizer.read_text())
    vocabulary = {**about["model"]["vocab"], **{token["content"]: token["id"] for token in about["added_tokens"]}}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in about["added_tokens"]}
    file = GGUFWriter(model, "llama")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(HIDDEN)
    file.add_feed_forward_length(INNER)
    file.add_block_count(LAYERS)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_rope_dimension_count(HIDDEN // HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_vocab_size(len(tokens))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(tokens)
    file.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    file.add_token_merges([" ".join(pair) for pair in about["model"]["merges"]])
    file.add_bos_token_id(vocabulary["<|begin|>"])
    file.add_eos_token_id(vocabulary["<|end|>"])
    file.add_add_bos_token(False)
    file.add_chat_template(TEMPLATE)
    random = numpy.random.default_rng(0)

    def weights(name: str, *shape: int) -> None:
        file.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype="float32") * 0.3)

    weights("token_embd", len(tokens), HIDDEN)
    weights("output", len(tokens), HIDDEN)
    file.add_tensor("output_norm.weight", numpy.ones(HIDDEN, "float32"))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            file.add_tensor(f"blk.{layer}.{name}.weight", numpy.ones(HIDDEN, "float32"))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"blk.{layer}.{name}", HIDDEN, HIDDEN)
        weights(f"blk.{layer}.ffn_gate", INNER, HIDDEN)
        weights(f"blk.{layer}.ffn_up", INNER, HIDDEN)
        weights(f"blk.{layer}.ffn_down", HIDDEN, INNER)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
