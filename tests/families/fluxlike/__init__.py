"""A tiny family like FLUX.1: diffusers' transformer, CLIP's pooled output and T5's states, 16 latent channels.

Its layers have the names of sd-scripts' files, where query, key and value are one. No torch until `load`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tests.families.patchy import Patchy
from trainer.families.family import ComponentConfigs, FileNames, Latents, Recognition
from trainer.families.reading.headers import Header
from trainer.ground.control import Progress
from trainer.targets import DENOISER, TEXT, Part, Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

WIDTH, DOUBLE, SINGLE, LAYERS = 16, 1, 2, 2
LATENTS = Latents(channels=16, factor=8, patch=2, scale=0.3611, shift=0.1159)
CLIP, T5 = "text_encoder", "text_encoder_2"
T5_LENGTH = 24


class FluxLike(Patchy):
    """What it is."""

    latents = LATENTS
    name = "fluxlike"
    title = "Like FLUX.1"
    parts = (
        Part("transformer", DENOISER, "Transformer", "lora_unet_"),
        Part(CLIP, TEXT, "CLIP-L", "lora_te1_"),
        Part(T5, TEXT, "T5", "lora_te3_"),
    )
    configs = {"transformer": {}, "vae": {}, CLIP: {}, T5: {}}

    def matches_file(self, header: Header) -> bool:
        return header.has("transformer.single_transformer_blocks.")

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames("fluxlike1", "fluxlike")

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        clip = [
            self._layer(
                CLIP, f"encoder.layers.{layer}.{path}", f"lora_te1_text_model_encoder_layers_{layer}_{path}", *size
            )
            for layer in range(LAYERS)
            for path, size in (("self_attn.q_proj", (1, 1)), ("mlp.fc1", (1, 2)), ("mlp.fc2", (2, 1)))
        ]
        t5 = [self._layer(T5, f"encoder.block.{layer}.layer.0.SelfAttention.q", "", 1, 1) for layer in range(LAYERS)]
        double = [
            self._layer(
                "transformer", f"transformer_blocks.{block}.{path}", f"lora_unet_double_blocks_{block}_{name}", *size
            )
            for block in range(DOUBLE)
            for path, name, size in (
                ("attn.qkv", "img_attn_qkv", (1, 3)),
                ("attn.to_out.0", "img_attn_proj", (1, 1)),
                ("ff.net.0.proj", "img_mlp_0", (1, 4)),
                ("attn.added_qkv", "txt_attn_qkv", (1, 3)),
            )
        ]
        single = [
            self._layer(
                "transformer",
                f"single_transformer_blocks.{block}.{path}",
                f"lora_unet_single_blocks_{block}_{name}",
                *size,
            )
            for block in range(SINGLE)
            for path, name, size in (("linear1", "linear1", (1, 7)), ("proj_out", "linear2", (5, 1)))
        ]
        return (*clip, *t5, *double, *single)

    def _layer(self, component: str, path: str, name: str, inputs: int, outputs: int) -> Target:
        named = name or f"lora_te3_{path}"
        return Target(component, path, named.replace(".", "_"), inputs * WIDTH, outputs * WIDTH)

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        bundle = import_module("tests.families.fluxlike.bundle")
        made: Bundle = bundle.FluxBundle(self, recognition, config, device, dtype)
        return made
