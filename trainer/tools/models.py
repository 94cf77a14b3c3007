"""A checkpoint as tools take it: recognised, and where each layer's weight lies in it. Headers only, torch-free."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.families import FAMILIES, Family, Recognition, recognise
from trainer.families.family import FOLDER, HUB
from trainer.families.reading.headers import SAFETENSORS, container_of
from trainer.families.reading.hub import weight_files
from trainer.ground.errors import ModelError
from trainer.ground.paths import open_regular
from trainer.ground.safetensors_header import Entry, HeaderError, Table, read_table
from trainer.targets import Target

_SCALED = (".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8")
_SCALES_ENTRY = "_quantization_metadata"
_SMALL = ("F8_E4M3", "F8_E5M2")
_NUMBERS = ("F64", "F32", "F16", "BF16", *_SMALL)
WIDTHS = {"fp16": 2, "bf16": 2, "float": 4}
"""Bytes of a number by `save_precision`."""

_CONVERT = "Choose a .safetensors of the same model, or make one of it."


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a checkpoint: in which file, under which name."""

    path: Path
    name: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class Located:
    """A layer's weight: the tensors whose rows it has, and which part of them it is (`family.Place`)."""

    pieces: tuple[Piece, ...]
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Model:
    """A checkpoint's tables. `tables` are by component for a diffusers folder, under "" for a single file."""

    recognition: Recognition
    tables: Mapping[str, Mapping[Path, Table]]

    @property
    def path(self) -> Path:
        """The file or the folder."""
        return Path(self.recognition.source)

    @property
    def name(self) -> str:
        """What to call it."""
        return self.path.name

    @property
    def family(self) -> Family:
        """Its family."""
        return FAMILIES[self.recognition.family]

    @property
    def is_folder(self) -> bool:
        """Whether it is a diffusers folder."""
        return self.recognition.form == FOLDER

    @property
    def bytes(self) -> int:
        """How large its weights are."""
        return sum(entry.end - entry.begin for table in self._all.values() for entry in table.entries.values())

    def bytes_in(self, precision: str) -> int:
        """Return how large they are in a number format of `save_precision`, "" for their own."""
        width = WIDTHS.get(precision, 0)
        entries = [entry for table in self._all.values() for entry in table.entries.values()]
        return sum(width * math.prod(e.shape) if width and e.dtype in _NUMBERS else e.end - e.begin for e in entries)

    @property
    def eight_bits(self) -> bool:
        """Whether layers that a LoRA changes have weights of 8 bits."""
        return any(piece.entry.dtype in _SMALL for located in self.weights.values() for piece in located.pieces)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What a single file says of itself; nothing for a folder."""
        return {} if self.is_folder else next(iter(self._all.values())).metadata

    @property
    def _all(self) -> dict[Path, Table]:
        return {path: table for tables in self.tables.values() for path, table in tables.items()}

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Every layer that an adapter may attach to."""
        return self.family.targets_of(self.recognition, conv=True)

    @cached_property
    def weights(self) -> dict[str, Located]:
        """Where the weight of each of them lies, by kohya's name and by its other name; without those not there."""
        found: dict[str, Located] = {}
        for target in self.targets:
            if located := self._located(target):
                found |= {name: located for name in (target.name, target.alias) if name}
        return found

    @property
    def by_name(self) -> dict[str, Target]:
        """The layers by every name that they have."""
        return {name: target for target in self.targets for name in (target.name, target.alias) if name}

    @property
    def components(self) -> frozenset[str]:
        """The components that have weights here."""
        return frozenset(target.component for target in self.targets if target.name in self.weights)

    def _located(self, target: Target) -> Located | None:
        tables = self.tables.get(target.component if self.is_folder else "", {})
        for place in self.family.places(target, self.recognition.configs):
            found = [_piece(tables, name) for name in place.names]
            pieces = tuple(piece for piece in found if piece is not None)
            if len(pieces) == len(found):
                return Located(pieces, place.part, place.parts)
        return None


def _piece(tables: Mapping[Path, Table], name: str) -> Piece | None:
    found = ((path, table.entries.get(name)) for path, table in tables.items())
    return next((Piece(path, name, entry) for path, entry in found if entry is not None), None)


def read_model(source: str) -> Model:
    """Return a checkpoint's tables.

    Raises:
        ModelError: it is no checkpoint of a family that is known, damaged, in no safetensors file, stored with scales,
            or has no weight that a LoRA changes.
    """
    model = _read(source)
    tables = [table for tables in model.tables.values() for table in tables.values()]
    names = (name for table in tables for name in table.entries)
    whole = all(piece.entry.dtype in _NUMBERS for located in model.weights.values() for piece in located.pieces)
    if not whole or any(name.endswith(_SCALED) for name in names) or any(_SCALES_ENTRY in t.metadata for t in tables):
        raise ModelError(f"{model.name} stores its weights in few bits with scales, which are not changed.", _CONVERT)
    if not model.weights:
        raise ModelError(f"{model.name} holds no weight of {model.family.a_model} that a LoRA changes.", _CONVERT)
    return model


def _read(source: str) -> Model:
    seen = recognise(source)
    if seen.form == HUB:
        raise ModelError(f"There is no file or folder {source}.", "Choose a checkpoint that is on this computer.")
    path = Path(seen.source)
    if not os.path.isdir(path):
        return Model(seen, {"": {path: table_of(path)}})
    parts = {part.name for part in FAMILIES[seen.family].parts}
    found = {part: {file: table_of(file) for file in weight_files(path / part)} for part in sorted(parts)}
    return Model(seen, found)


def table_of(path: Path) -> Table:
    """Return a safetensors file's table.

    Raises:
        ModelError: it is another kind of file, or damaged.
    """
    if container_of(path) != SAFETENSORS:
        raise ModelError(f"{path.name} is a PyTorch pickle, which is not read tensor by tensor.", _CONVERT)
    try:
        with open_regular(path) as file:
            return read_table(file, file.seek(0, 2))
    except HeaderError as error:
        raise ModelError(f"{path.name} is damaged: {error}.", "Copy or download it again.") from error
    except OSError as error:
        raise ModelError(f"{path.name} can't be read: {error.strerror or error}.", "See its permissions.") from error
