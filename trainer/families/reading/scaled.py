"""Weights that ComfyUI stores small, each layer with a scale beside it: weight = stored * scale.

Three marks say so, and each is read: a tensor `scaled_fp8` in the file and `.scale_weight` beside each weight; a tensor
`.comfy_quant` (JSON in bytes) and `.weight_scale` beside it; or the metadata entry `_quantization_metadata`, a table of
layers, with `.weight_scale`. `.scale_input` and `.input_scale` are for arithmetic in 8 bits and mean nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from trainer.ground.errors import ModelError

MARK, ENTRY = "scaled_fp8", "_quantization_metadata"
"""The tensor of older files, behind any prefix, and the metadata entry of newer ones."""
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""Those of which a weight is its numbers times one scale, for all of it or for each row."""

_FORMAT = ".comfy_quant"
_SCALES = (".scale_weight", ".weight_scale")
_OF_INPUTS = (".scale_input", ".input_scale")
_MOST_BYTES = 1 << 16


class Unscaled(Mapping[str, Tensor]):
    """Weights with their scales taken in; what is there for the scaling alone is gone."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        hidden = (_FORMAT, *_SCALES, *_OF_INPUTS)
        names = [name for name in weights if not name.endswith(hidden) and name.rpartition(".")[2] != MARK]
        self._scales = {name: self._scale_of(name.removesuffix(".weight")) for name in names}

    def _scale_of(self, layer: str) -> str:
        return next((layer + kind for kind in _SCALES if layer + kind in self._weights), "")

    def __getitem__(self, name: str) -> Tensor:
        scale, value = self._scales[name], self._weights[name]
        if not scale:
            return value
        factor = self._weights[scale].float()
        return value.float() * (factor if factor.numel() == 1 else factor.view(-1, *(1,) * (value.dim() - 1)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._scales)

    def __len__(self) -> int:
        return len(self._scales)

    def __contains__(self, name: object) -> bool:
        return name in self._scales


def unscaled(weights: Mapping[str, Tensor], metadata: Iterable[Mapping[str, str]] = ()) -> Mapping[str, Tensor]:
    """Return a file's weights as they were before they were scaled; weights without such marks as they are.

    Raises:
        ModelError: they are stored in a format that is more than numbers and a scale.
    """
    marked = any(name.rpartition(".")[2] == MARK or name.endswith((_FORMAT, *_SCALES)) for name in weights)
    if not marked:
        return weights
    said = [_read(weights[name]) for name in weights if name.endswith(_FORMAT)]
    for entries in metadata:
        layers = _table(entries.get(ENTRY, "{}")).get("layers")
        said += [layer for layer in layers.values() if isinstance(layer, dict)] if isinstance(layers, dict) else []
    for layer in said:
        kind = layer.get("format")
        if kind not in FORMATS:
            raise ModelError(
                f"The model is stored as {kind}, which this program does not read.",
                f"Choose a file of the same model in 16 or 32 bits, or in {' or '.join(FORMATS)}.",
            )
    return Unscaled(weights)


def _read(stored: Tensor) -> Mapping[str, object]:
    if stored.dtype != torch.uint8 or stored.numel() > _MOST_BYTES:
        return {}
    return _table(bytes(stored.flatten().tolist()).decode("utf-8", errors="replace"))


def _table(text: str) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
