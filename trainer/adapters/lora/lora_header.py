"""Read what a LoRA file says about itself, without torch and without its matrices."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer.ground.errors import ModelError
from trainer.ground.safetensors_header import Entry, HeaderError, Table, read_table

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

_NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I8": "<b", "I16": "<h", "I32": "<i", "I64": "<q"}
_LONGEST_NUMBER = 8

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
            table = _table(path, file)
            entries = table.entries
            shapes = {key: entry.shape for key, entry in entries.items()}
            ranks = _ranks(path, shapes)
            alphas = {name: float(rank) for name, rank in ranks.items()}
            for name in ranks:
                entry = entries.get(f"{name}.{ALPHA}")
                if entry is not None:
                    alphas[name] = _number(path, file, table.start, f"{name}.{ALPHA}", entry) or alphas[name]
    except OSError as error:
        raise ModelError(
            f"The LoRA {path} can't be read: {error.strerror or error}.", "Check network_weights."
        ) from error
    return LoraHeader(path, shapes, ranks, alphas, table.metadata)


def _table(path: Path, file: BinaryIO) -> Table:
    """Return the checked table of the file."""
    try:
        return read_table(file, file.seek(0, 2))
    except HeaderError as error:
        raise ModelError(f"{path.name} is no .safetensors file or damaged: {error}.", _WANTED) from error


def _ranks(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the rank of each module. Raises ModelError if the keys or shapes are not those of a kohya LoRA."""
    ranks = {
        key.removesuffix(f".{DOWN}"): shape[0] if len(shape) > 1 else 0
        for key, shape in shapes.items()
        if key.endswith(f".{DOWN}")
    }
    known = {f"{name}.{part}" for name in ranks for part in (DOWN, UP, ALPHA)}
    strangers = [key for key in shapes if key not in known]
    if strangers or not ranks:
        raise ModelError(f"{path.name} is {_what(strangers)}.", _WANTED)
    for name, rank in ranks.items():
        up = shapes.get(f"{name}.{UP}", ())
        if rank < 1 or len(up) < 2 or up[1] != rank:
            raise ModelError(
                f"{path.name} is damaged: {name} has rank {rank} in {DOWN} and {list(up)} in {UP}.", _WANTED
            )
    return ranks


def _what(strangers: Collection[str]) -> str:
    for part, what in _OTHERS:
        if any(part in key for key in strangers):
            return what
    return f"no LoRA with kohya's key names (it has {next(iter(strangers))})" if strangers else "an empty file"


def _number(path: Path, file: BinaryIO, start: int, key: str, entry: Entry) -> float:
    """Return the single number stored under `key`."""
    raw, kind = b"", entry.dtype
    if entry.end - entry.begin <= _LONGEST_NUMBER:
        file.seek(start + entry.begin)
        raw = file.read(entry.end - entry.begin)
    if kind == "BF16":  # bf16 is the upper half of a float32
        raw, kind = b"\0\0" + raw, "F32"
    layout = _NUMBERS.get(kind, "")
    if not layout or len(raw) != struct.calcsize(layout):
        raise ModelError(f"{path.name}: {key} is not one number ({kind} {list(entry.shape)}).", _WANTED)
    value = float(struct.unpack(layout, raw)[0])
    if not math.isfinite(value):
        raise ModelError(f"{path.name}: {key} is {value}.", "The file is damaged; choose another one.")
    return value
