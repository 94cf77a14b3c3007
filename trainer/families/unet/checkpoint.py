"""The components of one Stable Diffusion model, loaded one by one from wherever it lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from trainer.families.family import FILE, ComponentConfigs, Recognition
from trainer.families.reading.hub import weight_files
from trainer.families.reading.weights import (
    Module,
    Naming,
    best_names,
    build_empty,
    check_leftovers,
    fill,
    keep_whole,
    open_weights,
)
from trainer.families.text.clip import load_tokenizer
from trainer.families.unet import weight_names
from trainer.families.unet.facts import UNET_PREFIX, VAE_PREFIX, StableFacts, TextEncoderFacts
from trainer.families.unet.slim_blocks import slimmed
from trainer.families.vae import place_of_vae, read_vae

TextEncoder: TypeAlias = PreTrainedModel

_UNUSED = re.compile(r".*(position_ids|logit_scale|text_projection(\.weight)?|attn_mask)")
"""Entries of checkpoints that the modules compute or do not use."""

_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\..*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model's files. Every method reads anew, so a component that was released can be had again.

    `recognition.form` is "file" or "folder". `vae_source` is a file, a folder or a hub id with another VAE, or "".
    `apart` are the files of components that have one of their own, by component.
    """

    facts: StableFacts
    recognition: Recognition
    vae_source: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    apart: Mapping[str, str]

    @property
    def configs(self) -> ComponentConfigs:
        """How the components are built."""
        return self.recognition.configs

    def unet(self, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> UNet2DConditionModel:
        """Load the UNet.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: weights are missing, superfluous or of other shapes.
        """
        config = self.configs["unet"]
        module = build_empty(UNet2DConditionModel.from_config, dict(config))
        prefix, paths = self._place("unet", UNET_PREFIX)
        namings: list[Naming] = [
            lambda name: UNET_PREFIX + weight_names.unet_name(name, config),
            lambda name: weight_names.unet_name(name, config),
            lambda name: name,
        ]
        with open_weights(*paths, dtype=self.dtype) as weights:
            # A UNet alone is found with and without the prefix that it has in a checkpoint.
            prefix = prefix if any(name.startswith(prefix) for name in weights) else ""
            return slimmed(self._filled(module, weights, prefix, namings, smaller))

    def text_encoder(
        self, which: TextEncoderFacts, smaller: Callable[[nn.Module], nn.Module] = keep_whole
    ) -> TextEncoder:
        """Load one text encoder.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: as `unet`.
        """
        config = CLIPTextConfig.from_dict(dict(self.configs[which.component]))
        made: type[TextEncoder] = CLIPTextModelWithProjection if which.projected else CLIPTextModel
        module: TextEncoder = build_empty(made, config)
        # Counts, which files do not hold, and which have no memory since the module was built on the meta device.
        positions = torch.arange(config.max_position_embeddings, device=self.device)
        embeddings = module.get_submodule("text_model.embeddings" if which.projected else "embeddings")
        embeddings.register_buffer("position_ids", positions[None], persistent=False)
        prefix, paths = self._place(which.component, which.original)
        with open_weights(*paths, dtype=self.dtype) as weights:
            if any(name.startswith(f"{prefix}transformer.resblocks.") for name in weights):
                read = OpenClipWeights(weights, prefix, config.num_hidden_layers)
                # transformers 5 dropped the level "text_model" from the module without projection.
                level = "" if which.projected else "text_model."
                return self._filled(module, read, "", [lambda name: level + name], smaller)
            namings: list[Naming] = [lambda name: f"{prefix}text_model.{name}", lambda name: prefix + name]
            return self._filled(module, weights, prefix, namings, smaller)

    def vae(self) -> AutoencoderKL:
        """Load the VAE: the one of the setting `vae` where it is set, else the model's own.

        Raises:
            ModelError: as `unet`, or the other VAE is missing or damaged.
        """
        where = self.vae_source or self.recognition.source
        if self.vae_source:
            config, paths = place_of_vae(self.vae_source, self.configs["vae"])
        else:
            config, paths = self.configs["vae"], self._place("vae", VAE_PREFIX)[1]
        return read_vae(config, paths, (VAE_PREFIX,), device=self.device, dtype=self.vae_dtype, source=where)

    def tokenizer(self) -> CLIPTokenizer:
        """Load the model's own (first) tokenizer, or CLIP's.

        Raises:
            ModelError: the model's tokenizer is not CLIP's.
        """
        is_file = self.recognition.form == FILE
        folder = None if is_file else Path(self.recognition.source) / "tokenizer"
        return load_tokenizer(folder, exclamation_is_padding=self.facts.exclamation_is_padding)

    def _place(self, component: str, prefix: str) -> tuple[str, list[Path]]:
        """Return the prefix that a component's weights have, and the files they lie in."""
        source = Path(self.recognition.source)
        if own := self.apart.get(component, ""):
            return "", [Path(own)] if Path(own).is_file() else weight_files(Path(own))
        if self.recognition.form == FILE:
            return prefix, [source]
        return "", weight_files(source / component)

    def _filled(
        self,
        module: Module,
        weights: Mapping[str, Tensor],
        prefix: str,
        namings: Sequence[Naming],
        smaller: Callable[[nn.Module], nn.Module] = keep_whole,
    ) -> Module:
        source = self.recognition.source
        names = best_names(weights, module, namings)
        check_leftovers(weights, names.values(), module, prefix=prefix, unused=_UNUSED, source=source)
        return fill(module, weights, names, device=self.device, dtype=self.dtype, source=source, smaller=smaller)


class OpenClipWeights(Mapping[str, Tensor]):
    """An OpenCLIP text encoder's weights under the names and shapes that `CLIPTextModelWithProjection` has.

    Layers beyond the first `layers` are left out: Stable Diffusion 2 was trained on the last layer but one, and has
    no use for the last. What is no such weight keeps its name, for the check that nothing is left over.
    """

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, layers: int) -> None:
        self._weights, self._prefix = weights, prefix
        self._joined: dict[str, Tensor] = {}
        originals = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
        self._names: dict[str, tuple[str, int | None]] = {}
        for name in _transformers_names(layers):
            original, third = weight_names.open_clip_name(name)
            if original in originals:
                self._names[name] = original, third
        used = {original for original, _ in self._names.values()}
        for original in originals - used:
            found = _LAYER.fullmatch(original)
            if found is None or int(found[1]) < layers:
                self._names[original] = original, None

    def __getitem__(self, name: str) -> Tensor:
        original, third = self._names[name]
        if third is not None:
            return self._whole(original).chunk(3)[third]
        value = self._weights[self._prefix + original]
        return value.T if name == "text_projection.weight" else value

    def _whole(self, original: str) -> Tensor:
        """Return a joined matrix or vector; the last two are kept, since their thirds are asked for in turns."""
        if original not in self._joined:
            while len(self._joined) > 1:
                del self._joined[next(iter(self._joined))]
            self._joined[original] = self._weights[self._prefix + original]
        return self._joined[original]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _transformers_names(layers: int) -> Iterator[str]:
    """Yield the names of every weight of a text encoder in transformers' layout."""
    yield "text_model.embeddings.token_embedding.weight"
    yield "text_model.embeddings.position_embedding.weight"
    parts = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *(f"self_attn.{each}_proj" for each in "qkv"))
    for number in range(layers):
        for part in (*parts, "self_attn.out_proj"):
            for kind in ("weight", "bias"):
                yield f"text_model.encoder.layers.{number}.{part}.{kind}"
    yield "text_model.final_layer_norm.weight"
    yield "text_model.final_layer_norm.bias"
    yield "text_projection.weight"
