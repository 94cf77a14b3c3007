"""What a file is and what it says of itself, from its header: a checkpoint, a LoRA, or something else. Torch-free."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.adapters import AdapterHeader, read_header, width_of
from trainer.advice import is_anime
from trainer.config import TrainingConfig
from trainer.config.files import PRESETS
from trainer.families import FAMILIES, Family, Recognition, recognise
from trainer.families.reading.headers import CONFIGS_ENTRY, Header, read_model_header
from trainer.families.reading.unsupported import is_adapter, name_file
from trainer.families.unet.facts import EPSILON, VELOCITY
from trainer.ground.errors import ModelError
from trainer.planning import dialects
from trainer.targets import DENOISER, Target, names_of

_UNKNOWN = "unknown"
_LONGEST_ENTRY = 10_000
"""Characters of an entry of the metadata that are shown."""
_PREDICTIONS = {"epsilon": EPSILON, "v": VELOCITY, VELOCITY: VELOCITY}
"""modelspec's word for what a model predicts -> ours."""
_ANIME_CLIP_SKIP = 2
_WHOSE = {dialects.DIFFUSERS: "diffusers", dialects.COMFYUI: "ComfyUI", dialects.LYCORIS: "LyCORIS"}
_OTHER_MODELS = {
    "chroma": "Chroma",
    "sd3": "Stable Diffusion 3",
    "lumina": "Lumina 2",
    "anima": "Anima",
    "hunyuan": "HunyuanImage",
    "zimage": "Z-Image",
    "qwen": "Qwen-Image",
    "wan": "Wan",
}
"""What sd-scripts' entry of the base model begins with -> the model's name."""


@dataclass(frozen=True, slots=True)
class Suits:
    """What suits a base model. Torch-free, in microseconds.

    `settings` are values by key: "resolution", where the model says at which side it was made, and "clip_skip", where
    the family has a use for it. `presets` are the names of the shipped presets for its family, those for its kind
    first. `questions` say what the user must decide, since the model doesn't say it; `remarks` what settings, by key,
    mean for its family.
    """

    settings: Mapping[str, object]
    presets: tuple[str, ...]
    questions: tuple[str, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)


def suits(seen: Recognition) -> Suits:
    """Return what suits a recognised model, from its header and its file's name.

    The names of presets begin with that of their family, as in presets/sdxl-style.toml.
    """
    anime, family = is_anime(seen.source), FAMILIES[seen.family]
    side = family.side(seen.configs)
    settings: dict[str, object] = {"resolution": f"{side},{side}"} if side else {}
    if "clip_skip" not in family.unused:
        settings["clip_skip"] = _ANIME_CLIP_SKIP if anime else 1
    names = sorted(path.stem for path in PRESETS.glob(f"{seen.family}-*.toml"))
    presets = tuple(sorted(names, key=lambda name: is_anime(name) != anime))
    return Suits(settings, presets, family.questions(seen.configs), family.remarks)


def files_in_words(config: TrainingConfig, seen: Recognition) -> dict[str, str]:
    """Return {setting: what the file that it names was recognised as} of the model's components that lie apart."""
    family = FAMILIES[seen.family]
    titles = {part.name: part.title for part in family.parts} | {"vae": "VAE"}
    found = {}
    for key, component in family.files.items():
        path = str(getattr(config.model, key))
        if not path or not os.path.isfile(path):
            continue
        try:
            header = read_model_header(Path(path))
        except ModelError:
            continue  # the survey tells of it
        if family.fits(component, header):
            found[key] = f"{titles[component]}, {header.precision}."
        else:
            found[key] = f"It is {name_file(header).title}."
    return found


def inspect(path: Path) -> dict[str, Any]:
    """Return what a file or a diffusers folder is, as plain values for JSON.

    "kind" is "checkpoint" (one that can be trained), "lora" or "other"; "what" says it in words.

    Raises:
        ModelError: there is no such file, or it is damaged.
    """
    # Unlike Path.is_dir, this says no to a name that is too long for the system.
    if os.path.isdir(path):
        return _checkpoint(path, None)
    header = read_model_header(path)
    if is_adapter(header):
        return _lora(path, header)
    try:
        return _checkpoint(path, header)
    except ModelError:
        return {"kind": "other", "what": name_file(header).title, **_file(path, header)}


def _checkpoint(path: Path, header: Header | None) -> dict[str, Any]:
    seen = recognise(path)
    family, suit = FAMILIES[seen.family], suits(seen)
    variant = family.variant(seen.configs)
    found: dict[str, Any] = {
        "kind": "checkpoint",
        "what": family.a_model + (f", {variant}" if variant else ""),
        "family": seen.family,
        "variant": variant,
        "dtype": seen.precision,
        "prediction": seen.configs.get("scheduler", {}).get("prediction_type", _UNKNOWN),
        "form": seen.form,
        "suits": {**suit.settings, "presets": list(suit.presets)},
        "questions": list(suit.questions),
    }
    if header is None:
        return found
    return {**found, "vae": "vae" not in seen.missing, "missing": list(seen.missing), **_file(path, header)}


def _lora(path: Path, header: Header) -> dict[str, Any]:
    try:
        lora = read_header(path)
    except ModelError as error:
        return _lora_of_others(path, header) or {"kind": "other", "what": error.message, **_file(path, header)}
    family = family_of_lora(lora)
    return {
        "kind": "lora",
        "what": f"{lora.title} for {FAMILIES[family].title if family else 'a model that is not known'}",
        "network_type": lora.kind,
        "family": family or _UNKNOWN,
        "prediction": _PREDICTIONS.get(lora.metadata.get("modelspec.prediction_type", ""), _UNKNOWN),
        "dtype": header.precision,
        "modules": len(lora.modules),
        "ranks": sorted(set(lora.ranks.values())),
        "alphas": sorted(set(lora.alphas.values())),
        **_file(path, header),
    }


def _lora_of_others(path: Path, header: Header) -> dict[str, Any]:
    """Return what a LoRA with another program's keys is; empty where they mean no layers of one family."""
    said, whose = header.metadata.get("ss_base_model_version", ""), dialects.spoken(header.shapes)
    told = {name: family for name, family in FAMILIES.items() if said == family.file_names(EPSILON).base_model_version}
    seen = dialects.read(header.shapes, told or FAMILIES)
    halves = {each.entry for each in seen.named} >= {dialects.DOWN, dialects.UP}
    if not halves or seen.strange or whose == dialects.KOHYA:
        return {}
    return {
        "kind": "lora",
        "what": f"a LoRA for {seen.family.title} with the keys of {_WHOSE[whose]} (the tool convert gives it kohya's)",
        "family": seen.family.name,
        "keys": whose,
        "dtype": header.precision,
        "modules": len({each.target.name for each in seen.named}),
        **_file(path, header),
    }


def _file(path: Path, header: Header) -> dict[str, Any]:
    metadata = {key: _cut(value) for key, value in header.metadata.items() if key != CONFIGS_ENTRY}
    return {"tensors": len(header.shapes), "bytes": path.stat().st_size, "metadata": metadata}


def _cut(text: str) -> str:
    """Return the beginning of an entry that nobody would read to its end, and how long it is."""
    return text if len(text) <= _LONGEST_ENTRY else f"{text[:_LONGEST_ENTRY]}... ({len(text):,} characters)"


def family_of_lora(lora: AdapterHeader) -> str:
    """Return the family that a LoRA was trained for, as its metadata or its keys and shapes say; "" if unknown."""
    said = lora.metadata.get("ss_base_model_version", "")
    if other_model_of(lora):
        return ""
    for family in FAMILIES.values():
        if said and said in {family.file_names(each).base_model_version for each in (EPSILON, VELOCITY)}:
            return family.name
    fitting = [family for family in FAMILIES.values() if _fits(lora, family)]
    if len(fitting) > 1:
        # A relative with fewer layers: what has all of these and no other is for it.
        fitting = [family for family in fitting if _is_whole(lora, family)]
    return fitting[0].name if len(fitting) == 1 else ""


def other_model_of(lora: AdapterHeader) -> str:
    """Return the kind of model that a LoRA says it is for, where that is none of the families; "" else.

    Some have layers of the same names and widths as a family's.
    """
    said = lora.metadata.get("ss_base_model_version", "").lower()
    known = {family.file_names(EPSILON).base_model_version for family in FAMILIES.values()}
    return next((title for word, title in _OTHER_MODELS.items() if said.startswith(word) and said not in known), "")


def check_merged(lora: AdapterHeader, seen: Recognition, targets: Sequence[Target]) -> None:
    """See that a LoRA to merge belongs to the model, and fits the layers that both have.

    Raises:
        ModelError: it was trained for another family, or for layers of other widths, or has none of the model's.
    """
    check_family_of_lora(lora, seen, "base_weights")
    widths = _widths(targets)
    if widths.keys().isdisjoint(lora.modules):
        raise ModelError(f"base_weights: {lora.path.name} has no layer of this model.", "Take a LoRA for this model.")
    for name in lora.modules:
        if name in widths and not _is_as_wide(width_of(lora, name), widths[name]):
            raise ModelError(
                f"base_weights: {lora.path.name} was trained for another kind of model: {name} is not as wide there.",
                "Take a LoRA for this kind of model.",
            )


def check_family_of_lora(lora: AdapterHeader, seen: Recognition, key: str = "network_weights") -> None:
    """See that a LoRA to go on from, or to merge, belongs to the model that it is to be trained on.

    Raises:
        ModelError: it was trained for another family.
    """
    family = family_of_lora(lora)
    if other := other_model_of(lora):
        raise ModelError(
            f"{key}: {lora.path.name} says that it is a LoRA for {other}, and the model is "
            f"{FAMILIES[seen.family].title}.",
            "Choose a LoRA that was trained for this kind of model.",
        )
    if family and family != seen.family:
        raise ModelError(
            f"{key}: {lora.path.name} is a LoRA for {FAMILIES[family].title}, and the model is "
            f"{FAMILIES[seen.family].title}.",
            "Choose a LoRA that was trained for this kind of model, or the model that it was trained for.",
        )


def _fits(lora: AdapterHeader, family: Family) -> bool:
    """True when every module of the file is a layer of the family's published model, with that layer's widths."""
    widths = _widths(family.targets(family.configs, conv=True))
    return all(name in widths and _is_as_wide(width_of(lora, name), widths[name]) for name in lora.modules)


def _is_whole(lora: AdapterHeader, family: Family) -> bool:
    """True when the file has every layer of the published model's denoiser that is adapted as a rule."""
    denoisers = names_of(family.parts, DENOISER)
    targets = family.targets(family.configs, conv=False)
    names = {each.name for each in targets if each.component in denoisers and not each.rim}
    return names <= lora.modules.keys()


def _widths(targets: Sequence[Target]) -> Mapping[str, tuple[int, int]]:
    """Return inputs, with the kernel's places, and outputs of layers by each name that files may have for them."""
    return {
        name: (target.in_features * math.prod(target.kernel or (1,)), target.out_features)
        for target in targets
        for name in (target.name, target.alias)
        if name
    }


def _is_as_wide(said: tuple[int, int], ours: tuple[int, int]) -> bool:
    return all(each in (0, own) for each, own in zip(said, ours, strict=True))
