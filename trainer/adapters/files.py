"""The files of adapters: keys, and what a header says without torch and without the matrices.

A key is NAME.ENTRY, where NAME is kohya's name of a layer and ENTRY what the kind has there ("lora_up.weight").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from trainer.ground.errors import ModelError
from trainer.ground.paths import open_regular
from trainer.ground.safetensors_header import Entry, HeaderError, Table, read_table

Shape = tuple[int, ...]

ALPHA = "alpha"

_NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I8": "<b", "I16": "<h", "I32": "<i", "I64": "<q"}
_LONGEST_NUMBER = 8
_SPLIT = {"_img_attn_qkv": 3, "_txt_attn_qkv": 3, "_linear1": 4}
"""What FLUX.1's layers that are several ones end with, and of how many."""

_OF_PEFT = "a LoRA with PEFT's key names (the tool convert gives it kohya's)"
_OF_DIFFUSERS = "a LoRA with diffusers' key names (the tool convert gives it kohya's)"
_OTHERS = (
    ("lora_A", _OF_PEFT),
    ("lora.down", _OF_DIFFUSERS),
    ("lora_linear_layer", _OF_DIFFUSERS),
    ("_lora.", _OF_DIFFUSERS),
    ("model.diffusion_model.", "a checkpoint, not a LoRA"),
    ("first_stage_model.", "a checkpoint or VAE, not a LoRA"),
    ("encoder.down", "a VAE, not a LoRA"),
    ("down_blocks.", "a model, not a LoRA"),
    ("emb_params", "a textual inversion embedding"),
    ("clip_l", "a textual inversion embedding"),
    ("hada_", "a LyCORIS LoHa that this version does not train"),
    ("lokr_", "a LyCORIS LoKr that this version does not train"),
    ("lora_mid", "a LyCORIS LoCon with a third matrix (CP decomposition)"),
    ("dora_scale", "a DoRA"),
    ("oft_", "an OFT that this version does not train"),
    ("a1.weight", "a LyCORIS GLoRA"),
    ("q_layer.", "a T-LoRA"),
    ("lambda_layer", "a T-LoRA"),
    ("bias_", "a LyCORIS file with biases"),
    ("w_norm", "a LyCORIS file with norms"),
    (".diff", "a LyCORIS file of whole differences"),
)
"""Part of a key -> what a file with such a key is, where no kind recognises it. The first that fits is taken."""

_ROTATIONS, _AXES_OF_BOFT = "oft_blocks", 4
"""An OFT has a row of blocks, a BOFT one for each of its stages."""

_WANTED = "Choose a LoRA in kohya's format (.safetensors with NAME.lora_down.weight and NAME.lora_up.weight)."


@dataclass(frozen=True, slots=True)
class Module:
    """One adapted layer as a file has it. `entries` are without the alpha, which is the rank where the file has none.

    Kinds without an alpha have None.
    """

    rank: int
    alpha: float | None
    entries: Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class AdapterHeader:
    """What an adapter's file is and has: its kind by name and in words, its modules by name in the file's order."""

    path: Path
    kind: str
    title: str
    shapes: Mapping[str, Shape]
    modules: Mapping[str, Module]
    metadata: Mapping[str, str]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module that has one."""
        return {name: module.rank for name, module in self.modules.items() if module.rank}

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha of each module that has one."""
        return {name: module.alpha for name, module in self.modules.items() if module.alpha is not None}


class Kind(Protocol):
    """What is asked of a kind of adapter about a file; `AdapterSpec` says what each means."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    def recognises(self, entries: Collection[str]) -> bool: ...
    def title_of(self, modules: Collection[Collection[str]]) -> str: ...
    def rank_of(self, entries: Mapping[str, Shape]) -> int: ...
    def alpha_of(self, alpha: float, rank: int) -> float | None: ...


def read_header_as(path: Path, kinds: Collection[Kind]) -> AdapterHeader:
    """Return the header of an adapter's file of one of `kinds`, the first that recognises all its modules.

    Raises:
        ModelError: saying what the file is otherwise.
    """
    try:
        with open_regular(path) as file:
            table = _table(path, file)
            shapes = {key: entry.shape for key, entry in table.entries.items()}
            kind, modules = _modules(path, shapes, kinds)
            alphas = {name: _alpha(path, file, table, name) for name in modules}
            alphas = {name: alpha * left_out(name, alpha, table.metadata) for name, alpha in alphas.items()}
    except OSError as error:
        raise ModelError(
            f"The LoRA {path} can't be read: {error.strerror or error}.", "Check the path, and that it is a file."
        ) from error
    found = {}
    for name, entries in modules.items():
        rank = _rank(path, name, kind, entries)
        found[name] = Module(rank, kind.alpha_of(alphas[name], rank), entries)
    return AdapterHeader(path, kind.name, kind.title_of(modules.values()), shapes, found, table.metadata)


def left_out(name: str, alpha: float, metadata: Mapping[str, str]) -> int:
    """Return what a module's alpha lacks in files that sd-scripts wrote with `split_qkv`: 1 where it lacks nothing.

    There query, key, value (and the feed-forward of a single block) are trained apart and written as one module of
    three or four times the rank, with the alpha of one: read by the letter it counts a third or a quarter.
    """
    parts = next((count for layer, count in _SPLIT.items() if name.endswith(layer)), 1)
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
        of_one = float(metadata.get("ss_network_alpha", "0"))
    except ValueError:
        return 1
    split = isinstance(arguments, dict) and arguments.get("split_qkv") == "True"
    return parts if split and math.isclose(alpha, of_one, rel_tol=0.01) else 1


def _table(path: Path, file: BinaryIO) -> Table:
    """Return the checked table of the file."""
    try:
        return read_table(file, file.seek(0, 2))
    except HeaderError as error:
        raise ModelError(f"{path.name} is no .safetensors file or damaged: {error}.", _WANTED) from error


def _modules(
    path: Path, shapes: Mapping[str, Shape], kinds: Collection[Kind]
) -> tuple[Kind, dict[str, dict[str, Shape]]]:
    """Return the kind of the file, and the entries of each module without its alpha."""
    modules: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        name, _, entry = key.partition(".")
        module = modules.setdefault(name, {})
        if entry != ALPHA:
            module[entry] = shape
    butterflies = any(len(module.get(_ROTATIONS, ())) == _AXES_OF_BOFT for module in modules.values())
    for kind in kinds:
        if modules and not butterflies and all(kind.recognises(entries) for entries in modules.values()):
            return kind, modules
    raise ModelError(f"{path.name} is {'a LyCORIS BOFT' if butterflies else what_it_is(modules, kinds)}.", _WANTED)


def what_it_is(modules: Mapping[str, Collection[str]], kinds: Collection[Kind]) -> str:
    """Return what a file is whose modules, by name the entries without the alpha, are of no one of these kinds."""
    strangers = [
        f"{name}.{entry}" if entry else name
        for name, entries in modules.items()
        if not any(kind.recognises(entries) for kind in kinds)
        for entry in entries or (ALPHA,)
    ]
    for part, what in _OTHERS:
        if any(part in key for key in strangers):
            return what
    if strangers:
        return f"no LoRA with kohya's key names (it has {strangers[0]})"
    return "a file with modules of several kinds, which no setting makes" if modules else "an empty file"


def _rank(path: Path, name: str, kind: Kind, entries: Mapping[str, Shape]) -> int:
    try:
        return kind.rank_of(entries)
    except ValueError as error:
        raise ModelError(f"{path.name} is damaged: {name} has {error}.", _WANTED) from error


def _alpha(path: Path, file: BinaryIO, table: Table, name: str) -> float:
    """Return a module's alpha, 0 where the file has none."""
    key = f"{name}.{ALPHA}"
    entry = table.entries.get(key)
    return 0.0 if entry is None else _number(path, file, table.start, key, entry)


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
