"""Anima: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.families.anima import recognition as told
from trainer.families.anima import weights
from trainer.families.anima.facts import CHANNELS, CONDITIONER, CONFIGS, DENOISER, GUIDANCE, LATENTS, TEXT
from trainer.families.anima.targets import ADAPTER_PREFIX, PREFIX, TEXT_PREFIX, adapter_targets
from trainer.families.anima.vae_names import original_name as vae_name
from trainer.families.anima.vae_names import vae_shapes
from trainer.families.anima.weight_names import ADAPTER, original_name
from trainer.families.family import FOLDER, ComponentConfigs, Family, FileNames, Place, Recognition
from trainer.families.reading.folders import Shapes
from trainer.families.reading.headers import Header
from trainer.ground.control import Progress
from trainer.process import FLOW
from trainer.targets import DENOISER as DRAWS
from trainer.targets import TEXT as READS
from trainer.targets import Part, Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

_SIDE = 1024
_PIPELINES = ("AnimaModularPipeline", "AnimaAutoBlocks", "AnimaPipeline")


class Anima(Family):
    """Anima and what was made from it: Cosmos' transformer, an adapter for words, Qwen3, and Qwen-Image's VAE."""

    name = "anima"
    title = "Anima"
    configs = CONFIGS
    process = FLOW
    parts = (
        Part(DENOISER, DRAWS, "Transformer", PREFIX),
        Part(CONDITIONER, DRAWS, "Text adapter", ADAPTER_PREFIX, only_with="train_llm_adapter"),
        Part(TEXT, READS, "Qwen3", TEXT_PREFIX),
    )
    latents = LATENTS
    files = {"vae": "vae", "qwen3": TEXT}
    comfyui_encoders = {TEXT: told.PREFIXES[TEXT][0]}
    guidance = GUIDANCE
    unused = frozenset(
        {
            *("clip_skip", "max_token_length", "weighted_captions", "t5xxl_max_token_length", "apply_t5_attn_mask"),
            *("guidance_scale", "model_prediction_type", "train_t5xxl", "split_qkv", "in_dims", "train_blocks"),
            *("train_double_block_indices", "train_single_block_indices", "single_dim", "single_mod_dim"),
            *(f"{side}_{kind}_dim" for side in ("img", "txt") for kind in ("attn", "mlp", "mod")),
        }
    )
    remarks = {
        "learning_rate": "2e-5 to 1e-4 with AdamW is usual for Anima.",
        "network_dim": "8 to 32 is usual for Anima.",
        "text_encoder_lr": "Anima has one text encoder, Qwen3; most recipes leave it alone, and few programs read what "
        "it learns.",
        "vae": "It is Qwen-Image's, often called qwen_image_vae.safetensors.",
        "t5_tokenizer_path": "Anima takes from T5 its vocabulary alone.",
        "timestep_sampling": "sd-scripts takes sigmoid for Anima.",
    }

    def matches_file(self, header: Header) -> bool:
        return told.is_anima(header)

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        return pipeline in _PIPELINES and configs[DENOISER].get("in_channels", CHANNELS) == CHANNELS

    def missing(self, header: Header) -> tuple[str, ...]:
        lacks = {"vae": not told.holds_vae(header), TEXT: not self.sizes(TEXT, header)}
        return tuple(component for component, missing in lacks.items() if missing)

    def fits(self, component: str, header: Header) -> bool:
        return told.holds_vae(header) if component == "vae" else bool(self.sizes(component, header))

    def sizes(self, component: str, header: Header) -> Mapping[str, Any]:
        return told.sizes(component, header)

    def marks(self, header: Header) -> ComponentConfigs:
        return {component: self.sizes(component, header) for component in (DENOISER, CONDITIONER, TEXT)}

    def disagreement(self, configs: ComponentConfigs) -> tuple[str, str] | None:
        has, takes = configs[TEXT]["hidden_size"], configs[CONDITIONER]["source_dim"]
        return None if has == takes else ("qwen3", f"is {has} wide, and the model takes {takes}")

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames(
            base_model_version=self.name,
            architecture="anima-preview",
            implementation="https://huggingface.co/circlestone-labs/Anima",
            network_module="networks.lora_anima",
            never=frozenset({"guidance_scale", "model_prediction_type", "apply_t5_attn_mask"}),
        )

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        return adapter_targets(configs)

    def shapes(self, configs: ComponentConfigs) -> Mapping[str, Shapes]:
        targets = self.targets(configs, conv=True)
        return {
            DENOISER: weights.transformer_shapes(configs[DENOISER], targets),
            CONDITIONER: weights.conditioner_shapes(configs[CONDITIONER], targets),
            TEXT: weights.text_shapes(configs[TEXT], targets),
            "vae": vae_shapes(configs["vae"]),
        }

    def layouts(self, component: str, configs: ComponentConfigs, form: str) -> Iterable[Shapes]:
        plain = self.shapes(configs).get(component, {})
        if form == FOLDER and component != TEXT:
            return [plain]
        if component == DENOISER:
            there = {original_name(name): shape for name, shape in plain.items()}
            return [_behind(prefix, there) for prefix in told.DENOISERS]
        if component == CONDITIONER:
            return [_behind(prefix + ADAPTER, plain) for prefix in told.DENOISERS]
        before = [_behind(prefix, plain) for prefix in told.PREFIXES.get(component, ("",))]
        if component != "vae":
            return before
        there = {vae_name(name, configs["vae"]): shape for name, shape in plain.items()}
        return [*before, *(_behind(prefix, there) for prefix in told.PREFIXES["vae"])]

    def places(self, target: Target, configs: ComponentConfigs) -> Iterable[Place]:
        own = f"{target.path}.weight"
        if target.component == TEXT:
            return [Place((prefix + own,)) for prefix in told.PREFIXES[TEXT]]
        inside = ADAPTER + own if target.component == CONDITIONER else original_name(own)
        return [*(Place((prefix + inside,)) for prefix in told.DENOISERS), Place((own,))]

    def side(self, configs: ComponentConfigs) -> int:
        return _SIDE

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        from trainer.families.anima.bundle import load_bundle

        small = config.in_few_bits(self.parts)
        return load_bundle(recognition, config, small=small, device=device, dtype=dtype, progress=progress)


def _behind(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}
