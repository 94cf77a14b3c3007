"""Give a LoRA a lower rank."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import TYPE_CHECKING

from trainer.ground.errors import ConfigError, Problem
from trainer.settings.section import Show, argument
from trainer.tools import lora_files
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool

METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")


if TYPE_CHECKING:
    from torch import Tensor


class ResizeArguments(Arguments):
    """Which LoRA, to which rank. Names are those of sd-scripts' networks/resize_lora.py."""

    model: str = argument(..., Show("LoRA", widget="file"))
    """The LoRA to make smaller."""

    save_to: str = argument(..., Show("Save to", widget="file"))
    """The .safetensors file to write."""

    new_rank: int = argument(..., Show("Rank"), ge=1, le=4096)
    """The rank that layers get; with a dynamic method the highest that any gets."""

    new_conv_rank: int | None = argument(None, Show("Rank of 3x3 convolutions"), ge=1, le=4096)
    """The rank of convolutions with a kernel; left out, that of the others."""

    dynamic_method: str = argument("", Show("Dynamic method"), choices=("", *METHODS))
    """Choose each layer's rank by its singular values: sv_ratio, sv_fro or sv_cumulative.

    sv_ratio keeps those above the largest over the parameter; sv_fro and sv_cumulative keep so many that they have the
    parameter's share of the Frobenius norm, or of the sum.
    """

    dynamic_param: float | None = argument(None, Show("Dynamic parameter"), gt=0)
    """2 and more for sv_ratio; a share from 0 to 1, such as 0.9, for the others."""

    save_precision: str = argument("fp16", Show("Precision of the file"), choices=lora_files.PRECISIONS)
    """Number format in the file: fp16, bf16 or float."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Resize(Tool[ResizeArguments]):
    """Keeps the largest singular values of each layer; alpha / rank stays, so the strength does."""

    name = "resize"
    help = "give a LoRA a lower rank, by its singular values"
    arguments = ResizeArguments

    def run(self, arguments: ResizeArguments, desk: Desk) -> int:
        _check_dynamic(arguments)
        header = lora_files.plain_lora(arguments.model)
        target = lora_files.check_target(arguments.save_to, [arguments.model], arguments.overwrite)
        export, low_rank = self.load()
        file, progress = export.read_adapter(header.path), desk.progress()
        tensors: dict[str, Tensor] = {}
        ranks, alphas = [], []
        for done, name in enumerate(header.modules):
            progress("resizing", done, len(header.modules))
            factors = low_rank.factors_of(file, name)
            is_conv = any(side > 1 for side in factors.down.shape[2:])
            most = arguments.new_conv_rank if is_conv and arguments.new_conv_rank else arguments.new_rank
            smaller = low_rank.cut(factors, most, arguments.dynamic_method, arguments.dynamic_param or 0.0)
            tensors |= low_rank.entries(name, smaller)
            ranks.append(smaller.rank)
            alphas.append(smaller.alpha)
        comment = _comment(arguments, header.metadata.get("ss_network_dim", str(max(header.ranks.values()))))
        said = lora_files.described(header.metadata, ranks, alphas, comment)
        size = export.save(target, tensors, said, arguments.save_precision)
        counted = ", ".join(f"{rank} ({count})" for rank, count in sorted(Counter(ranks).items()))
        desk.say(f"{target}: {size / 1e6:.1f} MB; ranks and how many layers have them: {counted}")
        return COMPLETED

    @staticmethod
    def load() -> tuple[ModuleType, ModuleType]:
        """Import what needs torch."""
        from trainer.results import export
        from trainer.tools import low_rank

        return export, low_rank


def _check_dynamic(arguments: ResizeArguments) -> None:
    method, parameter = arguments.dynamic_method, arguments.dynamic_param
    if bool(method) != (parameter is not None):
        raise ConfigError([Problem("dynamic_param", "goes together with dynamic_method; give both or neither.")])
    if method == "sv_ratio" and parameter is not None and parameter < 2:
        raise ConfigError([Problem("dynamic_param", f"{parameter:g} cannot be used: for sv_ratio it is 2 or more.")])
    if method not in ("", "sv_ratio") and parameter is not None and parameter > 1:
        raise ConfigError([Problem("dynamic_param", f"{parameter:g} cannot be used: for {method} it is at most 1.")])


def _comment(arguments: ResizeArguments, earlier: str) -> str:
    """Return sd-scripts' words for what was done."""
    if arguments.dynamic_method:
        return f"Dynamic resize with {arguments.dynamic_method}: {arguments.dynamic_param} from {earlier}"
    conv = f" and conv to {arguments.new_conv_rank}" if arguments.new_conv_rank else ""
    return f"dimension is resized from {earlier} to {arguments.new_rank}{conv}"
