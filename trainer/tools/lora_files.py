"""What the tools around LoRA files share: which files they take, and what they say of those that they write."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.adapters import KINDS, AdapterHeader, read_header, width_of
from trainer.families import FAMILIES
from trainer.families.family import FileNames
from trainer.families.unet.facts import EPSILON
from trainer.ground.errors import ModelError
from trainer.planning.inspection import family_of_lora, other_model_of
from trainer.targets import Target
from trainer.tools.asking import about, refusal
from trainer.tools.models import Model, read_model

UP, DOWN, CORE = "lora_up.weight", "lora_down.weight", "lora_mid.weight"

OF_BASE = ("ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash")
OF_MODELSPEC = ("sai_model_spec", "architecture", "implementation", "prediction_type", "resolution", "encoder_layer")
_HASHES = ("sshs_", "modelspec.hash_")
_NAMED = 3


def read_loras(argument: str, paths: Sequence[str]) -> list[AdapterHeader]:
    """Return the headers of LoRAs, of any kind that is known, for one kind of model.

    Raises:
        ConfigError: one is something else, is named twice, or is for another kind of model than another.
    """
    with about(argument):
        headers = [read_header(Path(path)) for path in paths]
        _check_one_family(headers)
    return headers


def is_plain(header: AdapterHeader) -> bool:
    """Say whether every layer has the two matrices of a LoRA and nothing else."""
    return all(set(module.entries) == {UP, DOWN} for module in header.modules.values())


def family_of(headers: Sequence[AdapterHeader]) -> str:
    """Return the family that LoRAs are for, "" where none of them says it."""
    return next((family for family in map(family_of_lora, headers) if family), "")


def network_module(headers: Sequence[AdapterHeader]) -> str:
    """Return sd-scripts' module for plain LoRAs of the family that these are for, networks.lora where none is known."""
    family = family_of(headers)
    return FAMILIES[family].file_names(EPSILON).network_module if family else FileNames("", "").network_module


def _check_one_family(headers: Sequence[AdapterHeader]) -> None:
    real = [os.path.realpath(header.path) for header in headers]
    twice = next((header.path.name for header, path in zip(headers, real, strict=True) if real.count(path) > 1), "")
    if twice:
        raise ModelError(f"{twice} is named twice; name it once, with the ratio that it should have.")
    families = {header.path.name: family_of_lora(header) for header in headers}
    if len({family for family in families.values() if family}) > 1:
        said = ", ".join(f"{name} for {FAMILIES[family].title}" for name, family in families.items() if family)
        raise ModelError(f"these LoRAs are for different kinds of models: {said}.")


def one_name(headers: Sequence[AdapterHeader]) -> Mapping[str, str]:
    """Return {name in a file: the one name of its layer}: some files for SDXL have diffusers' names for layers."""
    own = {name: name for header in headers for name in header.modules}
    family = family_of(headers)
    targets = FAMILIES[family].targets(FAMILIES[family].configs, conv=True) if family else ()
    return own | {target.alias: target.name for target in targets if target.alias}


def check_shapes(argument: str, headers: Sequence[AdapterHeader]) -> None:
    """See that modules of one name are on layers of one shape.

    Raises:
        ConfigError: they are not.
    """
    seen: dict[str, tuple[str, tuple[int, int]]] = {}
    names = one_name(headers)
    for header in headers:
        for name in header.modules:
            width = width_of(header, name)
            other, expected = seen.setdefault(names[name], (header.path.name, width))
            if any(one and two and one != two for one, two in zip(width, expected, strict=True)):
                reason = f"{name} has another shape there than in {other}: they are for different models"
                raise refusal(argument, header.path.name, reason)


def needs_weights(headers: Sequence[AdapterHeader]) -> str:
    """Return the name of a LoRA whose effect depends on its model's weights, "" where none does."""
    return next((each.path.name for each in headers if any(map(KINDS[each.kind].rests_on_weight, _entries(each)))), "")


def _entries(header: AdapterHeader) -> list[Mapping[str, tuple[int, ...]]]:
    return [module.entries for module in header.modules.values()]


def read_base(argument: str, source: str, headers: Sequence[AdapterHeader]) -> Model | None:
    """Return the checkpoint that LoRAs are for, None where none is named.

    Raises:
        ConfigError: it is none, is for another kind of model, or is needed and not named.
    """
    if not source:
        if of := needs_weights(headers):
            what = next(header.title for header in headers if header.path.name == of)
            reason = f"what it adds depends on the model's weights, as it is {what}; name that checkpoint here"
            raise refusal(argument, of, reason)
        return None
    with about(argument, source):
        model = read_model(source)
    check_fits(argument, model, headers)
    return model


def check_fits(argument: str, model: Model, headers: Sequence[AdapterHeader]) -> tuple[str, ...]:
    """See that LoRAs belong to a checkpoint, and return a notice for each that has layers for a part that it lacks.

    Raises:
        ConfigError: one is for another kind of model, or has layers that the model does not have.
    """
    notices = []
    for header in headers:
        family = family_of_lora(header)
        if other := other_model_of(header):
            raise refusal(argument, model.name, f"{header.path.name} says that it is for {other}")
        if family and family != model.family.name:
            said = f"{header.path.name} is for {FAMILIES[family].title}, and this is {model.family.a_model}"
            raise refusal(argument, model.name, said)
        targets = model.by_name
        if strangers := [name for name in header.modules if name not in targets]:
            layers = counted(len(strangers), "layer")
            said = f"{header.path.name} has {layers} that this model does not have: {some(strangers)}"
            raise refusal(argument, model.name, said)
        for name in header.modules:
            _check_width(argument, model, header, name, targets[name])
        if absent := [name for name in header.modules if name not in model.weights]:
            if len(absent) == len(header.modules):
                raise refusal(argument, model.name, f"it holds none of the layers of {header.path.name}")
            notices.append(
                f"Note: {model.name} lacks a part of the model, so nothing is done with "
                f"{counted(len(absent), 'layer')} of {header.path.name}: {some(absent)}."
            )
    return tuple(notices)


def _check_width(argument: str, model: Model, header: AdapterHeader, name: str, target: Target) -> None:
    ours = target.in_features * math.prod(target.kernel or (1,)), target.out_features
    if any(said not in (0, own) for said, own in zip(width_of(header, name), ours, strict=True)):
        reason = f"{name} has another shape in {header.path.name}, which is for another model"
        raise refusal(argument, model.name, reason)


def kernels_of(headers: Sequence[AdapterHeader]) -> dict[str, tuple[int, ...]]:
    """Return the kernel of each layer that is a convolution: as files have it, else as the family has it."""
    found: dict[str, tuple[int, ...]] = {}
    family = family_of(headers)
    if family:
        for target in FAMILIES[family].targets(FAMILIES[family].configs, conv=True):
            found |= {name: target.kernel or () for name in (target.name, target.alias) if name}
    for header in headers:
        for name, module in header.modules.items():
            sides = [module.entries[entry][2:] for entry in (DOWN, CORE) if entry in module.entries]
            if sides:
                found[name] = max(sides, key=math.prod)
    return found


def described(
    metadata: Mapping[str, str], ranks: Sequence[int], alphas: Sequence[float], comment: str
) -> dict[str, str]:
    """Return a file's metadata with its ranks, alphas and the comment on how it came about ahead of the earlier ones.

    As sd-scripts, "Dynamic" stands where they differ from module to module. Hashes, which are no longer true, go.
    """
    earlier = metadata.get("ss_training_comment", "")
    said = f"{comment}; {earlier}" if earlier not in ("", "None") else comment
    one = len(set(ranks)) == 1 and len({round(alpha, 4) for alpha in alphas}) == 1
    return {
        **without_hashes(metadata),
        **whole_arguments(metadata),
        "ss_network_dim": str(ranks[0]) if one else "Dynamic",
        "ss_network_alpha": str(alphas[0]) if one else "Dynamic",
        "ss_training_comment": said,
    }


def whole_arguments(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the entry of the network's arguments without `split_qkv`, after which alphas would be read otherwise."""
    try:
        arguments = json.loads(metadata.get("ss_network_args", ""))
    except ValueError:
        return {}
    if not isinstance(arguments, dict) or "split_qkv" not in arguments:
        return {}
    return {"ss_network_args": json.dumps({key: value for key, value in arguments.items() if key != "split_qkv"})}


def without_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata without the hashes of the weights that they were written for."""
    return {key: value for key, value in metadata.items() if not key.startswith(_HASHES)}


def common(headers: Sequence[AdapterHeader]) -> dict[str, str]:
    """Return what all files say of the model that they are for."""
    keys = [*OF_BASE, *(f"modelspec.{key}" for key in OF_MODELSPEC)]
    found = {key: {header.metadata.get(key, "") for header in headers} for key in keys}
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1 and "" not in values}


def counted(number: int, what: str) -> str:
    """Return a number and the word for what there is of it."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """Name a few of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
