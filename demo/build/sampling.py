"""Pictures from the demo model (with or without a LoRA), and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from demo.build.models import LATENT_CHANNELS, LATENT_SCALE, LATENT_SIZE, tokenize
from demo.build.single_file import SCHEDULER_CONFIG

STEPS = 25
GUIDANCE = 4.0


@dataclass(frozen=True, slots=True)
class Model:
    """The three parts, ready for inference."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel

    def context(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings [b, 77, width]."""
        hidden: Tensor = self.text(input_ids=tokenize(list(captions))).last_hidden_state
        return hidden


def _to_pictures(pixels: Tensor) -> NDArray[np.uint8]:
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return np.asarray(scaled.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def sample(
    model: Model, captions: Sequence[str], *, seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> NDArray[np.uint8]:
    """One picture [64, 64, 3] for each caption, by DDIM with classifier-free guidance; noise from ``seed``."""
    scheduler = DDIMScheduler.from_config(SCHEDULER_CONFIG)
    scheduler.set_timesteps(steps)
    draws = torch.Generator().manual_seed(seed)
    latents = torch.randn((len(captions), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), generator=draws)
    context = torch.cat([model.context([""]).expand(len(captions), -1, -1), model.context(captions)])
    for timestep in scheduler.timesteps:
        free, guided = model.unet(torch.cat([latents, latents]), timestep, context).sample.chunk(2)
        latents = scheduler.step(free + guidance * (guided - free), timestep, latents).prev_sample
    return _to_pictures(model.vae.decode(latents / LATENT_SCALE).sample)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels [b, 3, h, w] through the VAE and back."""
    return _to_pictures(vae.decode(vae.encode(pixels).latent_dist.mean).sample)


def sheet(pictures: Sequence[NDArray[np.uint8]], columns: int) -> Image.Image:
    """The pictures side by side, row by row, with a thin gap."""
    height, width = (side + 2 for side in pictures[0].shape[:2])
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * width + 2, rows * height + 2), (60, 60, 60))
    for place, picture in enumerate(pictures):
        canvas.paste(Image.fromarray(picture), (place % columns * width + 2, place // columns * height + 2))
    return canvas


def save_sheet(path: Path, pictures: Sequence[NDArray[np.uint8]], columns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, columns).save(path, optimize=True)
