"""Make a LoRA of what one checkpoint has learned over another."""

from __future__ import annotations

import json
from datetime import datetime
from types import ModuleType

from trainer.families.unet.facts import EPSILON
from trainer.ground.errors import ConfigError, Problem
from trainer.process import DDPM
from trainer.results.metadata import model_hashes
from trainer.settings.section import Show, argument
from trainer.tools.asking import PRECISIONS, about, check_target, refusal
from trainer.tools.models import Model, read_model
from trainer.tools.on_device import DEVICES, held
from trainer.tools.resize import DynamicArguments, check_dynamic
from trainer.tools.tool import COMPLETED, Desk, Tool

_EIGHT_BITS = (
    "Note: {name} has weights of 8 bits: their rounding is part of the difference. Take both checkpoints in 16 bits "
    "where there are such."
)

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


class ExtractArguments(DynamicArguments):
    """Of which two checkpoints. Names are those of sd-scripts' networks/extract_lora_from_models.py."""

    model_org: str = argument(..., Show("Original checkpoint", widget="file"))
    """The checkpoint that the other one was made from, a .safetensors file or a diffusers folder."""

    model_tuned: str = argument(..., Show("Tuned checkpoint", widget="file"))
    """The checkpoint of the same family whose difference becomes a LoRA."""

    save_to: str = argument(..., Show("Save to", widget="file"))
    """The .safetensors file to write."""

    dim: int = argument(4, Show("Rank"), ge=1, le=4096)
    """The rank that layers get; with a dynamic method the highest that any gets."""

    conv_dim: int | None = argument(None, Show("Rank of 3x3 convolutions"), ge=1, le=4096)
    """The rank of convolutions with a kernel; left out, only linear layers and 1x1 convolutions are taken."""

    clamp_quantile: float = argument(0.99, Show("Clamp quantile"), gt=0, le=1)
    """Limit the numbers of both matrices to this quantile of them; 1 leaves them, and is nearest to the difference."""

    min_diff: float = argument(0.01, Show("Least difference"), ge=0)
    """Leave the text encoders out where no weight of theirs differs by more than this."""

    device: str = argument("auto", Show("Device"), choices=DEVICES)
    """Where singular values are computed: auto takes the GPU where there is one."""

    save_precision: str = argument("fp16", Show("Precision of the file"), choices=PRECISIONS)
    """Number format in the file: fp16, bf16 or float."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Extract(Tool[ExtractArguments]):
    """Takes the largest singular values of each layer's difference; alpha is the rank, so the whole of it counts.

    Only one layer of each model is in memory at a time.
    """

    name = "extract"
    title = "Extract"
    help = "make a LoRA of the difference between two checkpoints"
    arguments = ExtractArguments
    on_page = True

    def run(self, arguments: ExtractArguments, desk: Desk) -> int:
        check_dynamic(arguments)
        with about("model_org", arguments.model_org):
            org = read_model(arguments.model_org)
        with about("model_tuned", arguments.model_tuned):
            tuned = read_model(arguments.model_tuned)
        check_pair(org, tuned)
        sources = [arguments.model_org, arguments.model_tuned]
        target = check_target(desk, arguments.save_to, sources, arguments.overwrite)
        if org.eight_bits or tuned.eight_bits:
            desk.note(_EIGHT_BITS.format(name=org.name if org.eight_bits else tuned.name))
        extracting = self.load()
        with held(arguments.device, f"extracting a LoRA from {tuned.name}", desk) as device:
            written = extracting.extracted(org, tuned, arguments, device, desk.progress())
        if not written.layers:
            raise ConfigError(
                [Problem("model_tuned", f"{tuned.name} has the weights of {org.name}; there is nothing to extract.")]
            )
        comment = f"extracted from {tuned.name} - {org.name}"
        said = _said(org, tuned, arguments, target.stem)
        size = written.save(target, said, comment, arguments.save_precision)
        desk.wrote(target)
        of = "; the text encoders hardly differ and are left out" if written.alike else ""
        desk.say(f"{target}: {size / 1e6:.1f} MB, {written.layers} layers, ranks up to {written.rank}; {comment}{of}")
        return COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import extracting

        return extracting


def check_pair(org: Model, tuned: Model) -> None:
    """See that two checkpoints have the same layers.

    Raises:
        ConfigError: they are of different kinds, the same file, or have layers of other shapes.
    """
    if org.path.resolve() == tuned.path.resolve():
        raise refusal("model_tuned", tuned.name, "it is the original checkpoint; name the one that was made from it")
    if org.family.name != tuned.family.name:
        said = f"it is {tuned.family.a_model} and {org.name} {org.family.a_model}"
        raise refusal("model_tuned", tuned.name, f"{said}; both must be of one kind")
    both = org.components & tuned.components
    if not both:
        raise refusal("model_tuned", tuned.name, f"it has no part in common with {org.name}")
    ours = {each.name: (each.in_features, each.out_features) for each in org.targets if each.component in both}
    theirs = {each.name: (each.in_features, each.out_features) for each in tuned.targets if each.component in both}
    if alone := next((name for name in ours if name not in theirs), ""):
        raise refusal("model_tuned", tuned.name, f"it has no layer {alone}, which {org.name} has")
    # Kernels may differ: Stable Diffusion 2 has convolutions in one layout where the other has linear layers.
    if odd := next((name for name in ours if theirs[name] != ours[name]), ""):
        raise refusal("model_tuned", tuned.name, f"{odd} has another shape there than in {org.name}")


def _said(org: Model, tuned: Model, arguments: ExtractArguments, title: str) -> dict[str, str]:
    """Return the metadata of the LoRA: what it is for, and how it came about."""
    configs, noisy = tuned.recognition.configs, tuned.family.process is DDPM
    prediction = str(configs.get("scheduler", {}).get("prediction_type", EPSILON)) if noisy else ""
    names = org.family.file_names(prediction or EPSILON, org.recognition.configs)
    conv = {"conv_dim": str(arguments.conv_dim), "conv_alpha": str(float(arguments.conv_dim or 0))}
    hashes = model_hashes(org.path)
    return {
        "ss_v2": str(names.v2),
        "ss_base_model_version": names.base_model_version,
        "ss_sd_model_name": org.name,
        **({"ss_sd_model_hash": hashes.old, "ss_new_sd_model_hash": hashes.new} if hashes else {}),
        "ss_network_module": names.network_module,
        **({"ss_model_type": names.model_type} if names.model_type else {}),
        "ss_network_args": json.dumps(conv if arguments.conv_dim else {}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.implementation": names.implementation,
        "modelspec.title": title,
        "modelspec.date": datetime.now().replace(microsecond=0).isoformat(),
        **({"modelspec.prediction_type": _PREDICTIONS[prediction]} if prediction in _PREDICTIONS else {}),
    }
