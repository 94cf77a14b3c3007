"""The model families that can be trained, and which of them a file belongs to. No torch until `load`.

A new family is one folder with a subclass of `Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.control import Progress
from trainer.errors import ModelError
from trainer.families.family import FILE, FOLDER, HUB, ComponentConfigs, Family, Recognition
from trainer.families.foreign import FOREIGN_PIPELINES, name_file
from trainer.families.headers import CONFIGS_ENTRY, Header, read_header
from trainer.families.sd15 import StableDiffusion15

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

__all__ = ["FAMILIES", "Family", "Recognition", "component_configs", "load", "recognise"]

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        StableDiffusion15(),
    )
}  # fmt: skip
"""Every family by the value of `model_family` that means it."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_TRAINED = "This version trains " + " and ".join(family.title for family in FAMILIES.values()) + "."


def recognise(source: str | Path) -> Recognition:
    """Say which family a checkpoint belongs to, from its header alone (milliseconds, no torch, no network).

    Args:
        source: a .safetensors or .ckpt in the original layout, a diffusers folder, or a hub id such as "user/name".

    Raises:
        ModelError: nothing is there, it is damaged, or it is not a base model that this version trains; the text
            says what it is.
    """
    text, path = str(source), Path(source)
    if not text:
        raise ModelError("No model is chosen.", "Set pretrained_model_name_or_path to a checkpoint.")
    if path.is_dir():
        return _recognise_folder(path)
    if not path.exists() and _HUB_ID.fullmatch(text) and not text.endswith(_FILE_SUFFIXES):
        family = next(iter(FAMILIES.values()))
        return Recognition(family.name, HUB, text, family.configs)
    return _recognise_file(path)


def component_configs(source: str | Path) -> ComponentConfigs:
    """Return how a checkpoint's components are built: what it says of itself, else its family's configurations.

    Raises:
        ModelError: as `recognise`.
    """
    return recognise(source).configs


def load(
    config: TrainingConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Bundle:
    """Load the model that the settings name, frozen, in the compute dtype, onto the device.

    Raises:
        ModelError: as `recognise`; or weights are missing or have other shapes than the configuration says.
        Stopped: `progress` asked for it.
    """
    recognition = recognise(config.model.pretrained_model_name_or_path)
    wanted = config.model.model_family
    if wanted not in ("auto", recognition.family):
        raise ModelError(
            f"{recognition.source} is a {FAMILIES[recognition.family].title} model, and model_family is {wanted!r}.",
            'Set model_family to "auto".',
        )
    if recognition.form == HUB:
        from trainer.families.hub import download

        recognition = recognise(download(recognition.source, ("unet", "text_encoder", "vae")))
    return FAMILIES[recognition.family].load(recognition, config, device=device, dtype=dtype, progress=progress)


def _recognise_file(path: Path) -> Recognition:
    header = read_header(path)
    for family in FAMILIES.values():
        if family.matches_file(header):
            return Recognition(family.name, FILE, str(path), {**family.configs, **_described(path, header)})
    foreign = name_file(header)
    raise ModelError(f"{path} is {foreign.title}.", foreign.remedy or _TRAINED)


def _described(path: Path, header: Header) -> dict[str, Any]:
    """Return the configurations that a file carries in its own header."""
    text = header.metadata.get(CONFIGS_ENTRY)
    if text is None:
        return {}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"The metadata entry {CONFIGS_ENTRY} of {path} is no table of configurations.", "Make the file again."
        ) from error


def _recognise_folder(path: Path) -> Recognition:
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"The folder {path} is no diffusers model: it has no model_index.json.",
            "Choose the checkpoint file inside it, or the folder that holds unet, vae and text_encoder.",
        )
    pipeline = str(_read_json(index).get("_class_name", ""))
    configs = {name: _component_config(path / name) for name in ("unet", "vae", "text_encoder", "scheduler")}
    for family in FAMILIES.values():
        if family.matches_folder(pipeline, configs):
            known = {name: config for name, config in configs.items() if config}
            return Recognition(family.name, FOLDER, str(path), {**family.configs, **known})
    raise ModelError(f"{path} is {_name_folder(pipeline, configs)}.", _TRAINED)


def _name_folder(pipeline: str, configs: ComponentConfigs) -> str:
    if pipeline == "StableDiffusionPipeline" and configs["unet"].get("use_linear_projection"):
        return "a Stable Diffusion 2 model"
    return FOREIGN_PIPELINES.get(pipeline, f"a model for diffusers' {pipeline or 'unnamed pipeline'}")


def _component_config(folder: Path) -> Mapping[str, Any]:
    """Return a component's configuration; none where the folder lacks the component."""
    for name in ("config.json", "scheduler_config.json"):
        if (folder / name).is_file():
            return _read_json(folder / name)
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}).", "Copy or download the model again.") from error
