"""The tensors of a LoRA as other programs' files have them; what their keys are is said in `planning.dialects`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainer.adapters.files import ALPHA
from trainer.families import Family
from trainer.families.family import ComponentConfigs
from trainer.ground.errors import ModelError
from trainer.planning import dialects
from trainer.planning.dialects import COMFYUI, DIFFUSERS, DOWN, KOHYA, LENGTHS, UP
from trainer.targets import Target

Entries = Mapping[str, Tensor]


def renamed(
    tensors: Mapping[str, Tensor],
    dialect: str,
    family: Family,
    configs: ComponentConfigs,
    targets: Iterable[Target],
) -> dict[str, Tensor]:
    """Return the tensors of a LoRA's file, which has kohya's keys, under those of another program."""
    layers = {target.name: target for target in targets}
    entries: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.partition(".")
        entries.setdefault(name, {})[entry] = tensor
    found: dict[str, Tensor] = {}
    for name, own in entries.items():
        found |= layer_in(dialect, family, configs, layers[name], own)
    return found


def layer_in(
    dialect: str, family: Family, configs: ComponentConfigs, layer: Target, entries: Entries
) -> dict[str, Tensor]:
    """Return one layer in a dialect, by key. The alpha of diffusers' and ComfyUI's is in the second matrix.

    A layer whose name ComfyUI's files do not tell keeps kohya's keys, which ComfyUI reads too.

    Raises:
        ModelError: a layer is several of the dialect's, and is not as wide as they are together.
    """
    own = dict(entries)
    there = family.comfyui_name(layer, configs) if dialect == COMFYUI else ""
    if dialect == KOHYA or (dialect == COMFYUI and not there):
        if LENGTHS in own and own[LENGTHS].dim() == 1:
            # PEFT has the lengths of the outputs as a row.
            own[LENGTHS] = own[LENGTHS].view(-1, *(1,) * (own[DOWN].dim() - 1))
        return {f"{layer.name}.{entry}": tensor for entry, tensor in _ordered(own)}
    if dialect == COMFYUI:
        return {dialects.written(dialect, there, entry): tensor for entry, tensor in _ordered(_without_alpha(own))}
    paths, found = family.paths(layer), {}
    several = _parted(layer, own) if len(paths) > 1 else [own]
    for path, each in zip(paths, several, strict=True):
        if dialect == DIFFUSERS:
            each = _without_alpha(each)
            if LENGTHS in each:
                each[LENGTHS] = each[LENGTHS].flatten()
            path = f"{layer.component}.{path}"
        for entry, tensor in _ordered(each):
            found[dialects.written(dialect, path, entry)] = tensor
    return found


def _without_alpha(entries: Entries) -> dict[str, Tensor]:
    own = dict(entries)
    scale = float(own.pop(ALPHA)) / own[DOWN].shape[0]
    own[UP] = own[UP] * scale
    return own


def _parted(layer: Target, entries: Entries) -> list[dict[str, Tensor]]:
    """Return the entries of each piece of a linear layer by its rows, without the columns that are 0 there."""
    found, rows = [], entries[UP].shape[0]
    if rows != sum(layer.parts):
        raise ModelError(
            f"{layer.name} has {rows} rows, where a published model has {sum(layer.parts)}: which of them are which of "
            f"its {len(layer.parts)} layers cannot be told.",
            'Train with save_copy_for = "diffusers", which knows the model.',
        )
    scale = float(entries[ALPHA]) / entries[DOWN].shape[0]
    for up in entries[UP].split(list(layer.parts)):
        used = up.any(0)
        used[0] |= not used.any()
        alpha = torch.tensor(scale * int(used.sum()))
        found.append({ALPHA: alpha, DOWN: entries[DOWN][used], UP: up[:, used]})
    return found


def _ordered(entries: Entries) -> list[tuple[str, Tensor]]:
    ordered = sorted(entries.items(), key=lambda pair: (pair[0] != ALPHA, pair[0]))
    return [(entry, tensor.contiguous()) for entry, tensor in ordered]
