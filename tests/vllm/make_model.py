"""A tiny random Llama with a tokenizer and PEFT adapters, and one that sees: `python make_model.py FOLDER`.

Runs in vLLM's own environment (torch, transformers, safetensors), and needs no network.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]
TEXT = ["count every token once", "tenants are kept apart", "prefix caches know whose blocks they hold"] * 50
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HIDDEN, RANK = 64, 8
SIDE = 28
POSITIONS = 32_768
"""So many that no machine is through them while a test looks away."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def main(folder: Path) -> None:
    """`FOLDER/model`, `FOLDER/adapters/NAME` for two adapters, and `FOLDER/seeing`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[5]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=POSITIONS, bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model", safe_serialization=True)
    for seed, name in enumerate(("tenant_a--fr--1", "tenant_b--law--1"), 1):
        make_adapter(folder / "adapters" / name, seed, folder / "model", config.num_hidden_layers)
    make_seeing(folder / "seeing", fast)


def make_seeing(folder: Path, fast: PreTrainedTokenizerFast) -> None:
    """One that sees, as BLIP-2 does: each image is two tokens. It needs no torchvision."""
    eyes = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(image_processor=eyes, tokenizer=fast, num_query_tokens=2)  # adds its token for images
    text = OPTConfig(
        vocab_size=len(fast), hidden_size=HIDDEN, word_embed_proj_dim=HIDDEN, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=POSITIONS, bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    former = Blip2QFormerConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        encoder_hidden_size=32,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=2,
        image_token_index=fast.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    Blip2ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


def make_adapter(folder: Path, seed: int, base: Path, layers: int) -> None:
    """PEFT's layout, with random weights."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for projection in PROJECTIONS:
            at = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{at}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=random).to(torch.bfloat16)
            weights[f"{at}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=random).to(torch.bfloat16)
    save_file(weights, folder / "adapter_model.safetensors")
    about = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(PROJECTIONS), "base_model_name_or_path": str(base), "modules_to_save": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
