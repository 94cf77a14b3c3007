"""FLUX.1: the family's entry in `trainer.families.FAMILIES`. No torch until `load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.families.family import FOLDER, ComponentConfigs, Family, FileNames, Place, Recognition
from trainer.families.flux import recognition as told
from trainer.families.flux import weights
from trainer.families.flux.facts import CLIP, CONFIGS, DENOISER, DEV_LENGTH, LATENTS, SCHNELL_LENGTH, T5, TOKEN
from trainer.families.flux.targets import CLIP_PREFIX, PREFIX, T5_PREFIX, adapter_targets
from trainer.families.flux.weight_names import diffusers_names, original_name
from trainer.families.reading.folders import Shapes
from trainer.families.reading.headers import Header
from trainer.families.unet.places import LEVEL
from trainer.families.unet.weight_names import vae_name
from trainer.families.unet.weights import text_shapes, vae_layouts, vae_shapes
from trainer.ground.control import Progress
from trainer.process import FLOW
from trainer.targets import DENOISER as DRAWS
from trainer.targets import TEXT, Part, Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

_SIDE = 1024


class Flux(Family):
    """FLUX.1 dev and schnell, and what was made from them (Krea-dev): a transformer, CLIP's summary and T5's words."""

    name = "flux"
    title = "FLUX.1"
    configs = CONFIGS
    process = FLOW
    t5: ClassVar[str] = T5
    """What diffusers' folders call T5."""
    encoders: ClassVar[tuple[str, ...]] = (CLIP, T5)
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    """Classes of diffusers that draw with the plain model; the others are given a picture or a mask too."""
    prefixes: ClassVar[Mapping[str, tuple[str, ...]]] = told.PREFIXES
    parts: ClassVar[tuple[Part, ...]] = (
        Part(DENOISER, DRAWS, "Transformer", PREFIX),
        Part(CLIP, TEXT, "CLIP-L", CLIP_PREFIX),
        Part(T5, TEXT, "T5", T5_PREFIX, only_with="train_t5xxl"),
    )
    latents = LATENTS
    files = {"vae": "vae", "clip_l": CLIP, "t5xxl": T5}
    comfyui_encoders = {CLIP: told.PREFIXES[CLIP][0], T5: told.PREFIXES[T5][0]}
    unused = frozenset(
        {
            *("clip_skip", "max_token_length", "weighted_captions", "train_llm_adapter"),
            *("qwen3_max_token_length", "t5_max_token_length", "qwen3_tokenizer_path"),
        }
    )
    remarks = {
        "learning_rate": "1e-4 to 4e-4 with AdamW is usual for FLUX.1: a transformer of this size takes more than a "
        "UNet.",
        "network_dim": "FLUX.1's layers are wide: 4 to 32 is usual, and 16 is often enough.",
        "text_encoder_lr": "FLUX.1 has two text encoders: the first number is for CLIP-L, the second for T5, which is "
        "trained only with train_t5xxl. Most recipes train neither.",
        "vae": "The file is often called ae.safetensors.",
    }

    def matches_file(self, header: Header) -> bool:
        return told.is_flux(header)

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        return pipeline in self.pipelines and configs[DENOISER].get("in_channels", TOKEN) == TOKEN

    def missing(self, header: Header) -> tuple[str, ...]:
        encoders = (component for component in self.encoders if not self.sizes(component, header))
        return (*super().missing(header), *encoders)

    def fits(self, component: str, header: Header) -> bool:
        return bool(self.sizes(component, header)) if component in self.encoders else told.holds_vae(header)

    def sizes(self, component: str, header: Header) -> Mapping[str, Any]:
        return told.sizes(component, header)

    def marks(self, header: Header) -> ComponentConfigs:
        return {component: self.sizes(component, header) for component in (DENOISER, *self.encoders)}

    def disagreement(self, configs: ComponentConfigs) -> tuple[str, str] | None:
        pairs = (
            ("clip_l", CLIP, "hidden_size", "pooled_projection_dim"),
            ("t5xxl", self.t5, "d_model", "joint_attention_dim"),
        )
        for setting, component, width, wanted in pairs:
            if component not in self.encoders or wanted not in configs[DENOISER]:
                continue
            has, takes = configs[component][width], configs[DENOISER][wanted]
            if has != takes:
                return setting, f"is {has} wide, and the transformer takes {takes}"
        return None

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames(
            base_model_version="flux1",
            architecture=f"flux-1-{self.variant(configs or CONFIGS)}",
            implementation="https://github.com/black-forest-labs/flux",
            network_module="networks.lora_flux",
            model_type=self.name,
        )

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        return adapter_targets(configs)

    def shapes(self, configs: ComponentConfigs) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        targets, config = self.targets(configs, conv=True), configs[DENOISER]
        axes = config.get("axes_dims_rope") or CONFIGS[DENOISER]["axes_dims_rope"]
        if sum(axes) != config["attention_head_dim"]:
            head = config["attention_head_dim"]
            raise ValueError(f"axes_dims_rope, {list(axes)}, does not add up to attention_head_dim, {head}")
        return {
            DENOISER: weights.as_diffusers(self.own_shapes(config, targets), targets),
            **({CLIP: text_shapes(configs[CLIP], projected=False)} if self.t5 != CLIP else {}),
            self.t5: weights.t5_shapes(configs[self.t5], targets, self.t5),
            "vae": vae_shapes(configs["vae"]),
        }

    def own_shapes(self, config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
        """Return the weights of the transformer that runs with their shapes."""
        return weights.transformer_shapes(config, targets)

    def original_name(self, name: str) -> str:
        """Return the name in the original's layout of a weight of the transformer that runs."""
        return original_name(name)

    def layouts(self, component: str, configs: ComponentConfigs, form: str) -> Iterable[Shapes]:
        plain = self.shapes(configs).get(component, {})
        if component == "vae":
            own = [*vae_layouts(plain, configs["vae"], form)]
            inside = {f"vae.{vae_name(name, configs['vae'])}": shape for name, shape in plain.items()}
            return own if form == FOLDER else [*own, inside]
        if form == FOLDER:
            return [plain]
        if component == DENOISER:
            shapes = self.own_shapes(configs[DENOISER], self.targets(configs, conv=True))
            there = {self.original_name(name): shape for name, shape in shapes.items()}
            behind = {told.PREFIX + name: shape for name, shape in there.items()}
            return [plain, there, behind]
        levels = ("",) if component == self.t5 else (LEVEL, "")
        before = [prefix + level for prefix in (*self.prefixes[component], "") for level in levels]
        return [{start + name: shape for name, shape in plain.items()} for start in before]

    def places(self, target: Target, configs: ComponentConfigs) -> Iterable[Place]:
        own = f"{target.path}.weight"
        if target.component == DENOISER:
            original = self.original_name(own)
            apart = Place(tuple(f"{path}.weight" for path in self.paths(target)))
            return *(Place((prefix + original,)) for prefix in ("", told.PREFIX)), apart
        levels = ("",) if target.component == self.t5 else (LEVEL, "")
        before = ("", *self.prefixes[target.component])
        return [Place((prefix + level + own,)) for prefix in before for level in levels]

    def paths(self, target: Target) -> tuple[str, ...]:
        if target.component == self.t5:
            return (target.path,)
        if target.component == CLIP:
            return (LEVEL + target.path,)
        return tuple(name.removesuffix(".weight") for name in diffusers_names(f"{target.path}.weight"))

    def side(self, configs: ComponentConfigs) -> int:
        return _SIDE

    def text_length(self, configs: ComponentConfigs) -> int:
        return DEV_LENGTH if configs[DENOISER]["guidance_embeds"] else SCHNELL_LENGTH

    def variant(self, configs: ComponentConfigs) -> str:
        return "dev" if configs[DENOISER]["guidance_embeds"] else "schnell"

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        from trainer.families.flux.bundle import Bundle, load_bundle
        from trainer.families.flux.checkpoint import Checkpoint

        small = config.in_few_bits(self.parts)
        given: dict[str, Any] = {"small": small, "device": device, "dtype": dtype, "progress": progress}
        return load_bundle(Bundle, Checkpoint, recognition, config, **given)
