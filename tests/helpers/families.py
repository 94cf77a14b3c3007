"""Tiny random models of every family with its real structure, in both layouts.

The blocks and the token tables' 49408 rows are those of the published models; widths and depths are small. Both
layouts made from one seed hold the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from demo.build.single_file import SCHEDULER_CONFIG, unet_keys, vae_tensors
from tests.helpers.checkpoints import TEXT_ENCODER, UNET, VAE


@dataclass(frozen=True)
class Tiny:
    """One family: its components' configurations, its diffusers pipeline, and where a file has its text encoders.

    `open_clip` names the text encoders that files have in OpenCLIP's layout; `extra_layers` is how many layers more
    than the model has are there.
    """

    pipeline: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: Mapping[str, Mapping[str, Any]]
    prefixes: Mapping[str, str]
    projected: tuple[str, ...] = ()
    open_clip: tuple[str, ...] = ()
    extra_layers: int = 0
    scheduler: Mapping[str, Any] = field(default_factory=lambda: dict(SCHEDULER_CONFIG))

    def modules(self, seed: int = 0) -> dict[str, nn.Module]:
        """Return all components, float32, in eval mode; the global generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: dict[str, nn.Module] = {}
            for name, config in self.text_encoders.items():
                kind = CLIPTextModelWithProjection if name in self.projected else CLIPTextModel
                made[name] = kind(CLIPTextConfig(**config))
            made["unet"] = UNet2DConditionModel(**self.unet)
            made["vae"] = AutoencoderKL(**self.vae)
        return {name: module.eval() for name, module in made.items()}

    def write_folder(self, folder: Path, *, seed: int = 0, variant: str | None = None) -> Path:
        """Write the diffusers layout into `folder` and return it; `variant` "fp16" as file names and dtype."""
        for name, module in self.modules(seed).items():
            module.half() if variant == "fp16" else module
            module.save_pretrained(folder / name, variant=variant)
        DDIMScheduler(**self.scheduler).save_pretrained(folder / "scheduler")
        index: dict[str, Any] = {"_class_name": self.pipeline, "scheduler": ["diffusers", "DDIMScheduler"]}
        index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
        for number, name in enumerate(self.text_encoders):
            kind = "CLIPTextModelWithProjection" if name in self.projected else "CLIPTextModel"
            index |= {name: ["transformers", kind]}
            index |= {"tokenizer_2" if number else "tokenizer": ["transformers", "CLIPTokenizer"]}
        (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
        return folder

    def write_file(self, path: Path, *, seed: int = 0, extra: Mapping[str, Tensor] | None = None) -> Path:
        """Write the original layout with the components' configurations in the header, and return the path."""
        tensors, metadata = self.original(seed), {"format": "pt", "component_configs": self.description()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in (tensors | dict(extra or {})).items()}, path, metadata)
        return path

    def write_ckpt(self, path: Path, *, seed: int = 0) -> Path:
        """Write a pickle of {"state_dict": ..., "component_configs": JSON} and return the path."""
        tensors = {name: value.clone() for name, value in self.original(seed).items()}
        torch.save({"state_dict": tensors, "component_configs": self.description()}, path)
        return path

    def configs(self) -> dict[str, Any]:
        """Return every component's configuration as diffusers and transformers take it."""
        return {"unet": self.unet, "vae": self.vae, "scheduler": self.scheduler, **self.text_encoders}

    def description(self) -> str:
        """Return the configurations as a file describes itself, with every default written out."""
        made = self.modules()
        full = {
            name: {key: value for key, value in made[name].config.items() if not key.startswith("_")}
            for name in ("unet", "vae")
        }
        return json.dumps({**self.configs(), **full})

    def original(self, seed: int = 0) -> dict[str, Tensor]:
        """Return every weight under its name in the original layout."""
        made = self.modules(seed)
        unet, vae = made["unet"], made["vae"]
        state = unet.state_dict()
        tensors = {name: state[key] for key, name in unet_keys(unet).items()} | vae_tensors(vae)
        for name, prefix in self.prefixes.items():
            state = {key.removeprefix("text_model."): value for key, value in made[name].state_dict().items()}
            if name in self.open_clip:
                layers = self.text_encoders[name]["num_hidden_layers"]
                tensors |= {prefix + key: value for key, value in open_clip(state, layers, self.extra_layers).items()}
            else:
                tensors |= {f"{prefix}text_model.{key}": value for key, value in state.items()}
        return {name: value.detach() for name, value in tensors.items()}


def open_clip(state: Mapping[str, Tensor], layers: int, extra_layers: int = 0) -> dict[str, Tensor]:
    """Return a text encoder's weights as OpenCLIP has them: joined attention, the projection the other way round."""
    width = state["final_layer_norm.weight"].shape[0]
    made = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T if "text_projection.weight" in state else torch.eye(width),
        "logit_scale": torch.ones(()),
    }
    renamed = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for number in range(layers + extra_layers):
        theirs = f"encoder.layers.{min(number, layers - 1)}"
        ours = f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            for name, old in renamed.items():
                made[f"{ours}.{name}.{kind}"] = state[f"{theirs}.{old}.{kind}"]
            parts = [state[f"{theirs}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
            made[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    return {name: value.clone() for name, value in made.items()}


WIDER = {
    **TEXT_ENCODER,
    "hidden_size": 48,
    "intermediate_size": 96,
    "projection_dim": 48,
    "num_hidden_layers": 4,
    "hidden_act": "gelu",
}

TINY = {
    "sd15": Tiny(
        pipeline="StableDiffusionPipeline",
        unet=UNET,
        vae=VAE,
        text_encoders={"text_encoder": TEXT_ENCODER},
        prefixes={"text_encoder": "cond_stage_model.transformer."},
    ),
    "sd2": Tiny(
        pipeline="StableDiffusionPipeline",
        unet={
            **UNET,
            "attention_head_dim": (2, 4, 4, 4),
            "use_linear_projection": True,
            "cross_attention_dim": 48,
        },
        vae=VAE,
        text_encoders={"text_encoder": WIDER},
        prefixes={"text_encoder": "cond_stage_model.model."},
        open_clip=("text_encoder",),
        extra_layers=1,
    ),
    "sdxl": Tiny(
        pipeline="StableDiffusionXLPipeline",
        unet={
            "sample_size": 8,
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 80,
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "layers_per_block": 1,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 96,
        },
        vae={**VAE, "scaling_factor": 0.13025},
        text_encoders={
            "text_encoder": TEXT_ENCODER,
            # Another width than the first: diffusers tells the two apart by it.
            "text_encoder_2": WIDER,
        },
        prefixes={
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
        projected=("text_encoder_2",),
        open_clip=("text_encoder_2",),
    ),
}
