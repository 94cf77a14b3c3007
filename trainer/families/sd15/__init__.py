"""Stable Diffusion 1.x: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.control import Progress
from trainer.families.family import ComponentConfigs, Family, Recognition
from trainer.families.headers import Header
from trainer.families.sd15 import facts
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

_FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"


class StableDiffusion15(Family):
    """SD 1.1 to 1.5 and what was fine-tuned from them: one CLIP text encoder, latents of 4 channels."""

    name = "sd15"
    title = "Stable Diffusion 1.x"
    base_model_version = "sd_v1"
    architecture = "stable-diffusion-v1"
    configs = facts.CONFIGS

    def matches_file(self, header: Header) -> bool:
        return (
            header.has("cond_stage_model.transformer.")
            and header.shapes.get(_FIRST_CONV, (0, 0))[1] == facts.LATENT_CHANNELS
        )

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        # Stable Diffusion 2 has the same pipeline class; its projections are linear layers.
        unet = configs["unet"]
        return (
            pipeline == "StableDiffusionPipeline"
            and unet.get("in_channels") == facts.LATENT_CHANNELS
            and not unet.get("use_linear_projection")
        )

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        return facts.adapter_targets(configs["unet"], configs["text_encoder"], conv=conv)

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        from trainer.families.sd15.bundle import load

        return load(recognition, config, device=device, dtype=dtype, progress=progress)
