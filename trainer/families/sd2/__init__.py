"""Stable Diffusion 2.x: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from trainer.families.family import ComponentConfigs, FileNames
from trainer.families.reading.headers import Header
from trainer.families.sd2.facts import FACTS
from trainer.families.unet.facts import LATENT_CHANNELS, UNET_PREFIX, VELOCITY, files_of, latents_of, parts_of
from trainer.families.unet.family import StableFamily, input_channels


class StableDiffusion2(StableFamily):
    """SD 2.0 and 2.1, the 512-base models that predict noise and the 768 ones that predict v: one OpenCLIP encoder."""

    name = FACTS.name
    title = "Stable Diffusion 2.x"
    facts = FACTS
    comfyui_encoders = {"text_encoder": "text_encoders.clip_h.transformer."}
    configs = FACTS.configs
    parts = parts_of(FACTS)
    latents = latents_of(FACTS)
    files = files_of(FACTS)
    remarks = {"clip_skip": "1 is the layer that Stable Diffusion 2 was trained on; leave it."}

    def matches_file(self, header: Header) -> bool:
        # unCLIP models also take the embedding of a picture.
        return (
            header.has(FACTS.text_encoders[0].original)
            and input_channels(header) == LATENT_CHANNELS
            and not header.has(f"{UNET_PREFIX}label_emb.")
        )

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        # Stable Diffusion 1.x has the same pipeline class; its projections are convolutions.
        unet = configs["unet"]
        return (
            pipeline == "StableDiffusionPipeline"
            and unet.get("in_channels") == LATENT_CHANNELS
            and bool(unet.get("use_linear_projection"))
        )

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        if prediction_type == VELOCITY:
            return FileNames("sd_v2_v", "stable-diffusion-v2-768-v", v2=True)
        return FileNames("sd_v2", "stable-diffusion-v2-512", v2=True)
