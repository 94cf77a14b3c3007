"""The components of one Stable Diffusion 1.x model, loaded one by one from wherever it lies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.errors import ModelError
from trainer.families.family import FILE, ComponentConfigs, Recognition
from trainer.families.headers import CONFIGS_ENTRY, read_header
from trainer.families.hub import download, weight_files
from trainer.families.sd15 import facts, layout
from trainer.families.tokens import load_tokenizer
from trainer.families.weights import Module, build_empty, fill, open_weights, some

_UNUSED = re.compile(r".*(position_ids|logit_scale|text_projection(\.weight)?)")
"""Entries of checkpoints that the modules compute or do not use."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model's files. Every method reads anew, so a component that was released can be had again.

    `recognition.form` is "file" or "folder". `vae_source` is a file, a folder or a hub id with another VAE, or "".
    """

    recognition: Recognition
    vae_source: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype

    @property
    def configs(self) -> ComponentConfigs:
        """How the components are built."""
        return self.recognition.configs

    def unet(self) -> UNet2DConditionModel:
        """Load the UNet.

        Raises:
            ModelError: weights are missing, superfluous or of other shapes.
        """
        config = self.configs["unet"]
        module = build_empty(UNet2DConditionModel.from_config, dict(config))
        prefix, paths = self._place("unet", layout.UNET_PREFIX)
        namings: list[_Naming] = [lambda name: prefix + layout.unet_name(name, config), lambda name: name]
        return self._filled(module, paths, prefix, namings)

    def text_encoder(self) -> CLIPTextModel:
        """Load the text encoder.

        Raises:
            ModelError: as `unet`.
        """
        module = build_empty(CLIPTextModel, CLIPTextConfig.from_dict(dict(self.configs["text_encoder"])))
        # Counts, which files do not hold, and which have no memory since the module was built on the meta device.
        positions = torch.arange(module.config.max_position_embeddings, device=self.device)
        module.get_submodule("embeddings").register_buffer("position_ids", positions[None], persistent=False)
        prefix, paths = self._place("text_encoder", layout.TEXT_ENCODER_PREFIX)
        # transformers 5 dropped the level "text_model"; files have it or not.
        namings: list[_Naming] = [lambda name: f"{prefix}text_model.{name}", lambda name: prefix + name]
        return self._filled(module, paths, prefix, namings)

    def vae(self) -> AutoencoderKL:
        """Load the VAE: the one of the setting `vae` where it is set, else the model's own.

        Raises:
            ModelError: as `unet`, or the other VAE is missing or damaged.
        """
        config, paths = self._vae_place()
        module = build_empty(AutoencoderKL.from_config, dict(config))
        namings: list[_Naming] = [
            lambda name: layout.VAE_PREFIX + layout.vae_name(name, config),
            lambda name: layout.vae_name(name, config),
            lambda name: name,
            layout.vae_name_before_2023,
        ]
        with open_weights(*paths) as weights:
            names = _names_in(weights, module, namings)
            source = self.vae_source or self.recognition.source
            return fill(module, weights, names, device=self.device, dtype=self.vae_dtype, source=source)

    def tokenizer(self) -> CLIPTokenizer:
        """Load the model's own tokenizer, or CLIP's.

        Raises:
            ModelError: the model's tokenizer is not CLIP's.
        """
        is_file = self.recognition.form == FILE
        return load_tokenizer(None if is_file else Path(self.recognition.source) / "tokenizer")

    def _place(self, component: str, prefix: str) -> tuple[str, list[Path]]:
        """Return the prefix that a component's weights have, and the files they lie in."""
        source = Path(self.recognition.source)
        if self.recognition.form == FILE:
            return prefix, [source]
        return "", weight_files(source / component)

    def _filled(self, module: Module, paths: list[Path], prefix: str, namings: list[_Naming]) -> Module:
        source = self.recognition.source
        with open_weights(*paths) as weights:
            names = _names_in(weights, module, namings)
            known = set(names.values())
            strange = [name for name in weights if name.startswith(prefix) and name not in known]
            strange = [name for name in strange if not _UNUSED.fullmatch(name)]
            if strange:
                raise ModelError(
                    f"{source} has {len(strange)} weights that no {type(module).__name__} of its configuration has: "
                    f"{some(strange)}.",
                    "It is not the kind of model that its structure suggests.",
                )
            return fill(module, weights, names, device=self.device, dtype=self.dtype, source=source)

    def _vae_place(self) -> tuple[Mapping[str, Any], list[Path]]:
        """Return the VAE's configuration and the files with its weights."""
        if not self.vae_source:
            return self.configs["vae"], self._place("vae", layout.VAE_PREFIX)[1]
        path = Path(self.vae_source)
        if path.is_file() or path.suffix:
            described = json.loads(read_header(path).metadata.get(CONFIGS_ENTRY, "{}"))
            return described.get("vae", facts.VAE_CONFIG), [path]
        folder = path if path.is_dir() else download(self.vae_source, [""])
        if (folder / "vae").is_dir():
            folder = folder / "vae"
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The setting vae names {self.vae_source}, which has no readable config.json.",
                "Choose a VAE file, or a folder with config.json and the VAE's weights.",
            ) from error
        return config, weight_files(folder)


_Naming = Callable[[str], str]
"""From a name in a module's state dict to a name in a file."""


def _names_in(weights: Mapping[str, Tensor], module: torch.nn.Module, namings: list[_Naming]) -> dict[str, str]:
    """Choose the naming under which most weights are there; what is still missing is for `fill` to report."""
    tables = [{name: naming(name) for name in module.state_dict()} for naming in namings]
    return max(tables, key=lambda names: sum(name in weights for name in names.values()))
