"""LoRA adapters as PEFT saves them, made of zeros, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none",
    "base_model_name_or_path": "tiny", "target_modules": ["q_proj"], "modules_to_save": None,
}  # fmt: skip
AT = "base_model.model.model.layers.0.self_attn.q_proj"
SHAPES = {f"{AT}.lora_A.weight": [8, 64], f"{AT}.lora_B.weight": [64, 8]}


def safetensors(shapes: dict[str, list[int]], dtype: str = "BF16", fill: int = 0, tail: bytes = b"") -> bytes:
    """A file of tensors that hold one byte again and again."""
    header, at = {}, 0
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [at, at + 2 * rows * columns]}
        at += 2 * rows * columns
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + bytes([fill]) * at + tail


def lora(folder: Path, *, fill: int = 0, weights: bytes | None = None, **config: Any) -> Path:
    """A folder with an adapter; `fill` makes its content another one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(SHAPES, fill=fill) if weights is None else weights)
    return folder
