"""What the entries of Stable Diffusion families have in common. No torch until `load`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.families.family import FILE, ComponentConfigs, Family, Place, Recognition
from trainer.families.reading.folders import Shapes
from trainer.families.reading.headers import Header
from trainer.families.unet import weights
from trainer.families.unet.facts import (
    EITHER_QUESTION,
    EPSILON,
    FIRST_CONV,
    LATENT_CHANNELS,
    UNET_PREFIX,
    VELOCITY,
    StableFacts,
)
from trainer.families.unet.places import LEVEL, places
from trainer.families.unet.targets import adapter_targets
from trainer.ground.control import Progress
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle


SIZED, CONVOLVED = "sized", "convolved"
"""Structures of UNets: told sizes, as SDXL's; or with convolutions around its attention, as that of SD 1.x."""

_BARE_FIRST_CONV = FIRST_CONV.removeprefix(UNET_PREFIX)
_OTHERS = ("cond_stage_model.", "conditioner.", "control", "edm_")
_UPWARD = (f"{UNET_PREFIX}output_blocks.", "output_blocks.", "up_blocks.")
_TOLD = (f"{UNET_PREFIX}label_emb.", "label_emb.", "add_embedding.", "class_embedding.")
_FIRST_ATTENTION = (f"{UNET_PREFIX}input_blocks.1.1.", "input_blocks.1.1.", "down_blocks.0.attentions.")


class StableFamily(Family):
    """A family with a latent UNet and CLIP text encoders. Its folder has a module `bundle` with a class `Bundle`."""

    facts: ClassVar[StableFacts]

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        return adapter_targets(self.facts, configs, conv=conv)

    def targets_of(self, recognition: Recognition, *, conv: bool) -> tuple[Target, ...]:
        return adapter_targets(self.facts, recognition.configs, conv=conv, single_file=recognition.form == FILE)

    def places(self, target: Target, configs: ComponentConfigs) -> Iterable[Place]:
        return places(self.facts, target, configs)

    def paths(self, target: Target) -> tuple[str, ...]:
        return (target.path if target.component == "unet" else LEVEL + target.path.removeprefix(LEVEL),)

    def shapes(self, configs: ComponentConfigs) -> Mapping[str, Shapes]:
        return {
            "unet": weights.unet_shapes(configs["unet"]),
            "vae": weights.vae_shapes(configs["vae"]),
            **{
                each.component: weights.text_shapes(configs[each.component], projected=each.projected)
                for each in self.facts.text_encoders
            },
        }

    def layouts(self, component: str, configs: ComponentConfigs, form: str) -> Iterable[Shapes]:
        shapes, config = self.shapes(configs)[component], configs[component]
        encoder = next((each for each in self.facts.text_encoders if each.component == component), None)
        if encoder is not None:
            return weights.text_layouts(shapes, encoder, form)
        made = weights.vae_layouts if component == "vae" else weights.unet_layouts
        return made(shapes, config, form)

    def side(self, configs: ComponentConfigs) -> int:
        size = configs.get("unet", {}).get("sample_size") or 0
        return int(max(size) if isinstance(size, list | tuple) else size) * self.latents.factor

    def variant(self, configs: ComponentConfigs) -> str:
        scheduler = configs.get("scheduler", {})
        words = []
        if scheduler.get("prediction_type") == VELOCITY:
            words.append("v-prediction")
        if scheduler.get("rescale_betas_zero_snr"):
            words.append("zero terminal SNR")
        return ", ".join(words)

    def missing(self, header: Header) -> tuple[str, ...]:
        encoders = [each.component for each in self.facts.text_encoders if not header.has(each.original)]
        return (*super().missing(header), *encoders)

    def fits(self, component: str, header: Header) -> bool:
        if component not in {each.component for each in self.facts.text_encoders}:
            return super().fits(component, header)
        return header.has("text_model.embeddings.", "embeddings.token_embedding.", "token_embedding.")

    def marks(self, header: Header) -> ComponentConfigs:
        # NoobAI's makers began the custom of empty tensors named v_pred and ztsnr, which ComfyUI and web UIs read.
        said = {header.metadata.get(f"modelspec.{key}", "") for key in ("prediction_type", "predict_key")}
        marks: dict[str, Any] = {}
        if "v_pred" in header.shapes or said & {"v", VELOCITY}:
            marks["prediction_type"] = VELOCITY
        elif EPSILON in said:
            marks["prediction_type"] = EPSILON
        if "ztsnr" in header.shapes:
            marks["rescale_betas_zero_snr"] = True
        return {"scheduler": marks}

    def questions(self, configs: ComponentConfigs) -> tuple[str, ...]:
        unsaid = self.facts.predicts_either and "prediction_type" not in configs["scheduler"]
        return (EITHER_QUESTION,) if unsaid else ()

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        from trainer.families.unet.bundle import load_bundle

        made = import_module(f"{type(self).__module__}.bundle").Bundle
        return load_bundle(
            made,
            recognition,
            config,
            small=config.in_few_bits(self.parts),
            device=device,
            dtype=dtype,
            progress=progress,
        )


def unet_alone(header: Header) -> str:
    """Return of which structure the UNet is that a file consists of, in either layout; "" for other files.

    A ControlNet has the half of it that goes down; an unCLIP model is told something too, and attends at every level.
    """
    names = header.shapes
    first = next((names[name] for name in (FIRST_CONV, _BARE_FIRST_CONV, "conv_in.weight") if name in names), ())
    other = header.has(*_OTHERS) or any(".motion_modules." in name for name in names)
    if first[1:2] != (LATENT_CHANNELS,) or other or not header.has(*_UPWARD):
        return ""
    if header.has(*_TOLD):
        return "" if header.has(*_FIRST_ATTENTION) else SIZED
    inward = next((shape for name, shape in names.items() if name.endswith(".proj_in.weight")), ())
    return CONVOLVED if len(inward) == 4 else ""


def input_channels(header: Header) -> int:
    """Return how many channels the UNet of a single file takes; 0 where there is none."""
    shape = header.shapes.get(FIRST_CONV, ())
    return shape[1] if len(shape) > 1 else 0
