"""What is taken as an adapter, and what its tenant is told of one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_adapter.adapters.lora_files import AdapterRefused, Bounds, base_shapes, check
from tests.lora_builders import AT, SHAPES, lora, safetensors

LAYER = "model.layers.0.self_attn.q_proj.weight"
BOUNDS = Bounds(["tiny"], rank=16, size_bytes=10_000)


def test_pefts_layout_is_taken_and_its_digest_is_its_contents(tmp_path: Path) -> None:
    first, same = check(lora(tmp_path / "a"), BOUNDS), check(lora(tmp_path / "b"), BOUNDS)
    other = check(lora(tmp_path / "c", fill=1), BOUNDS)
    assert (first.rank, first.digest) == (8, same.digest)
    assert other.digest != first.digest


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"r": 32}, "rank 32 is more than 16"),
        ({"base_model_name_or_path": "llama"}, "made for 'llama', not for tiny"),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 64}}, "rank_pattern"),
        ({"r": "8"}, "Expected `int`"),
        ({"r": 4}, "its rank should be 4"),
        ({"weights": b"PK\x03\x04 a pickle in a zip"}, "not a safetensors file"),
        ({"weights": safetensors(SHAPES, tail=b"more")}, "its header tells of"),
        ({"weights": safetensors(SHAPES, dtype="I8")}, "is I8"),
        ({"weights": safetensors(SHAPES)[:-1]}, "its header tells of"),
        ({"weights": safetensors({f"{AT}.lora_A.weight": [8, 64]})}, "only one half"),
        ({"weights": safetensors({"lm_head.weight": [8, 64]})}, "no part of a LoRA adapter"),
        ({"weights": safetensors({})}, "no tensors"),
        ({"weights": safetensors({f"{AT}.lora_A.weight": [8, 1024]})}, "more than the 10000"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path, about: dict[str, Any], told: str) -> None:
    with pytest.raises(AdapterRefused, match=told):
        check(lora(tmp_path / "a", **about), BOUNDS)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ({LAYER: [64, 64]}, None),
        ({LAYER: [64, 128]}, "lora_A.* takes"),
        ({LAYER: [128, 64]}, "lora_B.* gives"),
        ({"model.layers.1.self_attn.q_proj.weight": [64, 64]}, "has no model.layers.0"),
    ],
)
def test_its_layers_fit_those_of_the_base(tmp_path: Path, base: dict[str, list[int]], told: str | None) -> None:
    whole = safetensors(base)
    head = whole[: 8 + int.from_bytes(whole[:8], "little")]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model-00001-of-00001.safetensors").write_bytes(head)
    shapes = base_shapes(tmp_path / "base")
    if told is None:
        assert check(lora(tmp_path / "a"), BOUNDS, shapes).rank == 8
    else:
        with pytest.raises(AdapterRefused, match=told):
            check(lora(tmp_path / "a"), BOUNDS, shapes)
    with pytest.raises(AdapterRefused, match="no tensors"):
        base_shapes(lora(tmp_path / "empty", weights=safetensors({})) / "adapter_model.safetensors")


def test_what_may_hold_code_is_refused_even_beside_whole_weights(tmp_path: Path) -> None:
    folder = lora(tmp_path / "a")
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin: only safetensors"):
        check(folder, BOUNDS)
    with pytest.raises(AdapterRefused, match="is missing"):
        check(tmp_path / "nowhere", BOUNDS)
    linked = lora(tmp_path / "b")
    (linked / "adapter_config.json").unlink()
    (linked / "adapter_config.json").symlink_to(folder / "adapter_config.json")
    with pytest.raises(AdapterRefused, match="not a plain file"):
        check(linked, BOUNDS)
