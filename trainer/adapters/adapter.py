"""The contract of a kind of adapter: settings -> spec -> adapter. Torch-free.

A spec knows before anything is loaded which layers are adapted, with which rank and alpha, under which keys and with
which shapes, and how large the file is; it recognises files of its kind. `AdapterSpec.build` makes the adapter, which
is what is trained. Plan, training, export, metadata, inspection, `network_weights` and resume use nothing else of a
kind than what stands here.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from trainer.adapters.blocks import block_count, block_index, layout_of
from trainer.adapters.coverage import Coverage, adapts
from trainer.adapters.files import ALPHA, AdapterHeader, Module, Shape
from trainer.adapters.rates import Rates, count_problem
from trainer.adapters.trained import Adapter
from trainer.ground.errors import ModelError
from trainer.targets import Target

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainer.adapters.layer import AdaptedLayer

PRECISIONS = {"fp16": ("F16", 2), "bf16": ("BF16", 2), "float": ("F32", 4)}
"""`save_precision` -> its name in a safetensors header and its bytes per number."""

DEFAULT_CONV_ALPHA = 1.0
"""sd-scripts' value where `conv_alpha` is left out."""

_SQUARE = (3, 3)

_LEARNING = (
    "rank_dropout", "module_dropout", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
    "block_lr_zero_threshold",
)  # fmt: skip
_COURSES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
"""Settings about how it is trained that sd-scripts packs into `network_args`: numbers, and texts."""

ALPHA_TOLERANCE = 0.01
"""Relative; a file may hold its alpha as bf16, which has three significant digits."""


class NetworkSettings(Protocol):
    """What every kind reads of the `[network]` settings; its own options it takes by the names of its fields."""

    @property
    def network_type(self) -> str: ...
    @property
    def network_weights(self) -> str: ...
    @property
    def dim_from_weights(self) -> bool: ...


@dataclass(frozen=True)
class AdapterSpec(Rates, ABC):
    """The layers, ranks, alphas and options of an adapter, and the parts of the model that it is trained on, None: all.

    3x3 convolutions take `conv_dim` and `conv_alpha`, every other layer `network_dim` and `network_alpha`; an alpha
    of 0 means the rank, as in sd-scripts. With `rs_lora` alpha counts times the root of the rank (rsLoRA, Kalajdzievski
    2023), and that is what the file says, so that it is read right everywhere. Where `given` names modules (from a
    file, `dim_from_weights`), exactly those are adapted, each with its own rank, alpha and shapes; else those of
    `coverage`, which is read from `lycoris_preset_file`, or of `lycoris_preset`, or without one those that sd-scripts'
    `networks.lora` adapts. `group_dims` are ranks by the kind of layer (`Target.group`), `trained_blocks` says of which
    kinds of blocks only some are adapted; `packed` is what of that stands in sd-scripts' `network_args`.
    """

    name: ClassVar[str]
    """The value of `network_type`."""
    title: ClassVar[str]
    """What a person calls it, as it follows "is": "a LoHa"."""
    network_module: ClassVar[str] = "lycoris.kohya"
    """sd-scripts' module for it, which files name."""
    algorithm: ClassVar[str] = ""
    """LyCORIS' name for it."""
    readable: ClassVar[tuple[str, ...]] = ()
    """Other kinds whose files it can go on from."""
    alpha_keys: ClassVar[tuple[str, str]] = ("network_alpha", "conv_alpha")
    """The settings that a file's alpha is compared with, the second for 3x3 convolutions."""
    without: ClassVar[frozenset[str]] = frozenset()
    """Settings of networks in general that have no effect on this kind."""

    network_dim: int
    network_alpha: float
    conv_dim: int | None = None
    conv_alpha: float | None = None
    rs_lora: bool = False
    lycoris_preset: str = ""
    lycoris_preset_file: str = ""
    coverage: Coverage | None = None
    block_dims: tuple[int, ...] = ()
    block_alphas: tuple[float, ...] = ()
    conv_block_dims: tuple[int, ...] = ()
    conv_block_alphas: tuple[float, ...] = ()
    include_patterns: tuple[str, ...] = ()
    exclude_patterns: tuple[str, ...] = ()
    network_reg_dims: tuple[str, ...] = ()
    network_dropout: float | None = None
    rank_dropout: float | None = None
    module_dropout: float | None = None
    scale_weight_norms: float | None = None
    group_dims: Mapping[str, int] = field(default_factory=dict)
    trained_blocks: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] | None = None
    given: Mapping[str, Module] | None = None

    # --- what a kind says of itself ---

    @abstractmethod
    def entries(self, target: Target) -> dict[str, Shape]:
        """Return the entries that the file has for one module, with their shapes, in creation order."""

    @classmethod
    @abstractmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module with these entries, such as "lora_up.weight", is one of this kind."""

    @classmethod
    @abstractmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return the rank of a module in a file, 0 where it has none.

        Raises ValueError, saying why, if its shapes contradict each other.
        """

    @classmethod
    def title_of(cls, modules: Collection[Collection[str]]) -> str:
        """Return what a file is whose modules have these entries, as it follows "is"."""
        return cls.title

    @classmethod
    def norm_of(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> float:
        """Return how much a module of a file, by entry, does: the Frobenius norm of what it adds to its weight.

        With DoRA's lengths that of what is added before them; where weights are multiplied, of the multiplier's
        difference from 1. Imports torch.
        """
        rank = cls.rank_of({entry: tuple(tensor.shape) for entry, tensor in tensors.items()})
        factors = {entry: tensor.float() for entry, tensor in tensors.items()}
        return cls.layer_kind().norm_of(factors, 0.0 if alpha is None else alpha, rank)

    @classmethod
    def rests_on_weight(cls, entries: Collection[str]) -> bool:
        """Say whether what a module with these entries adds to its weight depends on the weight's numbers."""
        return True

    @classmethod
    def alpha_of(cls, alpha: float, rank: int) -> float | None:
        """Return what a file's alpha, 0 where there is none, means at that rank. None: the kind has no alpha."""
        return alpha or float(rank)

    @classmethod
    @abstractmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return inputs (with the kernel's places) and outputs of a module in a file; 0 where the file doesn't say."""

    @classmethod
    @abstractmethod
    def layer_kind(cls) -> type[AdaptedLayer]:
        """Return the arithmetic of one layer. Imports torch."""

    def build(
        self,
        components: Mapping[str, nn.Module],
        targets: Sequence[Target],
        *,
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> Adapter:
        """Inject this adapter into the loaded `components` and return it, float32 unless said. Imports torch and PEFT.

        Each module's start is a function of the seed and the module's name. Raises ModelError if a target is missing
        from its component or has another shape there.
        """
        import torch

        from trainer.adapters.factored import inject

        return inject(self.layer_kind(), components, targets, self, seed=seed, dtype=dtype or torch.float32)

    @property
    def notices(self) -> tuple[str, ...]:
        """Which programs read the file otherwise than it was trained; to be said before the start."""
        return ()

    def module_for(self, plain: str) -> str:
        """Return sd-scripts' module for this kind on a model whose plain LoRAs have the module `plain`."""
        return self.network_module

    def arguments(self) -> dict[str, str]:
        """Return sd-scripts' `network_args` for these settings; empty where it needs none."""
        found: dict[str, str] = {}
        if self.algorithm:
            covered = "attn-mlp" if self.conv_dim is None else "full"
            own = re.split(r"[\\/]", self.lycoris_preset_file)[-1]  # its name alone: folders are nobody's business
            found = {"preset": own or self.lycoris_preset or covered, "conv_dim": "0"}
        if self.conv_dim is not None:
            alpha = 1 if self.conv_alpha is None else self.conv_alpha
            found |= {"conv_dim": str(self.conv_dim), "conv_alpha": str(alpha)}
        by_block = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
        found |= {key: ",".join(map(str, getattr(self, key))) for key in by_block if getattr(self, key)}
        return found | dict(self.packed)

    # --- what follows from it ---

    @classmethod
    def from_settings(cls, parts: Collection[str], *sections: object) -> Self:
        """Return the adapter that settings ask for: each field is the setting of its name, where a section has it."""
        names = [each.name for each in fields(cls)]
        values = {name: getattr(each, name) for each in sections for name in names if hasattr(each, name)}
        return cls(**{**values, "network_alpha": float(values["network_alpha"]), "parts": tuple(sorted(parts))})

    def with_modules_of(self, header: AdapterHeader) -> Self:
        """Return this adapter with exactly the modules, ranks, alphas and shapes of a file (`dim_from_weights`)."""
        self._check_kind(header)
        return replace(self, given=header.modules)

    @property
    def dynamic(self) -> bool:
        """Whether modules have ranks of their own, from a file."""
        return self.given is not None

    def rank(self, target: Target) -> int:
        """Return the rank r of the matrices on `target`."""
        return self._dim(target) if self.given is None else self.given[self._given_name(target)].rank

    def _dim(self, target: Target) -> int:
        """Return the rank that settings give a layer: by its name, its block, or its kernel; 0 = it is left out."""
        named = self._named_dim(target)
        if named is not None:
            return named
        if target.group in self.group_dims:
            return self.group_dims[target.group]
        square, index = target.kernel == _SQUARE, self._block(target)
        if index is not None and not square:
            return self.block_dims[index]
        if index is not None and self.conv_block_dims:
            return self.conv_block_dims[index]
        return self.conv_dim if square and self.conv_dim is not None else self.network_dim

    def _named_dim(self, target: Target) -> int | None:
        """Return the rank of the first expression that finds a layer's name, None where none does."""
        parted = (each.rpartition("=") for each in self.network_reg_dims)
        return next((int(dim) for pattern, _, dim in parted if re.search(pattern, target.name)), None)

    def _block(self, target: Target) -> int | None:
        """Return a layer's block where blocks have ranks of their own."""
        return block_index(target.name) if self.block_dims else None

    def alpha(self, target: Target) -> float:
        """Return alpha as written to the file; what the matrices add is multiplied by alpha / rank."""
        rank = float(self.rank(target))
        if self.given is not None:
            return self.given[self._given_name(target)].alpha or rank
        square, index = target.kernel == _SQUARE, self._block(target)
        alphas = self.conv_block_alphas if square else self.block_alphas
        plain = self._conv_alpha if square else self.network_alpha
        alpha = (alphas[index] if alphas and index is not None else plain) or rank
        return alpha * math.sqrt(rank) if self.rs_lora else alpha

    @property
    def _conv_alpha(self) -> float:
        return DEFAULT_CONV_ALPHA if self.conv_alpha is None else float(self.conv_alpha)

    def in_file(self, target: Target) -> tuple[int, float]:
        """Return rank and alpha of a layer as a file has them."""
        return self.rank(target), self.alpha(target)

    def scale(self, target: Target) -> float:
        """Return alpha / rank."""
        return self.alpha(target) / (self.rank(target) or 1)

    def select(self, targets: Sequence[Target]) -> tuple[Target, ...]:
        """Return the targets to adapt, in their order. Raises ModelError if none is left."""
        trained = [target for target in targets if self.parts is None or target.component in self.parts]
        if self.given is not None:
            selected = tuple(target for target in trained if self._given_name(target) in self.given)
        else:
            self._check_blocks(targets)
            selected = tuple(target for target in trained if self._wants(target))
        if not selected:
            raise ModelError(
                f"No layer is left to train on {' and '.join(self.parts or ()) or 'nothing'}.",
                "Train the UNet, the text encoder or both, and with dim_from_weights use a LoRA made for this model.",
            )
        return selected

    def _wants(self, target: Target) -> bool:
        """Say whether a layer is adapted where no file names the modules."""
        if any(re.search(pattern, target.name) for pattern in self.include_patterns):
            return bool(self.weight(target))
        if any(re.search(pattern, target.name) for pattern in self.exclude_patterns) or not self._dim(target):
            return False
        if not self.weight(target) or not self._in_trained_block(target):
            return False
        if target.rim and target.group:
            return target.group in self.group_dims
        convolutions = self.conv_dim is not None or bool(self.block_dims and self.conv_block_dims)
        if self.coverage:
            return self.coverage.adapts(target) and (convolutions or target.kernel != _SQUARE)
        if self.lycoris_preset:
            return adapts(self.lycoris_preset, target) and (convolutions or target.kernel != _SQUARE)
        return (convolutions or not target.extra) and not target.rim

    def _in_trained_block(self, target: Target) -> bool:
        kind, number = target.block or ("", 0)
        which = self.trained_blocks.get(kind, "all") if self._named_dim(target) is None else "all"
        if which in ("all", "none"):
            return which == "all"
        ranges = (part.partition("-") for part in which.split(","))
        return any(int(first) <= number <= int(last or first) for first, _, last in ranges)

    def _check_blocks(self, targets: Sequence[Target]) -> None:
        """Raise ModelError unless there is a number for each block of the model."""
        count = block_count(target.name for target in targets)
        if self.by_block and not count:
            raise ModelError(
                "down_lr_weight, mid_lr_weight and up_lr_weight are for the blocks of a UNet, and this model has none.",
                "Leave them out; network_reg_lrs gives layers rates by their names.",
            )
        for key in ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"):
            numbers = getattr(self, key)
            if numbers and len(numbers) != count:
                raise ModelError(
                    f"{key} has {len(numbers)} numbers, and this model has {count or 'no'} blocks.",
                    f"Give {count} numbers, or leave {key} out." if count else f"Leave {key} out.",
                )

    def _given_name(self, target: Target) -> str:
        """Return the name that the file behind `given` has for a target."""
        return target.alias if self.given and target.alias in self.given else target.name

    def shapes(self, targets: Sequence[Target]) -> dict[str, Shape]:
        """Return key -> shape of the file in creation order."""
        return {
            f"{target.name}.{entry}": shape
            for target in self.select(targets)
            for entry, shape in self.entries(target).items()
        }

    def state_shapes(self, targets: Sequence[Target]) -> dict[str, Shape]:
        """Return key -> shape of what `Adapter.state` returns."""
        return self.shapes(targets)

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

    def network_args(self) -> dict[str, str | float | None]:
        """Return `ss_network_args` as sd-scripts writes it: texts, and "dropout"; empty where there are none."""
        arguments: dict[str, str | float | None] = {"algo": self.algorithm} if self.algorithm else {}
        if not self.dynamic:
            arguments |= self.arguments()
        arguments |= {key: f"{value:g}" for key in _LEARNING if (value := getattr(self, key))}
        arguments |= {key: value for key in _COURSES if (value := getattr(self, key))}
        return {**arguments, "dropout": self.network_dropout} if arguments else {}

    def check(self, targets: Sequence[Target], header: AdapterHeader) -> None:
        """Raise ModelError if the file's kind, widths, ranks, alphas or shapes are not this adapter's.

        Modules that only one of the two has are no error: they begin anew, or stay out.
        """
        self._check_kind(header)
        selected = {name: target for target in self.select(targets) for name in (target.name, target.alias)}
        common = [name for name in header.modules if name in selected]
        if not common:
            raise ModelError(
                f"{header.path.name} has no module of this LoRA; its first is {next(iter(header.modules), '(none)')}.",
                "Take a LoRA that was trained for this kind of model, or leave network_weights empty.",
            )
        for name in common:
            self._check_module(name, selected[name], header)

    def _check_kind(self, header: AdapterHeader) -> None:
        if header.kind not in (self.name, *self.readable):
            raise ModelError(
                f"{header.path.name} is {header.title}, and network_type is {self.name}.",
                f'Set network_type = "{header.kind}" to go on training it, or leave network_weights empty.',
            )

    def _check_module(self, name: str, target: Target, header: AdapterHeader) -> None:
        module = header.modules[name]
        theirs = self.width_of(module.entries)
        ours = target.in_features * math.prod(target.kernel or (1,)), target.out_features
        if any(their not in (0, our) for their, our in zip(theirs, ours, strict=True)):
            raise ModelError(
                f"{header.path.name} was trained for another kind of model: {name} goes from {theirs[0]} to "
                f"{theirs[1]} features there, and from {ours[0]} to {ours[1]} in this model.",
                "Choose a LoRA for this kind of model, or leave network_weights empty.",
            )
        keys = ("conv_dim", self.alpha_keys[1]) if target.kernel == _SQUARE else ("network_dim", self.alpha_keys[0])
        pairs = zip(keys, self.in_file(target), (module.rank, module.alpha), strict=True)
        for key, own, its in pairs:
            if module.rank and its is not None and not math.isclose(own, its, rel_tol=ALPHA_TOLERANCE):
                word = "rank" if key.endswith("dim") else "alpha"
                raise ModelError(
                    f"{header.path.name} has {word} {its:g} at {name}, the settings have {own:g} ({key}).",
                    f"Set {key} = {its:g}, or dim_from_weights = true to take ranks and alphas from the file.",
                )
        self._check_entries(name, target, header)

    def _check_entries(self, name: str, target: Target, header: AdapterHeader) -> None:
        entries = {entry: shape for entry, shape in self.entries(target).items() if entry != ALPHA}
        found = header.modules[name].entries
        # What is missing comes first: where there is a core, the other matrices have other shapes too.
        for entry, shape in sorted(found.items(), key=lambda each: each[0] in entries):
            way_out = self.option_for(entry, shape) or "Use the options that the file was trained with"
            if entry not in entries:
                raise ModelError(
                    f"{header.path.name} has {entry} at {name}, which the settings would leave out.",
                    f"{way_out}, or dim_from_weights = true to take the form of each layer from the file.",
                )
            if matrix(entries[entry]) != matrix(shape):
                raise ModelError(
                    f"{header.path.name}: {name}.{entry} is {list(shape)}, the settings make {list(entries[entry])}.",
                    f"{way_out}, or dim_from_weights = true.",
                )

    @classmethod
    def option_for(cls, entry: str, shape: Shape) -> str:
        """Return which settings make a file's entry, as an advice without its end; "" where none is to be named."""
        return ""

    @property
    def copies(self) -> int:
        """How many times the rank that is trained the file has."""
        return 1

    def notices_on(self, targets: Sequence[Target]) -> tuple[str, ...]:
        """Return what is to be said of these settings on a model's layers."""
        layout = next((found for target in targets if (found := layout_of(target.name))), None)
        if layout is None:
            return ()
        counts = (layout.side, layout.middle, layout.side)
        said = (count_problem(key, getattr(self, key), count) for key, count in zip(_COURSES, counts, strict=True))
        return tuple(each for each in said if each)

    def left_out(self, targets: Sequence[Target], header: AdapterHeader) -> tuple[str, ...]:
        """Return a notice where a file to go on from has layers that these settings leave out."""
        selected = {name for target in self.select(targets) for name in (target.name, target.alias)}
        names = [name for name in header.modules if name not in selected]
        if not names:
            return ()
        count = "1 layer" if len(names) == 1 else f"{len(names)} layers"
        return (f"network_weights: {header.path.name} has {count} that these settings leave out, such as {names[0]}.",)


def matrix(shape: Sequence[int]) -> Shape:
    """Return a weight's shape without the 1x1 kernel that a convolution has over a linear layer."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def module_names(targets: Sequence[Target]) -> Iterator[str]:
    """Yield every name that files may have for these targets."""
    for target in targets:
        yield target.name
        if target.alias:
            yield target.alias
