"""Make one LoRA of several, or put them into a checkpoint."""

from __future__ import annotations

from types import ModuleType

from trainer.adapters import AdapterHeader
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.section import Show, argument
from trainer.tools import lora_files
from trainer.tools.asking import PRECISIONS, about, check_room, check_target, refusal
from trainer.tools.models import read_model
from trainer.tools.on_device import DEVICES, held
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool

_EIGHT_BITS = (
    "Note: {name} has weights of 8 bits, and they stay so: what is added to them is rounded, and of small changes much "
    "is lost. save_precision bf16 keeps it, in a file twice as large."
)

AUTO, CONCAT, SVD, SUM = "auto", "concat", "svd", "sum"


class MergeArguments(Arguments):
    """Which LoRAs, and how much of each. Names are those of sd-scripts' merge_lora.py and svd_merge_lora.py."""

    models: tuple[str, ...] = argument(..., Show("LoRAs", widget="files"), rule="a list of files")
    """The LoRAs to merge, of any kind and rank."""

    ratios: tuple[float, ...] = argument((), Show("Ratios", widget="text"), rule="a list of numbers")
    """How much of each, in their order; left out, all of each."""

    sd_model: str = argument("", Show("Into the checkpoint", widget="file"))
    """The checkpoint to put them into; left out, they become one LoRA.

    A .safetensors file or a diffusers folder, of any kind of model that is trained here; of FLUX.1 also a transformer
    alone. Weights are changed one after the other, in float32, and keep their number format.
    """

    save_to: str = argument(..., Show("Save to", widget="file"))
    """The .safetensors file to write, or the folder where the checkpoint is one."""

    method: str = argument(AUTO, Show("Method", when={"sd_model": ("",)}), choices=(AUTO, CONCAT, SVD, SUM))
    """How LoRAs become one: concat, svd or sum; auto takes svd where there is a rank, else concat.

    concat keeps all that they do together: ranks add up. svd keeps the largest singular values of that. sum adds the
    matrices themselves, of equal ranks, as sd-scripts' merge_lora.py does, which is only near to what they do together.
    """

    new_rank: int | None = argument(None, Show("Rank", when={"sd_model": ("",)}), ge=1, le=4096)
    """The highest rank of a layer with svd."""

    new_conv_rank: int | None = argument(
        None, Show("Rank of 3x3 convolutions", when={"sd_model": ("",)}), ge=1, le=4096
    )
    """The rank of convolutions with a kernel; left out, that of the others."""

    clamp_quantile: float = argument(1.0, Show("Clamp quantile", when={"sd_model": ("",)}), gt=0, le=1)
    """Limit the numbers of both matrices to this quantile of them after svd; 1 leaves them. sd-scripts takes 0.99."""

    base_model: str = argument("", Show("Their checkpoint", widget="file", when={"sd_model": ("",)}))
    """The checkpoint that the LoRAs are for; needed where what one adds depends on it: DoRA, (IA)^3, OFT."""

    device: str = argument("auto", Show("Device", when={"sd_model": ("",)}), choices=DEVICES)
    """Where singular values are computed: auto takes the GPU where there is one."""

    save_precision: str = argument(AUTO, Show("Precision of the file"), choices=(AUTO, *PRECISIONS))
    """Number format in the file: fp16, bf16 or float.

    auto is fp16 for a LoRA, and for a checkpoint that of each weight.
    """

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Merge(Tool[MergeArguments]):
    """The merged LoRA does what all of them do together at their ratios, whatever their ranks, alphas and kinds.

    In a checkpoint they are applied one after the other, as programs that draw do; its metadata say what it is made of.
    """

    name = "merge"
    title = "Merge"
    help = "make one LoRA of several, each at its ratio, or put them into a checkpoint"
    arguments = MergeArguments
    on_page = True

    def run(self, arguments: MergeArguments, desk: Desk) -> int:
        ratios = _ratios(arguments)
        headers = lora_files.read_loras("models", arguments.models)
        if arguments.sd_model:
            return self._into(arguments, headers, ratios, desk)
        _check_method(arguments, headers)
        lora_files.check_shapes("models", headers)
        model = lora_files.read_base("base_model", arguments.base_model, headers)
        sources = [*arguments.models, *([arguments.base_model] if model else [])]
        target = check_target(desk, arguments.save_to, sources, arguments.overwrite)
        merging = self.load()
        with held(arguments.device if _method(arguments) == SVD else "", "merging LoRAs", desk) as device:
            plan = merging.Plan(_method(arguments), arguments.new_rank, arguments.new_conv_rank, device)
            plan.quantile = arguments.clamp_quantile
            written = merging.together(headers, ratios, model, plan, desk.progress())
        comment = "merged from " + ", ".join(made_of(headers, ratios))
        names = ", ".join(header.path.name for header in headers)
        module = lora_files.network_module(headers)
        said = {**lora_files.common(headers), "ss_network_module": module, "modelspec.merged_from": names}
        size = written.save(
            target, said, comment, "fp16" if arguments.save_precision == AUTO else arguments.save_precision
        )
        desk.wrote(target)
        desk.say(f"{target}: {size / 1e6:.1f} MB, {written.layers} layers, ranks up to {written.rank}; {comment}")
        return COMPLETED

    def _into(
        self, arguments: MergeArguments, headers: list[AdapterHeader], ratios: tuple[float, ...], desk: Desk
    ) -> int:
        with about("sd_model", arguments.sd_model):
            model = read_model(arguments.sd_model)
        notices = lora_files.check_fits("sd_model", model, headers)
        _refuse_unused(arguments)
        sources = [*arguments.models, arguments.sd_model]
        target = check_target(desk, arguments.save_to, sources, arguments.overwrite, folder=model.is_folder)
        precision = "" if arguments.save_precision == AUTO else arguments.save_precision
        check_room(target, model.bytes_in(precision))
        if model.eight_bits and not precision:
            desk.note(_EIGHT_BITS.format(name=model.name))
        for notice in notices:
            desk.note(notice)
        changed, size = self.load().into(model, headers, ratios, target, precision, desk.progress())
        desk.wrote(target)
        made = ", ".join(made_of(headers, ratios))
        desk.say(f"{target}: {size / 1e6:,.1f} MB, {changed} weights of {model.name} changed by {made}")
        return COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import merging

        return merging


def made_of(headers: list[AdapterHeader], ratios: tuple[float, ...]) -> list[str]:
    """Return the names of LoRAs, each with its ratio."""
    return [f"{header.path.name} x {ratio:g}" for header, ratio in zip(headers, ratios, strict=True)]


def _method(arguments: MergeArguments) -> str:
    if arguments.method != AUTO:
        return arguments.method
    return SVD if arguments.new_rank else CONCAT


def _ratios(arguments: MergeArguments) -> tuple[float, ...]:
    if len(arguments.models) < 2 and not arguments.sd_model:
        raise ConfigError([Problem("models", "names one file; two or more can be merged, or one with sd_model.")])
    if arguments.ratios and len(arguments.ratios) != len(arguments.models):
        given = f"{len(arguments.ratios)} for {len(arguments.models)} models"
        raise ConfigError([Problem("ratios", f"there are {given}; give one for each.")])
    return arguments.ratios or (1.0,) * len(arguments.models)


def _refuse_unused(arguments: MergeArguments) -> None:
    given = {key: getattr(arguments, key) for key in ("new_rank", "new_conv_rank", "base_model")}
    given["clamp_quantile"] = arguments.clamp_quantile if arguments.clamp_quantile < 1 else None
    for key, value in given.items():
        if value:
            raise refusal(key, str(value), "with sd_model the LoRAs are put into the checkpoint whole; leave it out")
    if arguments.method != AUTO:
        raise refusal("method", arguments.method, "with sd_model the LoRAs are added to the weights; leave it out")


def _check_method(arguments: MergeArguments, headers: list[AdapterHeader]) -> None:
    method = _method(arguments)
    if method == SVD and not arguments.new_rank:
        raise ConfigError([Problem("new_rank", "is not given, and svd needs it; name the rank that layers get.")])
    if method != SVD and (arguments.new_rank or arguments.new_conv_rank or arguments.clamp_quantile < 1):
        key = next(key for key in ("new_rank", "new_conv_rank", "clamp_quantile") if key in arguments.model_fields_set)
        raise refusal(key, str(getattr(arguments, key)), f"{method} keeps every rank; set method to svd")
    other = next((each for each in headers if not lora_files.is_plain(each)), None)
    if other and method != SVD:
        reason = f"it is {other.title}, which is no product of two matrices; give new_rank, and svd makes one of it"
        raise refusal("models", other.path.name, reason)
    if method == SUM:
        _check_ranks(headers)


def _check_ranks(headers: list[AdapterHeader]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    names = lora_files.one_name(headers)
    for header in headers:
        for name, module in header.modules.items():
            other, rank = seen.setdefault(names[name], (header.path.name, module.rank))
            if rank != module.rank:
                reason = f"{name} has rank {module.rank} in {header.path.name} and {rank} in {other}; concat takes both"
                raise refusal("method", SUM, reason)
