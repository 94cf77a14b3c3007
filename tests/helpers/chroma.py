"""A tiny Chroma with random weights, in every form that people have it. T5, VAE and sizes are those of `flux`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from demo.build.single_file import vae_tensors
from tests.helpers import flux
from tests.helpers.flux import T5_SIZES, VAE_SIZES, vocabulary, write
from trainer.families.chroma.facts import CONFIGS, DENOISER, T5
from trainer.families.chroma.transformer import build_transformer
from trainer.families.chroma.weight_names import original_name
from trainer.families.flux.weight_names import diffusers_names

_LEFT_OUT = ("pooled_projection_dim", "guidance_embeds")
TRANSFORMER: dict[str, Any] = {
    **{key: value for key, value in flux.TRANSFORMER.items() if key not in _LEFT_OUT},
    "approximator_num_channels": 16,
    "approximator_hidden_dim": 40,
    "approximator_layers": 2,
}
FILES = {DENOISER: "chroma.safetensors", T5: "t5xxl.safetensors", "vae": "ae.safetensors"}
KEYS = {DENOISER: "pretrained_model_name_or_path", T5: "t5xxl", "vae": "vae"}
PREFIXES = {DENOISER: "model.diffusion_model.", T5: "text_encoders.t5xxl.transformer.", "vae": "vae."}


def modules(seed: int = 0) -> dict[str, nn.Module]:
    """Return all components, float32, in eval mode; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: dict[str, nn.Module] = {
            DENOISER: ChromaTransformer2DModel(**TRANSFORMER),
            T5: T5EncoderModel(T5Config(**T5_SIZES)),
            "vae": AutoencoderKL(**VAE_SIZES),
        }
    return {name: module.eval() for name, module in made.items()}


def original(transformer: nn.Module) -> dict[str, Tensor]:
    """Return a transformer's weights in the original's layout."""
    state = transformer.state_dict()
    ours = build_transformer(dict(transformer.config)).state_dict()
    return {original_name(own): torch.cat([state[name] for name in diffusers_names(own)]) for own in ours}


def parts(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return each component's weights as they lie in a file of its own."""
    made = modules(seed)
    vae = made["vae"]
    assert isinstance(vae, AutoencoderKL)
    found = {
        DENOISER: original(made[DENOISER]),
        T5: {name: value for name, value in made[T5].state_dict().items() if name != "encoder.embed_tokens.weight"},
        "vae": {name.removeprefix("first_stage_model."): value for name, value in vae_tensors(vae).items()},
    }
    return {name: {key: value.detach().clone() for key, value in each.items()} for name, each in found.items()}


def described() -> dict[str, Any]:
    """Return the configurations of which no header tells all."""
    vae = {name: value for name, value in AutoencoderKL(**VAE_SIZES).config.items() if not name.startswith("_")}
    return {DENOISER: TRANSFORMER, "vae": vae}


def write_files(folder: Path) -> dict[str, str]:
    """Write a file for each component and T5's vocabulary; return the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in parts().items():
        write(folder / FILES[name], tensors, {name: described().get(name, {})})
    vocabulary().save(str(folder / "tokenizer.json"))
    return {KEYS[name]: str(folder / file) for name, file in FILES.items()}


def write_checkpoint(path: Path) -> Path:
    """Write all components in one file, as ComfyUI has them, and T5's vocabulary beside it."""
    tensors = {PREFIXES[name] + key: value for name, each in parts().items() for key, value in each.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary().save(str(path.parent / "tokenizer.json"))
    return write(path, tensors, described())


def write_folder(folder: Path) -> Path:
    """Write the diffusers layout."""
    kinds = {
        DENOISER: ("diffusers", "ChromaTransformer2DModel"),
        T5: ("transformers", "T5EncoderModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    for name, module in modules().items():
        module.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(**CONFIGS["scheduler"]).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    vocabulary().save(str(folder / "tokenizer" / "tokenizer.json"))
    index = {"_class_name": "ChromaPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], **kinds}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
