"""Read what a LoRA file says about itself, without torch and without its matrices.

A safetensors file is eight bytes (little-endian length), a JSON header of that length and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer.errors import ModelError

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

_HEADER_LIMIT = 100_000_000
"""safetensors' own limit on the header's length in bytes."""

_NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I8": "<b", "I16": "<h", "I32": "<i", "I64": "<q"}

_OTHERS = (
    ("hada_w1_a", "a LyCORIS LoHa"),
    ("lokr_w", "a LyCORIS LoKr"),
    ("lora_mid", "a LyCORIS LoCon with a third matrix (CP decomposition)"),
    ("dora_scale", "a DoRA"),
    ("oft_", "an OFT"),
    ("lora_A", "a LoRA with PEFT's key names"),
    ("lora.down", "a LoRA with diffusers' key names"),
    ("lora_linear_layer", "a LoRA with diffusers' key names"),
    ("_lora.", "a LoRA with diffusers' key names"),
    ("model.diffusion_model.", "a checkpoint, not a LoRA"),
    ("first_stage_model.", "a checkpoint or VAE, not a LoRA"),
    ("encoder.down", "a VAE, not a LoRA"),
    ("down_blocks.", "a model, not a LoRA"),
    ("emb_params", "a textual inversion embedding"),
    ("clip_l", "a textual inversion embedding"),
)
"""Part of a key -> what a file with such a key is. The first that fits is taken."""

_WANTED = "Choose a LoRA in kohya's format (.safetensors with NAME.lora_down.weight and NAME.lora_up.weight)."


@dataclass(frozen=True, slots=True)
class LoraHeader:
    """Shapes, ranks, alphas and metadata of a LoRA file with kohya's keys.

    `ranks` and `alphas` go by module name, in the file's order. A module without an alpha has its rank for one.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    metadata: Mapping[str, str]


def read_header(path: Path) -> LoraHeader:
    """Return the header of a kohya LoRA. Raises ModelError that says what the file is otherwise."""
    try:
        with path.open("rb") as file:
            entries, start = _entries(path, file)
            metadata = entries.pop("__metadata__", {})
            shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
            ranks = _ranks(path, shapes)
            alphas = {name: float(rank) for name, rank in ranks.items()}
            for name in ranks:
                entry = entries.get(f"{name}.{ALPHA}")
                if entry is not None:
                    alphas[name] = _number(path, file, start, f"{name}.{ALPHA}", entry) or alphas[name]
    except OSError as error:
        raise ModelError(
            f"The LoRA {path} can't be read: {error.strerror or error}.", "Check network_weights."
        ) from error
    return LoraHeader(path, shapes, ranks, alphas, metadata)


def _entries(path: Path, file: BinaryIO) -> tuple[dict, int]:
    """Return the JSON header and the offset of the first tensor's bytes."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    size = file.seek(0, 2)
    if len(prefix) < 8 or length > min(_HEADER_LIMIT, size - 8):
        raise ModelError(f"{path.name} is no .safetensors file, or it was cut short ({size:,} bytes).", _WANTED)
    file.seek(8)
    try:
        entries = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        end = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path.name} is no .safetensors file: its header can't be read.", _WANTED) from error
    if end > size:
        raise ModelError(f"{path.name} was cut short: it has {size:,} of {end:,} bytes.", "Download or copy it again.")
    return entries, 8 + length


def _ranks(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the rank of each module. Raises ModelError if the keys or shapes are not those of a kohya LoRA."""
    ranks = {key.removesuffix(f".{DOWN}"): shape[0] for key, shape in shapes.items() if key.endswith(f".{DOWN}")}
    known = {f"{name}.{part}" for name in ranks for part in (DOWN, UP, ALPHA)}
    strangers = [key for key in shapes if key not in known]
    if strangers or not ranks:
        raise ModelError(f"{path.name} is {_what(strangers)}.", _WANTED)
    for name, rank in ranks.items():
        up = shapes.get(f"{name}.{UP}", ())
        if len(up) < 2 or up[1] != rank:
            raise ModelError(
                f"{path.name} is damaged: {name} has rank {rank} in {DOWN} and {list(up)} in {UP}.", _WANTED
            )
    return ranks


def _what(strangers: Collection[str]) -> str:
    for part, what in _OTHERS:
        if any(part in key for key in strangers):
            return what
    return f"no LoRA with kohya's key names (it has {next(iter(strangers))})" if strangers else "an empty file"


def _number(path: Path, file: BinaryIO, start: int, key: str, entry: Mapping) -> float:
    """Return the single number stored under `key`."""
    begin, end = entry["data_offsets"]
    file.seek(start + begin)
    raw, kind = file.read(end - begin), entry["dtype"]
    if kind == "BF16":  # bf16 is the upper half of a float32
        raw, kind = b"\0\0" + raw, "F32"
    layout = _NUMBERS.get(kind, "")
    if not layout or len(raw) != struct.calcsize(layout):
        raise ModelError(f"{path.name}: {key} is not one number ({kind} {entry['shape']}).", _WANTED)
    value = float(struct.unpack(layout, raw)[0])
    if not math.isfinite(value):
        raise ModelError(f"{path.name}: {key} is {value}.", "The file is damaged; choose another one.")
    return value
