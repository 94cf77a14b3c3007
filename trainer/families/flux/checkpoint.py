"""The components of one FLUX.1 model, loaded one by one from wherever they lie.

Each may be in a diffusers folder, in one file with the others (ComfyUI's checkpoints), or in a file of its own, and the
transformer in the original's layout or in diffusers'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from trainer.families.family import FILE
from trainer.families.flux.facts import CLIP, DENOISER, T5
from trainer.families.flux.recognition import PREFIX, PREFIXES
from trainer.families.flux.transformer import build_transformer
from trainer.families.flux.weight_names import SWAPPED, diffusers_names, original_name
from trainer.families.reading.weights import (
    Naming,
    best_names,
    build_empty,
    check_leftovers,
    fill,
    keep_whole,
    open_weights,
)
from trainer.families.text.clip import load_tokenizer as load_clip_tokenizer
from trainer.families.text.t5 import VOCABULARY, T5Tokenizer
from trainer.families.text.t5 import load_tokenizer as load_t5_tokenizer
from trainer.families.transformer.checkpoint import Components
from trainer.families.vae import place_of_vae, read_vae

_UNUSED = re.compile(
    r".*(position_ids|logit_scale|text_projection(\.weight)?)|(shared|encoder\.embed_tokens)\.weight"
    r"|(.*\.)?(decoder|lm_head|vision_model|visual_projection)\..*"
)
"""Entries of text encoders' files that the modules compute or do not use; of T5's table either name will do."""
_BESIDE = re.compile(r"(text_encoders|vae|first_stage_model)\..*")
"""What a file with a transformer may hold beside it."""
_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
"""The two names of T5's table of tokens."""

_Text = TypeVar("_Text", CLIPTextModel, T5EncoderModel)


@dataclass(frozen=True, slots=True)
class Checkpoint(Components):
    """One model's files. Every method reads anew, so a component that was released can be had again."""

    t5_component: ClassVar[str] = T5
    tokenizer_folder: ClassVar[str] = "tokenizer_2"
    prefixes: ClassVar[Mapping[str, Sequence[str]]] = PREFIXES
    """What this model's diffusers folders call T5 and its tokenizer, and how checkpoints begin names of components."""

    def built(self) -> nn.Module:
        """Return the transformer without memory for its weights."""
        return build_transformer(self.recognition.configs[DENOISER])

    def original_name(self, name: str) -> str:
        """Return the name in the original's layout of a weight of the transformer."""
        return original_name(name)

    def transformer(self, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> nn.Module:
        """Load the transformer.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: weights are missing, superfluous or of other shapes.
        """
        module, source = self.built(), self.recognition.source
        with open_weights(*self.paths(DENOISER), dtype=self.dtype) as weights:
            prefix = PREFIX if any(name.startswith(PREFIX) for name in weights) else ""
            read = TransformerWeights(weights, prefix, list(module.state_dict()), self.original_name)
            check_leftovers(weights, read.used, module, prefix=prefix, unused=_BESIDE, source=source)
            names = {own: own for own in read}
            return fill(module, read, names, device=self.device, dtype=self.dtype, source=source, smaller=smaller)

    def clip(self, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> CLIPTextModel:
        """Load CLIP-L.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: as `transformer`.
        """
        config = CLIPTextConfig.from_dict(dict(self.recognition.configs[CLIP]))
        module = build_empty(CLIPTextModel, config)
        # Counts, which files do not hold, and which have no memory since the module was built on the meta device.
        positions = torch.arange(config.max_position_embeddings, device=self.device)
        module.embeddings.register_buffer("position_ids", positions[None], persistent=False)
        return self._filled(CLIP, module, ("text_model.", ""), self.dtype, smaller)

    def t5(self, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> T5EncoderModel:
        """Load T5's encoder. Its table of tokens has two names, of which a file may have either.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: as `transformer`.
        """
        config = T5Config.from_dict({**self.recognition.configs[self.t5_component], "dropout_rate": 0.0})
        empty = build_empty(T5EncoderModel, config)
        module = self._filled(self.t5_component, empty, ("",), self.text_dtype, smaller)
        module.encoder.set_input_embeddings(module.shared)
        return module

    def encoder(
        self, component: str, smaller: Callable[[nn.Module], nn.Module] = keep_whole
    ) -> CLIPTextModel | T5EncoderModel:
        """Load a text encoder; see `clip` and `t5`."""
        return self.t5(smaller) if component == self.t5_component else self.clip(smaller)

    def vae(self) -> AutoencoderKL:
        """Load the VAE: the one of the setting `vae` where it is set, else the model's own.

        Raises:
            ModelError: as `transformer`, or the other VAE is missing or damaged.
        """
        own, known = self.apart.get("vae", ""), self.recognition.configs["vae"]
        where = own or self.recognition.source
        config, paths = place_of_vae(own, known) if own else (known, self.paths("vae"))
        return read_vae(config, paths, self.prefixes["vae"], device=self.device, dtype=self.vae_dtype, source=where)

    def clip_tokenizer(self) -> CLIPTokenizer:
        """Load the model's own tokenizer of CLIP, or CLIP's.

        Raises:
            ModelError: the model's is not CLIP's.
        """
        is_file = self.recognition.form == FILE
        return load_clip_tokenizer(None if is_file else Path(self.recognition.source) / "tokenizer")

    def t5_tokenizer(self, length: int, *, masked: bool) -> T5Tokenizer:
        """Load T5's tokenizer.

        Raises:
            ModelError: there is none, or it is not T5's.
        """
        source = Path(self.recognition.source)
        usual = [source.parent] if self.recognition.form == FILE else [source / self.tokenizer_folder]
        found = VOCABULARY.find(self.tokenizer_path, *self.beside(self.t5_component), *usual)
        return T5Tokenizer(load_t5_tokenizer(found), length, masked)

    def _filled(
        self,
        component: str,
        module: _Text,
        levels: Sequence[str],
        dtype: torch.dtype,
        smaller: Callable[[nn.Module], nn.Module],
    ) -> _Text:
        """Give a text encoder its weights, which have one of the prefixes of its component or none."""
        source = self.apart.get(component, "") or self.recognition.source
        with open_weights(*self.paths(component), dtype=dtype) as opened:
            prefix = next((each for each in self.prefixes[component] if any(n.startswith(each) for n in opened)), "")
            table = next((prefix + each for each in _TABLES if prefix + each in opened), prefix + _TABLES[0])
            namings: list[Naming] = [_behind(prefix + level, table) for level in levels]
            names = best_names(opened, module, namings)
            check_leftovers(opened, names.values(), module, prefix=prefix, unused=_UNUSED, source=source)
            return fill(module, opened, names, device=self.device, dtype=dtype, source=source, smaller=smaller)


def _behind(prefix: str, table: str) -> Naming:
    return lambda name: table if name in _TABLES else prefix + name


class TransformerWeights(Mapping[str, Tensor]):
    """A transformer's weights under the names, and in the order of rows, of the module that runs.

    Args:
        weights: a file's, in the original's layout or in diffusers'.
        prefix: what the names in the original's layout begin with.
        wanted: the names of the module that runs.
        original: from a name there to the original's.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        prefix: str,
        wanted: Sequence[str],
        original: Callable[[str], str] = original_name,
    ) -> None:
        self._weights = weights
        self._original = f"{prefix}img_in.weight" in weights
        sources = {own: (prefix + original(own),) if self._original else diffusers_names(own) for own in wanted}
        self._sources = {own: names for own, names in sources.items() if all(name in weights for name in names)}
        self._wanted = tuple(wanted)

    @property
    def used(self) -> Iterator[str]:
        """The names of the file's weights that are taken."""
        return (name for names in self._sources.values() for name in names)

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._weights[each] for each in self._sources[name]]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._original and name.startswith(SWAPPED):
            shift, scale = value.chunk(2)
            return torch.cat([scale, shift])
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, name: object) -> bool:
        return name in self._sources
