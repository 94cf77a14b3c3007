"""Stable Diffusion XL: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from trainer.families.family import ComponentConfigs, FileNames
from trainer.families.reading.headers import Header
from trainer.families.sdxl.facts import FACTS
from trainer.families.unet.facts import LATENT_CHANNELS, files_of, latents_of, parts_of
from trainer.families.unet.family import SIZED, StableFamily, input_channels, unet_alone


class StableDiffusionXL(StableFamily):
    """SDXL 1.0 and what was fine-tuned from it (Pony, Illustrious, NoobAI): two text encoders, picture sizes given."""

    name = FACTS.name
    title = "Stable Diffusion XL"
    facts = FACTS
    comfyui_encoders = {
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.clip_g.transformer.",
    }
    configs = FACTS.configs
    parts = parts_of(FACTS)
    latents = latents_of(FACTS)
    files = files_of(FACTS)
    remarks = {
        "clip_skip": "SDXL was trained on the last layer but one of both text encoders: 1 and 2 both mean that one.",
        "text_encoder_lr": "SDXL has two text encoders: one number for both, or one for each, such as 5e-5, 1e-5.",
        "no_half_vae": "SDXL's own VAE overflows in half precision; on saves the detour unless yours was mended.",
    }

    def matches_file(self, header: Header) -> bool:
        encoders = all(header.has(encoder.original) for encoder in FACTS.text_encoders)
        # Playground 2.5 and CosXL have the same structure and another noise schedule.
        whole = encoders and input_channels(header) == LATENT_CHANNELS and not header.has("edm_")
        return whole or unet_alone(header) == SIZED

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        # The refiner has the second text encoder only.
        return (
            pipeline == "StableDiffusionXLPipeline"
            and bool(configs["text_encoder"])
            and configs["unet"].get("in_channels") == LATENT_CHANNELS
        )

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames(
            base_model_version="sdxl_base_v1-0",
            architecture="stable-diffusion-xl-v1-base",
            implementation="https://github.com/Stability-AI/generative-models",
        )
