"""A tiny Anima with random weights, in every form that people have it. T5's vocabulary is that of `flux`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from tests.helpers import flux
from tests.helpers.flux import write
from trainer.families.anima.facts import CONDITIONER, CONFIGS, DENOISER, TEXT, VAE_CONFIG
from trainer.families.anima.vae_names import original_name as vae_name
from trainer.families.anima.weight_names import original_name

TRANSFORMER: dict[str, Any] = {
    **CONFIGS[DENOISER],
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 32,
    "adaln_lora_dim": 8,
}
ADAPTER: dict[str, Any] = {
    **CONFIGS[CONDITIONER],
    "source_dim": 40,
    "target_dim": 32,
    "model_dim": 32,
    "num_layers": 1,
    "num_attention_heads": 2,
    "mlp_ratio": 2.0,
    "target_vocab_size": 160,
    "min_sequence_length": 32,
}
QWEN_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "use_cache": False,
}
VAE_SIZES: dict[str, Any] = {
    **{key: list(value) if isinstance(value, tuple) else value for key, value in VAE_CONFIG.items()},
    "base_dim": 8,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
}
SIZES = {DENOISER: TRANSFORMER, CONDITIONER: ADAPTER, TEXT: QWEN_SIZES, "vae": VAE_SIZES}
FILES = {DENOISER: "anima.safetensors", TEXT: "qwen_3_06b.safetensors", "vae": "qwen_image_vae.safetensors"}
KEYS = {DENOISER: "pretrained_model_name_or_path", TEXT: "qwen3", "vae": "vae"}
_PREFIXES = {
    DENOISER: "model.diffusion_model.",
    TEXT: "text_encoders.qwen3_06b.transformer.model.",
    "vae": "vae.",
}


def modules(seed: int = 0) -> dict[str, nn.Module]:
    """Return all components, float32, in eval mode; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: dict[str, nn.Module] = {
            DENOISER: CosmosTransformer3DModel(**TRANSFORMER),
            CONDITIONER: AnimaTextConditioner(**ADAPTER),
            TEXT: Qwen3Model(Qwen3Config(**QWEN_SIZES)),
            "vae": AutoencoderKLQwenImage(**VAE_SIZES),
        }
        with torch.no_grad():
            # transformers begins with weights of which next to nothing comes.
            for parameter in made[TEXT].parameters():
                parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
    return {name: module.eval() for name, module in made.items()}


def qwen_vocabulary() -> Tokenizer:
    """Return a small vocabulary of Qwen's kind: bytes, a few pairs of them, and what fills up a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t"), ("r", "e"), ("Ġ", "c")]
    words = [*letters, *("".join(pair) for pair in merges)]
    made = Tokenizer(BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return made


def parts(seed: int = 0, start: str = "") -> dict[str, dict[str, Tensor]]:
    """Return each component's weights as they lie in a file of its own; `start` is before those of the transformer."""
    made = modules(seed)
    found = {
        DENOISER: {
            **{start + original_name(name): value for name, value in made[DENOISER].state_dict().items()},
            **{f"{start}llm_adapter.{name}": value for name, value in made[CONDITIONER].state_dict().items()},
        },
        TEXT: dict(made[TEXT].state_dict()),
        "vae": {vae_name(name, VAE_SIZES): value for name, value in made["vae"].state_dict().items()},
    }
    return {name: {key: value.detach().clone() for key, value in each.items()} for name, each in found.items()}


def write_vocabularies(folder: Path) -> None:
    """Write the vocabularies of Qwen3 and T5 where they are looked for."""
    for name, made in (("tokenizer", qwen_vocabulary()), ("t5_tokenizer", flux.vocabulary())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        made.save(str(folder / name / "tokenizer.json"))


def write_files(folder: Path) -> dict[str, str]:
    """Write a file for each component, as published, and vocabularies; return the settings that name them."""
    write_vocabularies(folder)
    told = {DENOISER: {DENOISER: TRANSFORMER, CONDITIONER: ADAPTER}, "vae": {"vae": VAE_SIZES}}
    for name, tensors in parts(start="net.").items():
        if name == TEXT:
            tensors = {f"model.{key}": value for key, value in tensors.items()}
        write(folder / FILES[name], tensors, told.get(name, {}))
    return {KEYS[name]: str(folder / file) for name, file in FILES.items()}


def write_checkpoint(path: Path) -> Path:
    """Write all components in one file, as ComfyUI has them, and the vocabularies beside it."""
    write_vocabularies(path.parent)
    tensors = {_PREFIXES[name] + key: value for name, each in parts().items() for key, value in each.items()}
    return write(path, tensors, SIZES)


def write_folder(folder: Path) -> Path:
    """Write the diffusers layout."""
    for name, module in modules().items():
        module.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(**CONFIGS["scheduler"]).save_pretrained(folder / "scheduler")
    write_vocabularies(folder)
    index = {"_class_name": "AnimaModularPipeline", "_blocks_class_name": "AnimaAutoBlocks"}
    (folder / "modular_model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
