"""What a LoRA looks like before it exists: which layers, which ranks, which keys, how large a file. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.adapters.lora.lora_header import DOWN, UP, LoraHeader, read_header
from trainer.ground.errors import ModelError
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

    from trainer.adapters.lora.adapter import Adapter

PRECISIONS = {"fp16": ("F16", 2), "bf16": ("BF16", 2), "float": ("F32", 4)}
"""`save_precision` -> its name in a safetensors header and its bytes per number."""

DEFAULT_CONV_ALPHA = 1.0
"""sd-scripts' value where `conv_alpha` is left out."""

ALPHA_TOLERANCE = 0.01
"""Relative; a file may hold its alpha as bf16, which has three significant digits."""


class NetworkSettings(Protocol):
    """The `[network]` settings that decide what a LoRA looks like."""

    @property
    def network_type(self) -> str: ...
    @property
    def network_dim(self) -> int: ...
    @property
    def network_alpha(self) -> float: ...
    @property
    def conv_dim(self) -> int | None: ...
    @property
    def conv_alpha(self) -> float | None: ...
    @property
    def network_weights(self) -> str: ...
    @property
    def dim_from_weights(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Ranks and alphas of a LoRA, and the components it is trained on.

    3x3 convolutions take `conv_dim` and `conv_alpha`, every other layer `network_dim` and `network_alpha`; an alpha
    of 0 means the rank, as in sd-scripts. Where `given` names modules (from a file, `dim_from_weights`), exactly
    those are adapted, each with its own (rank, alpha).
    """

    network_dim: int
    network_alpha: float
    conv_dim: int | None = None
    conv_alpha: float | None = None
    components: tuple[str, ...] = ("text_encoder", "unet")
    given: Mapping[str, tuple[int, float]] | None = None

    @classmethod
    def from_settings(cls, network: NetworkSettings, components: Collection[str]) -> LoraSpec:
        """Return the LoRA of the `[network]` settings. Raises ModelError if `network_weights` can't be read."""
        spec = cls(
            network_dim=network.network_dim,
            network_alpha=float(network.network_alpha),
            conv_dim=network.conv_dim,
            conv_alpha=network.conv_alpha,
            components=tuple(sorted(components)),
        )
        if network.network_weights and network.dim_from_weights:
            return spec.with_ranks_of(read_header(Path(network.network_weights)))
        return spec

    def with_ranks_of(self, header: LoraHeader) -> LoraSpec:
        """Return this LoRA with exactly the modules, ranks and alphas of a file (`dim_from_weights`)."""
        return replace(self, given={name: (rank, header.alphas[name]) for name, rank in header.ranks.items()})

    def rank(self, target: Target) -> int:
        """Return the rank r of the two matrices on `target`."""
        if self.given is not None:
            return self.given[self._given_name(target)][0]
        if target.kernel == (3, 3):
            return self.network_dim if self.conv_dim is None else self.conv_dim
        return self.network_dim

    def alpha(self, target: Target) -> float:
        """Return alpha as written to the file; what the matrices add is multiplied by alpha / rank."""
        if self.given is not None:
            alpha = self.given[self._given_name(target)][1]
        elif target.kernel == (3, 3):
            alpha = DEFAULT_CONV_ALPHA if self.conv_alpha is None else float(self.conv_alpha)
        else:
            alpha = self.network_alpha
        return alpha or float(self.rank(target))

    def scale(self, target: Target) -> float:
        """Return alpha / rank."""
        return self.alpha(target) / self.rank(target)

    def select(self, targets: Sequence[Target]) -> tuple[Target, ...]:
        """Return the targets to adapt, in their order. Raises ModelError if none is left."""
        trained = [target for target in targets if target.component in self.components]
        if self.given is not None:
            selected = tuple(target for target in trained if self._given_name(target) in self.given)
        else:
            selected = tuple(target for target in trained if self.conv_dim is not None or not target.extra)
        if not selected:
            raise ModelError(
                f"No layer is left to train on {' and '.join(self.components) or 'nothing'}.",
                "Train the UNet, the text encoder or both, and with dim_from_weights use a LoRA made for this model.",
            )
        return selected

    def _given_name(self, target: Target) -> str:
        """Return the name that the file behind `given` has for a target."""
        return target.alias if self.given and target.alias in self.given else target.name

    def shapes(self, targets: Sequence[Target]) -> dict[str, tuple[int, ...]]:
        """Return key -> shape in creation order: alpha, lora_down.weight, lora_up.weight of each module."""
        shapes: dict[str, tuple[int, ...]] = {}
        for target in self.select(targets):
            shapes |= module_shapes(target, self.rank(target))
        return shapes

    def file_bytes(self, targets: Sequence[Target], save_precision: str) -> int:
        """Return the size of the safetensors file without its metadata texts. `save_precision`: fp16, bf16, float."""
        name, width = PRECISIONS[save_precision]
        header, offset = {}, 0
        for key, shape in self.shapes(targets).items():
            end = offset + math.prod(shape) * width
            header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        length = len(json.dumps(header, separators=(",", ":")))
        return 8 + -(-length // 8) * 8 + offset

    def check(self, targets: Sequence[Target], header: LoraHeader) -> None:
        """Raise ModelError if the file's widths, ranks or alphas are not this LoRA's (`network_weights`).

        Modules that only one of the two has are no error: they begin anew, or stay out.
        """
        selected = {name: target for target in self.select(targets) for name in (target.name, target.alias)}
        common = [name for name in header.ranks if name in selected]
        if not common:
            raise ModelError(
                f"{header.path.name} has no module of this LoRA; its first is {next(iter(header.ranks), '(none)')}.",
                "Take a LoRA that was trained for this kind of model, or leave network_weights empty.",
            )
        for name in common:
            self._check_module(name, selected[name], header)

    def _check_module(self, name: str, target: Target, header: LoraHeader) -> None:
        rank, alpha = self.rank(target), self.alpha(target)
        taken, given = header.shapes[f"{name}.{DOWN}"][1], header.shapes[f"{name}.{UP}"][0]
        if (taken, given) != (target.in_features, target.out_features):
            raise ModelError(
                f"{header.path.name} was trained for another kind of model: {name} goes from {taken} to {given} "
                f"features there, and from {target.in_features} to {target.out_features} in this model.",
                "Choose a LoRA for this kind of model, or leave network_weights empty.",
            )
        keys = ("conv_dim", "conv_alpha") if target.kernel == (3, 3) else ("network_dim", "network_alpha")
        for key, ours, theirs in zip(keys, (rank, alpha), (header.ranks[name], header.alphas[name]), strict=True):
            if not math.isclose(ours, theirs, rel_tol=ALPHA_TOLERANCE):
                word = "rank" if key.endswith("dim") else "alpha"
                raise ModelError(
                    f"{header.path.name} has {word} {theirs:g} at {name}, the settings have {ours:g} ({key}).",
                    f"Set {key} = {theirs:g}, or dim_from_weights = true to take ranks and alphas from the file.",
                )

    def build(
        self,
        components: Mapping[str, torch.nn.Module],
        targets: Sequence[Target],
        *,
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> Adapter:
        """Inject this LoRA into the loaded `components` and return it, float32 unless said. Imports torch and PEFT."""
        import torch

        from trainer.adapters.lora.adapter import Adapter

        return Adapter.inject(components, targets, self, seed=seed, dtype=dtype or torch.float32)


def module_shapes(target: Target, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the three keys that kohya's files have for one module, with their shapes.

    Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, kh, kw], up [out, rank, 1, 1].
    """
    down: tuple[int, ...] = (rank, target.in_features)
    up: tuple[int, ...] = (target.out_features, rank)
    if target.kernel is not None:
        down, up = (*down, *target.kernel), (*up, 1, 1)
    return {
        f"{target.name}.alpha": (),
        f"{target.name}.lora_down.weight": down,
        f"{target.name}.lora_up.weight": up,
    }
