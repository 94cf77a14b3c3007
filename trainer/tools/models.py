"""A checkpoint as tools take it: recognised, and where each layer's weight lies in it. Headers only, torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.families import FAMILIES, Family, Recognition, recognise
from trainer.families.family import FOLDER, HUB, Place
from trainer.families.reading.headers import SAFETENSORS, container_of
from trainer.families.reading.hub import weight_files
from trainer.ground.errors import ModelError
from trainer.ground.paths import open_regular
from trainer.ground.safetensors_header import Entry, HeaderError, Table, read_table
from trainer.targets import Target

_SCALED = (".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8")
_SCALES_ENTRY = "_quantization_metadata"
_NUMBERS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

_CONVERT = "Choose a .safetensors of the same model, or make one of it."


@dataclass(frozen=True, slots=True)
class Located:
    """A layer's weight: in which file, in which tensor, and which part of it. `entry` is the whole tensor's."""

    path: Path
    place: Place
    entry: Entry


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
            for path, table in tables.items():
                if entry := table.entries.get(place.name):
                    return Located(path, place, entry)
        return None


def read_model(source: str) -> Model:
    """Return a checkpoint's tables.

    Raises:
        ModelError: it is no checkpoint of a family that is known, damaged, in no safetensors file, stored with scales,
            or of a family of which it is not known where weights lie.
    """
    model = _read(source)
    tables = [table for tables in model.tables.values() for table in tables.values()]
    names = (name for table in tables for name in table.entries)
    whole = all(located.entry.dtype in _NUMBERS for located in model.weights.values())
    if not whole or any(name.endswith(_SCALED) for name in names) or any(_SCALES_ENTRY in t.metadata for t in tables):
        raise ModelError(f"{model.name} stores its weights in few bits with scales, which are not changed.", _CONVERT)
    if not model.weights:
        known = "models of Stable Diffusion 1.x, 2.x and XL"
        raise ModelError(f"{model.name} is a {model.family.title} model, and this is for {known}.", _CONVERT)
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
