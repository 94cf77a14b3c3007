"""What is measured on: models of the real structure with random weights, and pictures. Made here, without a network."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from demo.build.single_file import SCHEDULER_CONFIG, write_single_file
from trainer.families import FAMILIES

PROJECT = Path(__file__).resolve().parent.parent
DEMO = PROJECT / "demo" / "model.safetensors"

_SD15, _SDXL = FAMILIES["sd15"].configs, FAMILIES["sdxl"].configs
_TEXT = {**_SD15["text_encoder"], "hidden_size": 192, "intermediate_size": 768, "projection_dim": 192}
_NARROW = {"block_out_channels": (80, 160, 320, 320), "norm_num_groups": 16, "sample_size": 32}
_VAE = {"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 16, "sample_size": 256}

_QUARTER = {
    "unet": {
        **_SDXL["unet"],
        **_NARROW,
        "block_out_channels": (80, 160, 320),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": 512,
        "projection_class_embeddings_input_dim": 320 + 6 * 256,
    },
    "vae": {**_SDXL["vae"], **_VAE},
    "text_encoder": _TEXT,
    "text_encoder_2": {
        **_SDXL["text_encoder_2"],
        "hidden_size": 320,
        "intermediate_size": 1280,
        "projection_dim": 320,
        "num_hidden_layers": 8,
    },
}
_SMALL = {"block_out_channels": (32, 64, 64), "layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2)}

MODELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sd15-quarter": {
        "unet": {**_SD15["unet"], **_NARROW, "cross_attention_dim": 192},
        "vae": {**_SD15["vae"], **_VAE},
        "text_encoder": _TEXT,
    },
    "sdxl-quarter": _QUARTER,
    "sdxl-small": {**_QUARTER, "unet": {**_QUARTER["unet"], **_SMALL}},
    "sd15": {name: _SD15[name] for name in ("unet", "vae", "text_encoder")},
    "sdxl": {name: _SDXL[name] for name in ("unet", "vae", "text_encoder", "text_encoder_2")},
}
"""Component configurations by name: the published layouts at a quarter of their width, smaller still, as they are."""

_HALVED = ("sd15", "sdxl")
"""Written in half precision, as those of real size are published."""


def model(name: str, folder: Path) -> Path:
    """Return a checkpoint: "tiny" is the demo's, those of MODELS are written into `folder` once and kept.

    SD 1.5 is a single file in the original layout, SDXL a diffusers folder; half precision at their real size.
    """
    if name == "tiny":
        return DEMO
    path = folder / (name if "text_encoder_2" in MODELS[name] else f"{name}.safetensors")
    if path.exists():
        return path
    waiting = path.with_name(f"{os.getpid()}-{path.name}")
    modules = random_modules(MODELS[name], device="cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if name in _HALVED else torch.float32
    modules = {part: module.to("cpu", dtype) for part, module in modules.items()}
    if path.suffix:
        write_single_file(waiting, modules["unet"], modules["vae"], modules["text_encoder"], dtype)
    else:
        _write_folder(waiting, modules)
    os.replace(waiting, path)
    return path


def random_modules(
    configs: Mapping[str, Mapping[str, Any]], seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return diffusers' and transformers' modules, float32, in eval mode, made where they are to lie."""
    makers: dict[str, Any] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
    }
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return {name: makers[name](dict(config)).eval() for name, config in configs.items() if name in makers}


def _write_folder(folder: Path, modules: Mapping[str, Any]) -> None:
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    DDIMScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
    parts = {name: ["", type(module).__name__] for name, module in modules.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", **parts}))


def pictures(folder: Path, count: int, size: tuple[int, int], *, repeats: int = 1, form: str = "png") -> Path:
    """Write `count` pictures with captions below `folder` in kohya's layout, and return `folder`.

    They are smooth with some noise, so that files and decoding are of the size and effort of photographs.
    """
    inside = folder / f"{repeats}_sks thing"
    inside.mkdir(parents=True)
    rng = random.Random(0)
    for index in range(count):
        small = Image.frombytes("RGB", (16, 16), rng.randbytes(16 * 16 * 3)).resize(size, Image.Resampling.BICUBIC)
        grain = Image.effect_noise(size, 20).convert("RGB")
        Image.blend(small, grain, 0.1).save(inside / f"{index:04d}.{form}", quality=90)
        (inside / f"{index:04d}.txt").write_text(f"sks thing, number {index}, red, large, on a table")
    return folder


def settings(checkpoint: Path, data: Path, output: Path, **changed: object) -> dict[str, object]:
    """Return the settings of a run of one bucket that neither saves, validates nor keeps a state before its end."""
    return {
        "pretrained_model_name_or_path": str(checkpoint),
        "train_data_dir": str(data),
        "output_dir": str(output),
        "output_name": "benchmark",
        "resolution": "256,256",
        "enable_bucket": False,
        "network_dim": 16,
        "network_alpha": 16.0,
        "learning_rate": 1e-4,
        "text_encoder_lr": 0.0,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "train_batch_size": 1,
        "mixed_precision": "no",
        "save_precision": "float",
        "save_every_n_epochs": None,
        "max_train_epochs": None,
        "max_train_steps": 20,
        "seed": 42,
        "max_validation_share": 0.0,
        **changed,
    }
