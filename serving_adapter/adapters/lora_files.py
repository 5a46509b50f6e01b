"""What a LoRA adapter must be before an engine sees it: PEFT's layout, weights in safetensors alone, base, rank, size.

Nothing is loaded and no code of anybody's runs: the weights' header is JSON, and the rest is numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from serving_adapter.errors import AdapterError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
TAKEN: Final = (CONFIG, WEIGHTS)
"""The files that engines get; whatever else lies beside them stays there."""
RUNS_CODE: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".pyc", ".so", ".joblib"})
MOST_CONFIG_BYTES: Final = 1 << 20
MOST_HEADER_BYTES: Final = 16 << 20
ELEMENT_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
TENSOR: Final = re.compile(r"^base_model\.model\.(?P<at>.+)\.lora_(?P<side>[AB])\.weight$")


Shapes = Mapping[str, list[int]]
"""Of tensors by their names, as PyTorch has them: a layer's weight is outputs by inputs."""


class AdapterRefused(AdapterError):
    """An adapter that is not taken; the text is for the tenant."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an adapter may be. `base_names`: what its configuration may call its base model."""

    base_names: Collection[str]
    rank: int = 64
    size_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter that may be taken: its rank, and a digest of its two files."""

    rank: int
    digest: str
    size_bytes: int


class _Config(msgspec.Struct, frozen=True):
    peft_type: str
    r: Annotated[int, Meta(ge=1)]
    base_model_name_or_path: str
    lora_alpha: float
    bias: str = "none"
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Any] | None = None


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def check(folder: Path, bounds: Bounds, base: Shapes | None = None) -> Checked:
    """`base`: the shapes of its base model's tensors. Raises AdapterRefused, which says what is wrong and where.

    Of a folder that somebody may still write to it says nothing that lasts: check a copy.
    """
    size = check_listing(folder, bounds)
    config = _config(folder / CONFIG, bounds)
    tensors = _tensors(folder / WEIGHTS)
    _check_pairs(tensors, config.r)
    if base is not None:
        _check_shapes(tensors, base)
    return Checked(config.r, digest_of(folder), size)


def check_listing(folder: Path, bounds: Bounds) -> int:
    """Which files there are, and how many bytes the two that are taken have. Raises AdapterRefused."""
    found = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    for name, path in found.items():
        if path.suffix.lower() in RUNS_CODE:
            raise AdapterRefused(f"{name}: only safetensors are taken; this kind of file can hold code")
    for name in TAKEN:
        if name not in found:
            raise AdapterRefused(f"{name} is missing: expected an adapter as PEFT saves it, in {folder}")
        if found[name].is_symlink() or not found[name].is_file():
            raise AdapterRefused(f"{name} is not a plain file")
    size = sum(found[name].stat().st_size for name in TAKEN)
    if size > bounds.size_bytes:
        raise AdapterRefused(f"{size} bytes are more than the {bounds.size_bytes} that are allowed")
    return size


def base_shapes(path: Path) -> Shapes:
    """Of a base model's safetensors file (its header is enough), or of all such files in a folder.

    Raises AdapterRefused.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: dict[str, list[int]] = {}
    for file in files:
        try:
            header, _ = _header(file)
        except OSError as error:
            raise AdapterRefused(f"--base-shapes: {error}") from None
        found |= {name: tensor.shape for name, tensor in header.items()}
    if not found:
        raise AdapterRefused(f"--base-shapes: no tensors in {path}")
    return found


def digest_of(folder: Path) -> str:
    """SHA-256 of the names and contents of the two files."""
    whole = hashlib.sha256()
    for name in TAKEN:
        with (folder / name).open("rb") as file:
            whole.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _config(path: Path, bounds: Bounds) -> _Config:
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise AdapterRefused(f"{CONFIG}: too large")
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AdapterRefused(f"{CONFIG}: {error}") from None
    for refused, why in (
        (config.peft_type.upper() != "LORA", f"peft_type is {config.peft_type}, not LORA"),
        (config.r > bounds.rank, f"rank {config.r} is more than {bounds.rank}"),
        (
            config.base_model_name_or_path not in bounds.base_names,
            f"made for {config.base_model_name_or_path!r}, not for {' or '.join(sorted(bounds.base_names))}",
        ),
        (config.bias != "none", f"bias is {config.bias!r}; only 'none' can be served"),
        (bool(config.modules_to_save), "modules_to_save: whole modules cannot be served per tenant"),
        (config.use_dora, "use_dora cannot be served"),
        (bool(config.rank_pattern or config.alpha_pattern), "rank_pattern and alpha_pattern cannot be served"),
    ):
        if refused:
            raise AdapterRefused(f"{CONFIG}: {why}")
    return config


def _tensors(path: Path) -> dict[str, _Tensor]:
    tensors, length = _header(path)
    _check_layout(tensors, path.stat().st_size - 8 - length)
    return tensors


def _header(path: Path) -> tuple[dict[str, _Tensor], int]:
    """The tensors that a safetensors file tells of, and how long its header is. Raises AdapterRefused."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
            raise AdapterRefused(f"{path.name}: not a safetensors file")
        header = file.read(length)
    try:
        read = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        read.pop("__metadata__", None)
        return {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in read.items()}, length
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AdapterRefused(f"{path.name}: its header: {error}") from None


def _check_layout(tensors: Mapping[str, _Tensor], data_bytes: int) -> None:
    """Tensors follow each other without holes up to the file's end."""
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        if tensor.dtype not in ELEMENT_BYTES:
            raise AdapterRefused(f"{WEIGHTS}: {name} is {tensor.dtype}, not one of {', '.join(ELEMENT_BYTES)}")
        elements = 1
        for extent in tensor.shape:
            elements *= max(extent, 0)
        if tensor.data_offsets != (at, at + elements * ELEMENT_BYTES[tensor.dtype]):
            raise AdapterRefused(f"{WEIGHTS}: {name} does not lie where its shape says")
        at = tensor.data_offsets[1]
    if at != data_bytes:
        raise AdapterRefused(f"{WEIGHTS}: {data_bytes} bytes of data, its header tells of {at}")


def _check_pairs(tensors: Mapping[str, _Tensor], rank: int) -> None:
    """Each A has its B, both of the rank that the configuration says."""
    sides: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        match = TENSOR.match(name)
        if match is None:
            raise AdapterRefused(f"{WEIGHTS}: {name} is no part of a LoRA adapter")
        if len(tensor.shape) != 2 or tensor.shape[0 if match["side"] == "A" else 1] != rank:
            raise AdapterRefused(f"{WEIGHTS}: {name} has the shape {tensor.shape}, its rank should be {rank}")
        sides.setdefault(match["at"], set()).add(match["side"])
    alone = [at for at, found in sides.items() if found != {"A", "B"}]
    if alone or not sides:
        raise AdapterRefused(f"{WEIGHTS}: {alone[0]} has only one half" if alone else f"{WEIGHTS}: no tensors")


def _check_shapes(tensors: Mapping[str, _Tensor], base: Shapes) -> None:
    """Each A takes what its base layer takes, each B gives what that gives: an engine would find out at its cost."""
    for name, tensor in tensors.items():
        match = TENSOR.match(name)
        assert match is not None  # pairs were checked
        layer = base.get(f"{match['at']}.weight")
        if layer is None:
            raise AdapterRefused(f"{WEIGHTS}: the base has no {match['at']}.weight, which {name} is for")
        at_layer, of_layer = (1, "takes") if match["side"] == "A" else (0, "gives")
        if len(layer) != 2 or tensor.shape[at_layer] != layer[at_layer]:
            raise AdapterRefused(f"{WEIGHTS}: {name} is {tensor.shape}, and its base layer {of_layer} {layer}")
