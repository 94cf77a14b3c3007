"""The tensors of a LoRA under other names, and in the shapes that go with them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.families import Family
from trainer.ground.control import Progress
from trainer.ground.errors import ModelError
from trainer.results import export
from trainer.targets import Target
from trainer.tools import dialects
from trainer.tools.convert import CONV, LINEAR, ConvertArguments
from trainer.tools.dialects import DIFFUSERS, LENGTHS, Read
from trainer.tools.lora_files import DOWN, UP, without_hashes
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
    modules: dict[str, tuple[Target, dict[str, Tensor]]] = {}
    with TensorFile(path) as file:
        for done, each in enumerate(seen.named):
            progress("reading", done, len(seen.named))
            tensor = file.tensor(each.key).float()
            if not torch.isfinite(tensor).all():
                raise ModelError(f"{path.name}: {each.key} has numbers that are not finite.", "Take another file.")
            modules.setdefault(each.target.name, (each.target, {}))[1][each.entry] = tensor
    tensors: dict[str, Tensor] = {}
    for layer, entries in modules.values():
        alpha = entries.get(_ALPHA)
        if DOWN in entries and alpha is None:
            entries[_ALPHA] = torch.tensor(_alpha(metadata, layer, entries[DOWN].shape[0]))
        if arguments.projections and layer.path.endswith(("proj_in", "proj_out")):
            _reshape(entries, arguments.projections)
        tensors |= _said(arguments.to, seen.family, layer, entries)
    said = {key: value for key, value in without_hashes(metadata).items() if key != _ADAPTER}
    return len(modules), export.save(target, tensors, said, precision)


def _said(dialect: str, family: Family, layer: Target, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return one layer in a dialect."""
    if dialect == DIFFUSERS:
        scale = float(entries.pop(_ALPHA)) / entries[DOWN].shape[0]
        entries = {**entries, UP: entries[UP] * scale}
        if LENGTHS in entries:
            entries[LENGTHS] = entries[LENGTHS].flatten()
    elif LENGTHS in entries and entries[LENGTHS].dim() == 1:
        # PEFT has the lengths of the outputs as a row.
        entries[LENGTHS] = entries[LENGTHS].view(-1, *(1,) * (entries[DOWN].dim() - 1))
    ordered = sorted(entries.items(), key=lambda pair: (pair[0] != _ALPHA, pair[0]))
    return {dialects.written(dialect, family, layer, entry): tensor.contiguous() for entry, tensor in ordered}


def _reshape(entries: dict[str, Tensor], wanted: str) -> None:
    """Give the two matrices of a projection the 1x1 kernel of a convolution, or take it."""
    for entry in (DOWN, UP):
        if entry in entries:
            matrix = entries[entry]
            if wanted == LINEAR:
                entries[entry] = matrix.flatten(1)
            elif wanted == CONV and matrix.dim() == 2:
                entries[entry] = matrix[:, :, None, None]


def _alpha(metadata: Mapping[str, str], layer: Target, rank: int) -> float:
    """Return a layer's alpha where its file has none: as the configurations of PEFT say, else the rank."""
    try:
        said = json.loads(metadata.get(_ADAPTER, "{}"))
        own = {key.removeprefix(f"{layer.component}."): value for key, value in said.items()}
        pattern = own.get("alpha_pattern") or {}
        alpha = float(pattern.get(layer.path, own.get("lora_alpha", rank)))
        return alpha * math.sqrt(rank) if own.get("use_rslora") else alpha
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"The entry {_ADAPTER} of the file cannot be read: {error}.", "Save it again.") from error
