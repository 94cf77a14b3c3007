"""Give a LoRA a lower rank, or make a LoRA of another kind of adapter."""

from __future__ import annotations

from collections import Counter
from types import ModuleType

from trainer.ground.errors import ConfigError, Problem
from trainer.settings.section import Show, argument
from trainer.tools import lora_files
from trainer.tools.asking import PRECISIONS, check_target
from trainer.tools.on_device import DEVICES, held
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool

METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")


class DynamicArguments(Arguments):
    """How ranks are chosen layer by layer; what extract and resize share."""

    dynamic_method: str = argument("", Show("Dynamic method", place=1), choices=("", *METHODS))
    """Choose each layer's rank by its singular values: sv_ratio, sv_fro or sv_cumulative.

    sv_ratio keeps those above the largest over the parameter; sv_fro and sv_cumulative keep so many that they have the
    parameter's share of the Frobenius norm, or of the sum. One more is kept than that, as in sd-scripts.
    """

    dynamic_param: float | None = argument(None, Show("Dynamic parameter", place=1), gt=0)
    """2 and more for sv_ratio; a share from 0 to 1, such as 0.9, for the others."""


class ResizeArguments(DynamicArguments):
    """Which LoRA, to which rank. Names are those of sd-scripts' networks/resize_lora.py."""

    model: str = argument(..., Show("LoRA", widget="file"))
    """The LoRA to make smaller. One of another kind, such as a LoHa, becomes a plain LoRA."""

    save_to: str = argument(..., Show("Save to", widget="file"))
    """The .safetensors file to write."""

    new_rank: int = argument(..., Show("Rank"), ge=1, le=4096)
    """The rank that layers get; with a dynamic method the highest that any gets."""

    new_conv_rank: int | None = argument(None, Show("Rank of 3x3 convolutions"), ge=1, le=4096)
    """The rank of convolutions with a kernel; left out, that of the others."""

    base_model: str = argument("", Show("Its checkpoint", widget="file"))
    """The checkpoint that it is for; needed where what it adds depends on it: DoRA, (IA)^3, OFT."""

    device: str = argument("auto", Show("Device"), choices=DEVICES)
    """Where singular values are computed: auto takes the GPU where there is one."""

    save_precision: str = argument("fp16", Show("Precision of the file"), choices=PRECISIONS)
    """Number format in the file: fp16, bf16 or float."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Resize(Tool[ResizeArguments]):
    """Keeps the largest singular values of each layer; alpha / rank stays, so the strength does."""

    name = "resize"
    title = "Resize"
    help = "give a LoRA a lower rank, by its singular values"
    arguments = ResizeArguments
    on_page = True

    def run(self, arguments: ResizeArguments, desk: Desk) -> int:
        check_dynamic(arguments)
        (header,) = lora_files.read_loras("model", [arguments.model])
        base = lora_files.read_base("base_model", arguments.base_model, [header])
        sources = [arguments.model, *([arguments.base_model] if base else [])]
        target = check_target(desk, arguments.save_to, sources, arguments.overwrite)
        resizing = self.load()
        with held(arguments.device, f"resizing {header.path.name}", desk) as device:
            written = resizing.resized(header, base, arguments, device, desk.progress())
        metadata = dict(header.metadata)
        if not lora_files.is_plain(header):
            metadata["ss_network_module"] = lora_files.network_module([header])
            metadata.pop("ss_network_args", None)
        comment = _comment(arguments, metadata.get("ss_network_dim", str(max(header.ranks.values(), default=0))))
        size = written.save(target, metadata, comment, arguments.save_precision)
        desk.wrote(target)
        counted = ", ".join(f"{rank} ({count})" for rank, count in sorted(Counter(written.ranks).items()))
        desk.say(f"{target}: {size / 1e6:.1f} MB; ranks and how many layers have them: {counted}")
        return COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import resizing

        return resizing


def check_dynamic(arguments: DynamicArguments) -> None:
    """Raise ConfigError where the method and its parameter don't belong together."""
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
