"""What a Stable Diffusion model is made of, as plain numbers and names. No weights, no torch.

Structure after Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; configurations as
published with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.families.family import Latents
from trainer.targets import DENOISER, TEXT, Part

LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9
VAE_FACTOR = 8
"""Pixels per latent pixel, each way."""
VOCABULARY = 49408
CHUNK = 77
"""Token ids that a text encoder takes at once: begin, 75 of text, end."""

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
"""Where UNet and VAE are in a single file of the original layout."""
UNET_ADAPTER_PREFIX = "lora_unet_"
FIRST_CONV = f"{UNET_PREFIX}input_blocks.0.0.weight"

EPSILON, VELOCITY = "epsilon", "v_prediction"
"""What a UNet predicts, in diffusers' words."""
EITHER_QUESTION = (
    "The file doesn't say whether the model predicts noise or v; it is trained as predicting noise. A 768 model of "
    "Stable Diffusion 2 predicts v: set v_parameterization = true for it."
)


@dataclass(frozen=True, slots=True)
class TextEncoderFacts:
    """One text encoder of a family.

    `component` is its name here and its folder in diffusers' layout, `original` its prefix in a single file,
    `adapter` that of a LoRA's keys, `setting` the setting that names a file of its own, where there is one.
    `projected` marks encoders whose pooled and projected output is used. `pad` is the token id that fills up a chunk.
    """

    component: str
    original: str
    adapter: str
    projected: bool = False
    pad: int = 49407
    setting: str = ""


@dataclass(frozen=True, slots=True)
class StableFacts:
    """What tells one family of Stable Diffusion models from another.

    `vae_scale` is the factor that gives latents about unit variance. `original_names`: a LoRA's UNet keys have the
    original layout's names (as SDXL's), else diffusers'. `exclamation_is_padding`: the tokenizer reads "!" as its
    padding token, as that of Stable Diffusion 2 does. `predicts_either`: some of its models predict noise and some v,
    and their files don't say which. `projections_as_convolutions`: LoRAs made on a single file have the transformers'
    linear projections as 1x1 convolutions, as sd-scripts does for Stable Diffusion 2; those made on a folder don't.
    """

    name: str
    vae_scale: float
    text_encoders: tuple[TextEncoderFacts, ...]
    configs: Mapping[str, Mapping[str, Any]]
    original_names: bool = False
    exclamation_is_padding: bool = False
    predicts_either: bool = False
    projections_as_convolutions: bool = False


def latents_of(facts: StableFacts) -> Latents:
    """Return what the VAE makes of pictures."""
    return Latents(LATENT_CHANNELS, VAE_FACTOR, scale=facts.vae_scale)


def files_of(facts: StableFacts) -> Mapping[str, str]:
    """Return {setting: component} of what may lie in a file of its own."""
    return {"vae": "vae", **{each.setting: each.component for each in facts.text_encoders if each.setting}}


def parts_of(facts: StableFacts) -> tuple[Part, ...]:
    """Return the UNet and the text encoders, as what adapters attach to."""
    encoders = (
        Part(each.component, TEXT, f"Text encoder {number}" if number > 1 else "Text encoder", each.adapter)
        for number, each in enumerate(facts.text_encoders, 1)
    )
    return (Part("unet", DENOISER, "UNet", UNET_ADAPTER_PREFIX), *encoders)


SCHEDULER_CONFIG: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

UNET_CONFIG: Mapping[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
"""What the UNets of all families have in common; the rest is each family's."""

VAE_CONFIG: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 32,
}

CLIP_L_CONFIG: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": CHUNK,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
"""CLIP ViT-L/14's text encoder (Radford et al. 2021)."""
