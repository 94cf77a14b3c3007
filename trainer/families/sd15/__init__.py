"""Stable Diffusion 1.x: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from trainer.families.family import ComponentConfigs, FileNames
from trainer.families.reading.headers import Header
from trainer.families.sd15.facts import FACTS
from trainer.families.unet.facts import LATENT_CHANNELS, files_of, latents_of, parts_of
from trainer.families.unet.family import CONVOLVED, StableFamily, input_channels, unet_alone


class StableDiffusion15(StableFamily):
    """SD 1.1 to 1.5 and what was fine-tuned from them: one CLIP text encoder."""

    name = FACTS.name
    title = "Stable Diffusion 1.x"
    facts = FACTS
    comfyui_encoders = {"text_encoder": "text_encoders.clip_l.transformer."}
    configs = FACTS.configs
    parts = parts_of(FACTS)
    latents = latents_of(FACTS)
    files = files_of(FACTS)

    def matches_file(self, header: Header) -> bool:
        whole = header.has(FACTS.text_encoders[0].original) and input_channels(header) == LATENT_CHANNELS
        return whole or unet_alone(header) == CONVOLVED

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        # Stable Diffusion 2 has the same pipeline class; its projections are linear layers.
        unet = configs["unet"]
        return (
            pipeline == "StableDiffusionPipeline"
            and unet.get("in_channels") == LATENT_CHANNELS
            and not unet.get("use_linear_projection")
        )

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames(base_model_version="sd_v1", architecture="stable-diffusion-v1")
