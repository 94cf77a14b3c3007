"""The components of one Anima model, loaded one by one from wherever they lie.

Transformer and adapter are in one file, in the original's layout, or in two folders, in diffusers'. Qwen3 and the VAE
are in a folder, in one file with the others, or in files of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from trainer.families.anima.facts import CONDITIONER, DENOISER, TEXT
from trainer.families.anima.recognition import DENOISERS, PREFIXES
from trainer.families.anima.transformer import build_conditioner, build_transformer
from trainer.families.anima.vae import for_pictures
from trainer.families.anima.vae_names import original_name as vae_name
from trainer.families.anima.weight_names import ADAPTER, original_name
from trainer.families.family import FILE
from trainer.families.reading.weights import (
    Naming,
    best_names,
    build_empty,
    check_leftovers,
    fill,
    keep_whole,
    open_weights,
)
from trainer.families.text import qwen, t5
from trainer.families.transformer.checkpoint import Components
from trainer.families.vae import place_of_vae

_COUNTED = r".*pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)|.*rotary_emb\.\w+|.*_extra_state|.*accum_\w+"
_OTHERS = r"(text_encoders|vae|first_stage_model)\..*"
_UNUSED = {
    DENOISER: re.compile(rf"{_COUNTED}|{_OTHERS}|(net\.|model\.diffusion_model\.)?{re.escape(ADAPTER)}.*"),
    CONDITIONER: re.compile(_COUNTED),
    TEXT: re.compile(r".*rotary_emb\.\w+|lm_head\.weight"),
}
"""Entries of a component's file that its module computes, or that belong to other components."""
_TOKENIZERS = ("tokenizer", "t5_tokenizer")
"""Folders of diffusers with the vocabularies of Qwen3 and T5."""


@dataclass(frozen=True, slots=True)
class Checkpoint(Components):
    """One model's files. Every method reads anew, so a component that was released can be had again.

    `qwen_path` is where Qwen's vocabulary is, "" for where it usually is.
    """

    qwen_path: str = ""

    def transformer(self, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> nn.Module:
        """Load the transformer.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: weights are missing, superfluous or of other shapes.
        """
        module = build_transformer(self.recognition.configs[DENOISER])
        namings: list[Naming] = [_behind(prefix, original_name) for prefix in DENOISERS]
        return self._filled(DENOISER, module, [*namings, _plain], DENOISERS, smaller=smaller)

    def conditioner(self) -> nn.Module:
        """Load the adapter.

        Raises:
            ModelError: as `transformer`.
        """
        module = build_conditioner(self.recognition.configs[CONDITIONER], self.device)
        prefixes = [*(prefix + ADAPTER for prefix in DENOISERS), ""]
        return self._filled(CONDITIONER, module, [_behind(prefix, _plain) for prefix in prefixes], prefixes)

    def encoder(self, component: str, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> nn.Module:
        """Load Qwen3.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: as `transformer`.
        """
        config = Qwen3Config.from_dict(dict(self.recognition.configs[TEXT]))
        module = build_empty(Qwen3Model, config)
        module.rotary_emb = type(module.rotary_emb)(config).to(self.device)
        namings = [_behind(prefix, _plain) for prefix in PREFIXES[TEXT]]
        return self._filled(TEXT, module, namings, PREFIXES[TEXT], dtype=self.text_dtype, smaller=smaller)

    def vae(self) -> AutoencoderKLQwenImage:
        """Load the VAE: the one of the setting `vae` where it is set, else the model's own.

        Raises:
            ModelError: as `transformer`, or the other VAE is missing or damaged.
        """
        own, known = self.apart.get("vae", ""), self.recognition.configs["vae"]
        source = own or self.recognition.source
        config, paths = place_of_vae(own, known) if own else (known, self.paths("vae"))
        # The module joins its lists to others.
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
        module = build_empty(AutoencoderKLQwenImage.from_config, lists)
        original: list[Naming] = [_behind(prefix, lambda name: vae_name(name, config)) for prefix in PREFIXES["vae"]]
        with open_weights(*paths, dtype=self.vae_dtype) as weights:
            names = best_names(weights, module, [*original, *(_behind(prefix, _plain) for prefix in PREFIXES["vae"])])
            filled = fill(module, weights, names, device=self.device, dtype=self.vae_dtype, source=source)
        return for_pictures(filled)

    def qwen_tokenizer(self, length: int) -> qwen.QwenTokenizer:
        """Load Qwen's tokenizer.

        Raises:
            ModelError: there is none, or it is not that of such a text encoder.
        """
        places = [*self.beside(TEXT), self._source]
        found = qwen.VOCABULARY.find(self.qwen_path, *(folder / _TOKENIZERS[0] for folder in places), *places)
        known = qwen.load_tokenizer(found, self.recognition.configs[TEXT]["vocab_size"])
        return qwen.QwenTokenizer(known.tokenizer, length, known.pad)

    def t5_tokenizer(self, length: int) -> t5.T5Tokenizer:
        """Load T5's tokenizer, of which only the ids are used.

        Raises:
            ModelError: there is none, or it is not T5's.
        """
        # Qwen's vocabulary has the same name, so T5's is looked for in a folder of its own.
        places = [folder / _TOKENIZERS[1] for folder in (*self.beside(TEXT), self._source)]
        found = t5.VOCABULARY.find(self.tokenizer_path, *places)
        return t5.T5Tokenizer(t5.load_tokenizer(found), length, masked=True)

    @property
    def _source(self) -> Path:
        source = Path(self.recognition.source)
        return source.parent if self.recognition.form == FILE else source

    def _filled(
        self,
        component: str,
        module: Any,
        namings: Sequence[Naming],
        prefixes: Sequence[str],
        *,
        dtype: torch.dtype | None = None,
        smaller: Callable[[nn.Module], nn.Module] = keep_whole,
    ) -> Any:
        """Give a module its weights, which have one of the prefixes or none, and see that there are no others."""
        source, dtype = self.apart.get(component, "") or self.recognition.source, dtype or self.dtype
        with open_weights(*self.paths(component), dtype=dtype) as opened:
            names = best_names(opened, module, namings)
            prefix = next((each for each in prefixes if next(iter(names.values())).startswith(each)), "")
            unused = _UNUSED[component]
            check_leftovers(opened, names.values(), module, prefix=prefix, unused=unused, source=source)
            return fill(module, opened, names, device=self.device, dtype=dtype, source=source, smaller=smaller)


def _plain(name: str) -> str:
    return name


def _behind(prefix: str, naming: Naming) -> Naming:
    return lambda name: prefix + naming(name)
