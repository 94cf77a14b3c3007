"""The model families that can be trained, and which of them a file belongs to. No torch until `load`.

A new family is one folder with a subclass of `Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.families.anima import Anima
from trainer.families.chroma import Chroma
from trainer.families.family import FILE, FOLDER, HUB, ComponentConfigs, Family, Recognition
from trainer.families.flux import Flux
from trainer.families.reading.configs import check_config, read_config, read_json
from trainer.families.reading.folders import check_component, check_weights, component_folder
from trainer.families.reading.headers import CONFIGS_ENTRY, Header, described, read_model_header
from trainer.families.reading.hub import INDEXES, cached_descriptions, descriptions, download
from trainer.families.reading.unsupported import UNSUPPORTED_PIPELINES, name_file
from trainer.families.sd2 import StableDiffusion2
from trainer.families.sd15 import StableDiffusion15
from trainer.families.sdxl import StableDiffusionXL
from trainer.families.unet.facts import INPAINTING_CHANNELS
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.targets import DENOISER, TEXT, names_of

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

__all__ = [
    "FAMILIES",
    "Family",
    "Recognition",
    "cached_folder",
    "load",
    "look_up",
    "recognise",
    "recognise_chosen",
]

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        StableDiffusion15(),
        StableDiffusion2(),
        StableDiffusionXL(),
        Flux(),
        Chroma(),
        Anima(),
    )
}  # fmt: skip
"""Every family by the value of `model_family` that means it."""

COMPONENT_SETTINGS = tuple(dict.fromkeys(key for family in FAMILIES.values() for key in family.files))
"""The settings that name files of single components, of any family."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_TRAINED = "This version trains " + " and ".join(family.title for family in FAMILIES.values()) + "."


def recognise(source: str | Path, assumed: str = "") -> Recognition:
    """Say which family a checkpoint belongs to, from its header alone (milliseconds, no torch, no network).

    Args:
        source: a .safetensors or .ckpt in the original layout, a diffusers folder, or a hub id such as "user/name".
        assumed: the family of a hub id of which nothing is in the cache yet.

    Raises:
        ModelError: nothing is there, it is damaged, or it is not a base model that this version trains; the text
            says what it is.
    """
    found, _ = _recognise(source, assumed)
    if found.form != FOLDER:
        return found
    return replace(found, precision=_folder_precision(FAMILIES[found.family], Path(found.source)))


def _recognise(source: str | Path, assumed: str) -> tuple[Recognition, Header | None]:
    """Recognise a model, and return the header of a file with it; of a folder nothing is read but its descriptions."""
    text, path = str(source), Path(source)
    if not text:
        raise ModelError("No model is chosen.", "Set pretrained_model_name_or_path to a checkpoint.")
    if os.path.isdir(path):
        return _recognise_folder(path), None
    if _is_hub_id(text):
        cached = cached_descriptions(text)
        if cached is not None:
            return replace(_recognise_folder(cached), form=HUB, source=text), None
        family = FAMILIES.get(assumed, next(iter(FAMILIES.values())))
        return Recognition(family.name, HUB, text, family.configs), None
    header = read_model_header(path)
    return _recognise_file(path, header), header


def look_up(config: TrainingConfig) -> None:
    """Fetch the descriptions of a model on the hub, some kilobytes, for `recognise` to find in the cache.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached and the cache has nothing.
    """
    source = config.model.pretrained_model_name_or_path
    if _is_hub_id(source):
        descriptions(source)


def recognise_chosen(config: TrainingConfig) -> Recognition:
    """Recognise the model that the settings name, and see that they don't contradict it.

    Raises:
        ModelError: as `recognise`; or a component is neither in the model nor in the file that its setting names; or
            a file or a folder lacks weights, or has others than its configurations say.
        ConfigError: `model_family` is another family than the model's, or a setting names a file of no component of it.
    """
    wanted = config.model.model_family
    recognition, header = _recognise(config.model.pretrained_model_name_or_path, wanted)
    if wanted not in ("auto", recognition.family):
        found = FAMILIES[recognition.family].a_model
        message = f'{wanted!r} is not what {recognition.source} is: {found}. Set model_family to "auto".'
        raise ConfigError([Problem("model_family", message, wanted, {"model_family": "auto"})])
    chosen = chosen_files(config)
    return _looked_through(_with_files(recognition, chosen), chosen, header)


def chosen_files(config: TrainingConfig) -> dict[str, str]:
    """Return {setting: path} of every component, "" where it is the model's own."""
    return {key: str(getattr(config.model, key)) for key in COMPONENT_SETTINGS}


def _looked_through(recognition: Recognition, chosen: Mapping[str, str], header: Header | None) -> Recognition:
    """See that a model holds what will be loaded of it, all but what is chosen apart; add a folder's precision.

    Raises:
        ModelError: a file or a weight is missing, damaged or of another shape than its configuration says.
    """
    family, source = FAMILIES[recognition.family], recognition.source
    apart = {component for key, component in family.files.items() if chosen[key]}
    wanted = [component for component in family.weighty if component not in apart]
    layouts = {component: family.layouts(component, recognition.configs, recognition.form) for component in wanted}
    if header is not None:
        for component in wanted:
            check_weights(source, f"its {_titles(family)[component]}'s", header.shapes, layouts[component])
    if recognition.form != FOLDER:
        return recognition
    precisions = {component: check_component(Path(source) / component, layouts[component]) for component in wanted}
    return replace(recognition, precision=precisions[names_of(family.parts, DENOISER)[0]])


def _titles(family: Family) -> dict[str, str]:
    """Return what each component is called within a sentence."""
    titles = {part.name: part.title.lower() if part.role == TEXT else part.title for part in family.parts}
    return {**{name: name for name in family.weighty}, "vae": "VAE", **titles}


def _with_files(recognition: Recognition, chosen: Mapping[str, str]) -> Recognition:
    """See that every component lies in the model or, whole, in the file that its setting names.

    Such a file may say how its component is built; else a part of the model is built as the model says, and a VAE as
    its family's is.
    """
    family, configs = FAMILIES[recognition.family], dict(recognition.configs)
    titles = _titles(family)
    for key, path in chosen.items():
        component = family.files.get(key, "")
        if path and not component:
            message = f"{path!r} is not used: {family.a_model} has no such part. Leave it empty."
            raise ConfigError([Problem(key, message, path, {key: ""})])
        if not path and component in recognition.missing:
            raise ModelError(
                f"{key}: {recognition.source} has no {titles[component]} inside.",
                f"Choose the {titles[component]} that belongs to this kind of model.",
            )
        if path and not _is_hub_id(path):
            try:
                configs[component] = _of_its_own(family, component, configs, path)
            except ModelError as error:
                raise ModelError(f"{key}: {error.message}", error.remedy) from error
    if not_fitting := family.disagreement(configs):
        key, why = not_fitting
        raise ModelError(
            f"{key}: {chosen.get(key) or recognition.source} {why}.", "Choose the one that it was made with."
        )
    return replace(recognition, configs=configs)


def _of_its_own(family: Family, component: str, configs: ComponentConfigs, path: str) -> Mapping[str, Any]:
    """See that a file or a folder holds a component, whole; return how the component is built."""
    title, a_part = _titles(family)[component], component in {part.name for part in family.parts}
    known = configs[component] if a_part else family.configs[component]
    if os.path.isdir(path):
        folder = component_folder(Path(path), component)
        known = known if a_part else read_config(folder / "config.json")
        check_component(folder, family.layouts(component, {**configs, component: known}, FOLDER))
        return known
    header = read_model_header(Path(path))
    if not family.fits(component, header):
        raise ModelError(
            f"{path} is {name_file(header).title} and holds no {title} of this kind.",
            f"Choose a {title}, or leave the setting empty for the one inside the model.",
        )
    said = described(Path(path), header).get(component, {})
    check_config(said, f"{CONFIGS_ENTRY} of {path}, {component}")
    known = {**known, **said, **family.sizes(component, header)} if a_part else said or known
    check_weights(path, f"its {title}'s", header.shapes, family.layouts(component, {**configs, component: known}, FILE))
    return known


def cached_folder(text: str) -> Path | None:
    """Return the folder in the cache of a model that is named as on the hub; None where it is not, or not there yet."""
    return cached_descriptions(text) if _is_hub_id(text) else None


def _is_hub_id(text: str) -> bool:
    """Say whether a text that names nothing here can be a name on the hub."""
    return not os.path.exists(text) and bool(_HUB_ID.fullmatch(text)) and not text.endswith(_FILE_SUFFIXES)


def load(
    config: TrainingConfig,
    recognition: Recognition | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Bundle:
    """Load the model that the settings name, frozen, in the compute dtype, onto the device.

    Args:
        recognition: what `recognise_chosen` said of the model; it is asked now where nothing is given.

    Raises:
        ConfigError: as `recognise_chosen`.
        ModelError: as `recognise`; or weights are missing or have other shapes than the configuration says.
        Stopped: `progress` asked for it.
    """
    if recognition is None:
        look_up(config)
        recognition = recognise_chosen(config)
    if recognition.form == HUB:
        components = FAMILIES[recognition.family].weighty
        folder = _recognise_folder(download(recognition.source, components, progress))
        chosen = chosen_files(config)
        recognition = _looked_through(_with_files(folder, chosen), chosen, None)
    return FAMILIES[recognition.family].load(recognition, config, device=device, dtype=dtype, progress=progress)


def _recognise_file(path: Path, header: Header) -> Recognition:
    for family in FAMILIES.values():
        if family.matches_file(header):
            own = described(path, header)
            for name, config in own.items():
                check_config(config, f"{CONFIGS_ENTRY} of {path}, {name}")
            configs = {**family.configs, **own}
            configs |= {name: {**configs[name], **said} for name, said in family.marks(header).items()}
            _check_layers(family, configs, str(path))
            return Recognition(family.name, FILE, str(path), configs, header.precision, family.missing(header))
    foreign = name_file(header)
    raise ModelError(f"{path} is {foreign.title}.", foreign.remedy or _TRAINED)


def _check_layers(family: Family, configs: ComponentConfigs, source: str) -> None:
    """See that a model's layers follow from its configurations.

    Raises:
        ModelError: an entry is missing or of another kind.
    """
    try:
        family.shapes(configs)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise ModelError(
            f"{source}: the configuration of its components {what}.", "Copy or download the model again."
        ) from error


def _recognise_folder(path: Path) -> Recognition:
    index = next((path / name for name in INDEXES if (path / name).exists()), None)
    if index is None:
        raise ModelError(
            f"The folder {path} is no diffusers model: it has no model_index.json.",
            "Choose the checkpoint file inside it, or the folder that holds unet, vae and text_encoder.",
        )
    pipeline = str(read_json(index).get("_class_name", ""))
    folders = {folder.name for folder in path.iterdir() if folder.is_dir()}
    described_by = (name for family in FAMILIES.values() for name in family.configs)
    configs = {name: _component_config(path / name) for name in dict.fromkeys((*described_by, *sorted(folders)))}
    for family in FAMILIES.values():
        if family.matches_folder(pipeline, configs):
            known = {name: config for name, config in configs.items() if config}
            _check_layers(family, {**family.configs, **known}, str(path))
            return Recognition(family.name, FOLDER, str(path), {**family.configs, **known})
    raise ModelError(f"{path} is {_name_folder(pipeline, configs)}.", _TRAINED)


def _folder_precision(family: Family, path: Path) -> str:
    """Return the dtype of a folder's denoiser, where it lies in safetensors files."""
    found = (sorted((path / name).glob("*.safetensors")) for name in names_of(family.parts, DENOISER))
    first = next(chain.from_iterable(found), None)
    return read_model_header(first).precision if first else ""


def _name_folder(pipeline: str, configs: ComponentConfigs) -> str:
    if configs.get("unet", {}).get("in_channels") == INPAINTING_CHANNELS:
        return "an inpainting model"
    return UNSUPPORTED_PIPELINES.get(pipeline, f"a model for diffusers' {pipeline or 'unnamed pipeline'}")


def _component_config(folder: Path) -> Mapping[str, Any]:
    """Return a component's configuration; none where the folder lacks the component."""
    for name in ("config.json", "scheduler_config.json"):
        if (folder / name).exists():
            return read_config(folder / name)
    return {}
