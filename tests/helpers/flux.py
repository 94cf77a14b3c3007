"""A tiny FLUX.1 with random weights, in every form that people have it: folder, files of their own, one checkpoint.

The blocks are the real ones and the vocabulary of CLIP is; widths, depths and T5's vocabulary are small. All forms
made from one seed hold the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from demo.build.single_file import vae_tensors
from tests.helpers.checkpoints import TEXT_ENCODER, VAE
from tests.helpers.texts import vocabulary
from trainer.families.flux.facts import CLIP, DENOISER, SCHEDULER_CONFIG, T5
from trainer.families.flux.transformer import build_transformer
from trainer.families.flux.weight_names import SWAPPED, diffusers_names, original_name

TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.1,
}
VAE_SIZES: dict[str, Any] = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_SIZES = TEXT_ENCODER
FILES = {DENOISER: "flux.safetensors", CLIP: "clip_l.safetensors", T5: "t5xxl.safetensors", "vae": "ae.safetensors"}


def modules(seed: int = 0, *, guided: bool = True) -> dict[str, nn.Module]:
    """Return all components, float32, in eval mode; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: dict[str, nn.Module] = {
            DENOISER: FluxTransformer2DModel(**{**TRANSFORMER, "guidance_embeds": guided}),
            CLIP: CLIPTextModel(CLIPTextConfig(**CLIP_SIZES)),
            T5: T5EncoderModel(T5Config(**T5_SIZES)),
            "vae": AutoencoderKL(**VAE_SIZES),
        }
    return {name: module.eval() for name, module in made.items()}


def original(transformer: nn.Module) -> dict[str, Tensor]:
    """Return a transformer's weights in the original's layout."""
    state, made = transformer.state_dict(), {}
    for own in build_transformer(dict(transformer.config)).state_dict():
        value = torch.cat([state[name] for name in diffusers_names(own)])
        if own.startswith(SWAPPED):
            value = torch.cat(value.chunk(2)[::-1])
        made[original_name(own)] = value
    return made


def parts(seed: int = 0, *, guided: bool = True) -> dict[str, dict[str, Tensor]]:
    """Return each component's weights as they lie in a file of its own."""
    made = modules(seed, guided=guided)
    vae = made["vae"]
    assert isinstance(vae, AutoencoderKL)
    t5 = {name: value for name, value in made[T5].state_dict().items() if name != "encoder.embed_tokens.weight"}
    found = {
        DENOISER: original(made[DENOISER]),
        CLIP: {f"text_model.{name}": value for name, value in made[CLIP].state_dict().items()},
        T5: t5,
        "vae": {name.removeprefix("first_stage_model."): value for name, value in vae_tensors(vae).items()},
    }
    return {name: {key: value.detach().clone() for key, value in each.items()} for name, each in found.items()}


def described(guided: bool = True) -> dict[str, Any]:
    """Return the configurations of which no header tells all."""
    vae = {name: value for name, value in AutoencoderKL(**VAE_SIZES).config.items() if not name.startswith("_")}
    return {DENOISER: {**TRANSFORMER, "guidance_embeds": guided}, CLIP: CLIP_SIZES, "vae": vae}


def write_files(folder: Path, *, seed: int = 0, guided: bool = True) -> dict[str, str]:
    """Write a file for each component and T5's vocabulary; return the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in parts(seed, guided=guided).items():
        write(folder / FILES[name], tensors, {name: described(guided).get(name, {})})
    vocabulary().save(str(folder / "tokenizer.json"))
    keys = {DENOISER: "pretrained_model_name_or_path", CLIP: "clip_l", T5: "t5xxl", "vae": "vae"}
    return {keys[name]: str(folder / file) for name, file in FILES.items()}


def write(path: Path, tensors: Mapping[str, Tensor], configs: Mapping[str, Any]) -> Path:
    """Write a file that describes itself."""
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        path,
        {"format": "pt", "component_configs": json.dumps(configs)},
    )
    return path


def write_checkpoint(path: Path, *, seed: int = 0) -> Path:
    """Write all components in one file, as ComfyUI has them, and T5's vocabulary beside it."""
    prefixes = {
        DENOISER: "model.diffusion_model.",
        CLIP: "text_encoders.clip_l.transformer.",
        T5: "text_encoders.t5xxl.transformer.",
        "vae": "vae.",
    }
    tensors = {prefixes[name] + key: value for name, each in parts(seed).items() for key, value in each.items()}
    tensors["text_encoders.clip_l.logit_scale"] = torch.ones(())
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary().save(str(path.parent / "tokenizer.json"))
    return write(path, tensors, described())


def write_folder(folder: Path, *, seed: int = 0) -> Path:
    """Write the diffusers layout."""
    kinds = {
        DENOISER: ("diffusers", "FluxTransformer2DModel"),
        CLIP: ("transformers", "CLIPTextModel"),
        T5: ("transformers", "T5EncoderModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    for name, module in modules(seed).items():
        module.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
    (folder / "tokenizer_2").mkdir()
    vocabulary().save(str(folder / "tokenizer_2" / "tokenizer.json"))
    index = {"_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], **kinds}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
