"""What the layers of LoRA files add to the weights of their model: as two matrices where they are, else whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from trainer.adapters import KINDS, AdapterHeader, width_of
from trainer.adapters.changes import adapted
from trainer.ground.errors import ModelError
from trainer.tools.lora_files import DOWN, UP, kernels_of, one_name
from trainer.tools.low_rank import Factors
from trainer.tools.models import Located, Model, Piece
from trainer.tools.tensor_files import TensorFile


class OpenLora:
    """A LoRA's file, opened in an `ExitStack`; its layers are read when they are asked for."""

    def __init__(self, header: AdapterHeader, stack: ExitStack) -> None:
        self.header = header
        self._file = stack.enter_context(TensorFile(header.path))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return a layer's tensors by entry, float32, without the alpha.

        Raises:
            ModelError: they cannot be read, or have numbers that are not finite.
        """
        found = {entry: self._file.tensor(f"{name}.{entry}").float() for entry in self.header.modules[name].entries}
        for entry, tensor in found.items():
            if not torch.isfinite(tensor).all():
                said = f"{self.header.path.name}: {name}.{entry} has numbers that are not finite."
                raise ModelError(said, "The file is of no use; take another.")
        return found

    def factors(self, name: str) -> Factors | None:
        """Return a layer's two matrices, None where it is made of anything else."""
        module = self.header.modules[name]
        if set(module.entries) != {UP, DOWN}:
            return None
        tensors = self.tensors(name)
        alpha = module.rank if module.alpha is None else module.alpha
        return Factors(tensors[UP], tensors[DOWN], float(alpha))

    def put(self, name: str, weight: Tensor, strength: float) -> None:
        """Make a weight, contiguous float32, what a layer makes of it at a strength, in place."""
        factors = self.factors(name)
        if factors is None:
            weight.copy_(self.adapted(name, weight, strength))
        else:
            # One pass over the weight, where most of the time of a merge goes.
            up, down = factors.up.flatten(1), factors.down.flatten(1)
            weight.flatten(1).addmm_(up, down, alpha=factors.scale * strength)

    def adapted(self, name: str, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return what a layer makes of its weight at a strength, float32 in the weight's shape."""
        kind, module = KINDS[self.header.kind], self.header.modules[name]
        return adapted(kind, name, module, self.tensors(name), weight, strength)


class Effects:
    """Several LoRAs, and the model that they are for where one is named."""

    def __init__(self, headers: Sequence[AdapterHeader], model: Model | None, stack: ExitStack) -> None:
        self.loras = [OpenLora(header, stack) for header in headers]
        self.kernels: Mapping[str, tuple[int, ...]] = kernels_of(headers)
        names = one_name(headers)
        self._names = [{names[name]: name for name in header.modules} for header in headers]
        self._model = model
        self._weights = Weights(stack)

    @property
    def names(self) -> list[str]:
        """Every layer that one of the LoRAs has, by its one name, in the order of the files."""
        return list(dict.fromkeys(name for own in self._names for name in own))

    def having(self, name: str) -> list[tuple[int, OpenLora, str]]:
        """Return the LoRAs that have a layer: their place in the list, the file, and its name there."""
        pairs = zip(self.loras, self._names, strict=True)
        return [(place, lora, own[name]) for place, (lora, own) in enumerate(pairs) if name in own]

    def of(self, lora: OpenLora, name: str) -> Factors | Tensor:
        """Return what a LoRA adds to a layer: its factors, or a matrix [out, in * kernel]."""
        return lora.factors(name) or self.matrix(lora, name)

    def matrix(self, lora: OpenLora, name: str) -> Tensor:
        """Return what a LoRA adds to a layer, float32 [out, in * kernel]."""
        if self._model is not None and name in self._model.weights:
            weight = self._weights.of(self._model.weights[name])
            return (lora.adapted(name, weight) - weight).flatten(1)
        inner, outer = width_of(lora.header, name)
        return lora.adapted(name, torch.zeros(outer, inner))


class Weights:
    """The weights of checkpoints, whose files are opened in an `ExitStack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[Path, TensorFile] = {}

    def of(self, located: Located) -> Tensor:
        """Return a layer's weight, float32 [out, in] or [out, in, kh, kw]. Raises ModelError."""
        return part_of(self.whole(located), located)

    def whole(self, located: Located, known: Mapping[Piece, Tensor] = MappingProxyType({})) -> Tensor:
        """Return the tensors that a layer's weight is in, one below the other, float32; a known one is not read."""
        pieces = [known[piece] if piece in known else self._read(piece) for piece in located.pieces]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read(self, piece: Piece) -> Tensor:
        if piece.path not in self._files:
            self._files[piece.path] = self._stack.enter_context(TensorFile(piece.path))
        return self._files[piece.path].tensor(piece.name).float()


def part_of(whole: Tensor, located: Located) -> Tensor:
    """Return the part of a tensor that is a layer's weight; it shares memory with the whole."""
    return whole.chunk(located.parts)[located.part]
