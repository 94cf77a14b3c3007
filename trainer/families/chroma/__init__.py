"""Chroma: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.families.chroma import recognition as told
from trainer.families.chroma.facts import CONFIGS, DENOISER, GUIDANCE, LENGTH, T5
from trainer.families.chroma.targets import adapter_targets
from trainer.families.chroma.weight_names import original_name
from trainer.families.chroma.weights import transformer_shapes
from trainer.families.family import ComponentConfigs, FileNames, Recognition
from trainer.families.flux import Flux
from trainer.families.flux.targets import PREFIX, T5_PREFIX
from trainer.families.reading.folders import Shapes
from trainer.families.reading.headers import Header
from trainer.ground.control import Progress
from trainer.targets import DENOISER as DRAWS
from trainer.targets import TEXT, Part, Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle


class Chroma(Flux):
    """Chroma1 and what was made from it: FLUX.1's blocks, told what they are to do by an approximator; T5's words."""

    name = "chroma"
    title = "Chroma"
    configs = CONFIGS
    t5: ClassVar[str] = T5
    encoders: ClassVar[tuple[str, ...]] = (T5,)
    pipelines: ClassVar[tuple[str, ...]] = ("ChromaPipeline", "ChromaImg2ImgPipeline")
    prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = told.PREFIXES
    parts = (
        Part(DENOISER, DRAWS, "Transformer", PREFIX),
        Part(T5, TEXT, "T5", T5_PREFIX, only_with="train_t5xxl"),
    )
    files = {"vae": "vae", "t5xxl": T5}
    comfyui_encoders = {T5: told.PREFIXES[T5][0]}
    guidance = GUIDANCE
    unused = Flux.unused | {
        *("guidance_scale", "apply_t5_attn_mask", "img_mod_dim", "txt_mod_dim", "single_mod_dim"),
    }
    remarks = {
        "learning_rate": "1e-4 to 4e-4 with AdamW is usual for Chroma, as for FLUX.1.",
        "network_dim": "Chroma's layers are wide: 4 to 32 is usual, and 16 is often enough.",
        "text_encoder_lr": "Chroma has one text encoder, T5, which is trained only with train_t5xxl.",
        "timestep_sampling": "sd-scripts recommends sigmoid for Chroma.",
        "vae": "It is FLUX.1's, often called ae.safetensors.",
    }

    def matches_file(self, header: Header) -> bool:
        return told.is_chroma(header)

    def sizes(self, component: str, header: Header) -> Mapping[str, Any]:
        return told.sizes(component, header)

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames(
            base_model_version=self.name,
            architecture=self.name,
            implementation="https://huggingface.co/lodestones/Chroma",
            network_module="networks.lora_flux",
            model_type=self.name,
            always={"apply_t5_attn_mask": True, "guidance_scale": 0.0},
        )

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        return adapter_targets(configs)

    def own_shapes(self, config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
        return transformer_shapes(config, targets)

    def original_name(self, name: str) -> str:
        return original_name(name)

    def text_length(self, configs: ComponentConfigs) -> int:
        return LENGTH

    def variant(self, configs: ComponentConfigs) -> str:
        return ""

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        from trainer.families.chroma.bundle import Bundle
        from trainer.families.chroma.checkpoint import Checkpoint
        from trainer.families.flux.bundle import load_bundle

        small = config.in_few_bits(self.parts)
        given: dict[str, Any] = {"small": small, "device": device, "dtype": dtype, "progress": progress}
        return load_bundle(Bundle, Checkpoint, recognition, config, **given)
