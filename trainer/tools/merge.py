"""Make one LoRA of several."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from trainer.adapters import AdapterHeader
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.section import Show, argument
from trainer.tools import lora_files
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool

if TYPE_CHECKING:
    from torch import Tensor

_OF_BASE = ("ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash")
_OF_MODELSPEC = ("sai_model_spec", "architecture", "implementation", "prediction_type", "resolution", "encoder_layer")


class MergeArguments(Arguments):
    """Which LoRAs, and how much of each. Names are those of sd-scripts' networks/merge_lora.py."""

    models: tuple[str, ...] = argument(..., Show("LoRAs", widget="list"))
    """The LoRAs to merge."""

    ratios: tuple[float, ...] = argument((), Show("Ratios", widget="list"), rule="a list of numbers")
    """How much of each, in their order; left out, all of each."""

    save_to: str = argument(..., Show("Save to", widget="file"))
    """The .safetensors file to write."""

    new_rank: int | None = argument(None, Show("Rank"), ge=1, le=4096)
    """The highest rank of a layer, by its singular values; left out, ranks add up and nothing is lost."""

    save_precision: str = argument("fp16", Show("Precision of the file"), choices=lora_files.PRECISIONS)
    """Number format in the file: fp16, bf16 or float."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Merge(Tool[MergeArguments]):
    """The merged LoRA does what all of them do together at their ratios, whatever their ranks and alphas."""

    name = "merge"
    help = "make one LoRA of several, each at its ratio"
    arguments = MergeArguments

    def run(self, arguments: MergeArguments, desk: Desk) -> int:
        ratios = _ratios(arguments)
        headers = [lora_files.plain_lora(model) for model in arguments.models]
        lora_files.check_one_family(headers)
        lora_files.check_shapes(headers)
        target = lora_files.check_target(arguments.save_to, arguments.models, arguments.overwrite)
        export, low_rank = self.load()
        files, progress = [export.read_adapter(header.path) for header in headers], desk.progress()
        names = dict.fromkeys(name for header in headers for name in header.modules)
        tensors: dict[str, Tensor] = {}
        ranks, alphas = [], []
        for done, name in enumerate(names):
            progress("merging", done, len(names))
            parts = [
                (low_rank.factors_of(file, name), ratio)
                for file, ratio in zip(files, ratios, strict=True)
                if name in file.header.modules
            ]
            merged = low_rank.added(parts)
            if arguments.new_rank and merged.rank > arguments.new_rank:
                merged = low_rank.cut(merged, arguments.new_rank)
            tensors |= low_rank.entries(name, merged)
            ranks.append(merged.rank)
            alphas.append(merged.alpha)
        comment = "merged from " + ", ".join(f"{h.path.name} x {r:g}" for h, r in zip(headers, ratios, strict=True))
        said = lora_files.described(_common(headers), ranks, alphas, comment)
        size = export.save(target, tensors, said, arguments.save_precision)
        desk.say(f"{target}: {size / 1e6:.1f} MB, {len(names)} layers, ranks up to {max(ranks)}; {comment}")
        return COMPLETED

    @staticmethod
    def load() -> tuple[ModuleType, ModuleType]:
        """Import what needs torch."""
        from trainer.results import export
        from trainer.tools import low_rank

        return export, low_rank


def _ratios(arguments: MergeArguments) -> tuple[float, ...]:
    if len(arguments.models) < 2:
        raise ConfigError([Problem("models", "names one file; two or more can be merged.")])
    if arguments.ratios and len(arguments.ratios) != len(arguments.models):
        given = f"{len(arguments.ratios)} for {len(arguments.models)} models"
        raise ConfigError([Problem("ratios", f"there are {given}; give one for each.")])
    return arguments.ratios or (1.0,) * len(arguments.models)


def _common(headers: list[AdapterHeader]) -> dict[str, str]:
    """Return what all files say of the model that they are for, and which files they are."""
    keys = [*_OF_BASE, *(f"modelspec.{key}" for key in _OF_MODELSPEC)]
    found = {key: {header.metadata.get(key, "") for header in headers} for key in keys}
    said = {key: next(iter(values)) for key, values in found.items() if len(values) == 1 and "" not in values}
    names = ", ".join(header.path.name for header in headers)
    return {**said, "ss_network_module": "networks.lora", "modelspec.merged_from": names}
