"""The tensors of a LoRA under other names, and in the shapes that go with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainer.adapters.files import left_out
from trainer.families import Family
from trainer.families.unet.places import LEVEL
from trainer.ground.control import Progress
from trainer.ground.errors import ModelError
from trainer.planning.dialects import Layer, Read
from trainer.results import export, key_names
from trainer.targets import Target
from trainer.tools import low_rank
from trainer.tools.convert import CONV, LINEAR, ConvertArguments
from trainer.tools.lora_files import DOWN, UP, whole_arguments, without_hashes
from trainer.tools.low_rank import Factors
from trainer.tools.tensor_files import TensorFile

_ALPHA = "alpha"
_ADAPTER = "lora_adapter_metadata"
"""diffusers' entry with the configurations of PEFT, by component."""


def converted(
    path: Path,
    metadata: Mapping[str, str],
    seen: Read,
    arguments: ConvertArguments,
    target: Path,
    precision: str,
    progress: Progress,
) -> tuple[int, int]:
    """Write a LoRA's tensors under other keys, and return how many layers it has and its size in bytes.

    Raises:
        ModelError, RunError: it cannot be read or written.
        Stopped: `progress` says so.
    """
    modules: dict[str, dict[int, _Piece]] = {}
    with TensorFile(path) as file:
        for done, each in enumerate(seen.named):
            progress("reading", done, len(seen.named))
            tensor = file.tensor(each.key).float()
            if not torch.isfinite(tensor).all():
                raise ModelError(f"{path.name}: {each.key} has numbers that are not finite.", "Take another file.")
            pieces = modules.setdefault(each.target.name, {})
            pieces.setdefault(each.layer.piece, _Piece(each.layer)).entries[each.entry] = tensor
    tensors: dict[str, Tensor] = {}
    for pieces in modules.values():
        for piece in pieces.values():
            _complete(piece, metadata, seen.family)
        layer, entries = _joined(list(pieces.values()))
        if arguments.projections and layer.path.endswith(("proj_in", "proj_out")):
            _reshape(entries, arguments.projections)
        tensors |= key_names.layer_in(arguments.to, seen.family, seen.family.configs, layer, entries)
    said = {key: value for key, value in without_hashes(metadata).items() if key != _ADAPTER}
    said |= whole_arguments(metadata)
    return len(modules), export.save(target, tensors, said, precision)


@dataclass
class _Piece:
    """What a file has for a layer, or for one of those that are it in others' files; tensors by kohya's entries."""

    layer: Layer
    entries: dict[str, Tensor] = field(default_factory=dict)

    @property
    def factors(self) -> Factors:
        return Factors(self.entries[UP], self.entries[DOWN], float(self.entries[_ALPHA]))


def _complete(piece: _Piece, metadata: Mapping[str, str], family: Family) -> None:
    """Give a LoRA's layer its alpha where the file has none, or one that its own trainer would read wrongly."""
    if _ALPHA in piece.entries:
        alpha = float(piece.entries[_ALPHA])
        piece.entries[_ALPHA] *= left_out(piece.layer.target.name, alpha, metadata)
    if DOWN in piece.entries and _ALPHA not in piece.entries:
        path = family.paths(piece.layer.target)[piece.layer.piece]
        rank = piece.entries[DOWN].shape[0]
        piece.entries[_ALPHA] = torch.tensor(_alpha(metadata, piece.layer.target.component, path, rank))


def _joined(pieces: Sequence[_Piece]) -> tuple[Target, dict[str, Tensor]]:
    """Return a layer and its entries, made of what the file has for its pieces."""
    target = pieces[0].layer.target
    if pieces[0].layer.pieces == 1:
        return target, pieces[0].entries
    whole = low_rank.stacked({piece.layer.piece: piece.factors for piece in pieces}, target.parts)
    return target, {_ALPHA: torch.tensor(whole.alpha), DOWN: whole.down, UP: whole.up}


def _reshape(entries: dict[str, Tensor], wanted: str) -> None:
    """Give the two matrices of a projection the 1x1 kernel of a convolution, or take it."""
    for entry in (DOWN, UP):
        if entry in entries:
            matrix = entries[entry]
            if wanted == LINEAR:
                entries[entry] = matrix.flatten(1)
            elif wanted == CONV and matrix.dim() == 2:
                entries[entry] = matrix[:, :, None, None]


def _alpha(metadata: Mapping[str, str], component: str, path: str, rank: int) -> float:
    """Return a layer's alpha where its file has none: as the configurations of PEFT say, else the rank."""
    try:
        said = json.loads(metadata.get(_ADAPTER, "{}"))
        own = {key.removeprefix(f"{component}."): value for key, value in said.items()}
        pattern = own.get("alpha_pattern") or {}
        alpha = float(pattern.get(path, pattern.get(path.removeprefix(LEVEL), own.get("lora_alpha", rank))))
        return alpha * math.sqrt(rank) if own.get("use_rslora") else alpha
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"The entry {_ADAPTER} of the file cannot be read: {error}.", "Save it again.") from error
