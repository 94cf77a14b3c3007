"""Pretraining of the VAE, and its latents brought to mean 0 and deviation 1 at the usual scaling factor."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from demo.build import dataset
from demo.build.models import LATENT_CHANNELS, LATENT_SCALE, new_vae
from demo.build.pair import Budget, descend, rate, run_together, running_mean

LOGGER = logging.getLogger(__name__)
PEAK_RATE = 2e-3
WARMUP = 30
SMALL_CROP = 32
SMALL_BATCH = 16
SMALL_SHARE = 0.5
WHOLE_BATCH = 8
KL_WEIGHT = 3e-4
EDGE_WEIGHT = 0.5
SAVE_EVERY = 200
FILE = "vae.pt"
DECODER_RATE = 1e-3
DECODER_BATCH = 8
DECODER_MEMORY = 0.995
LOG_WEIGHT = 0.1
LOG_FLOOR = 1e-4


def prepare(vae: AutoencoderKL) -> None:
    """Start values: little posterior noise at first, and unit gain through the layers outside the resnets."""
    with torch.no_grad():
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
        vae.quant_conv.bias[LATENT_CHANNELS:] = -5.0
        for name, module in vae.named_modules():
            outside = ("conv_in", "conv_out", "conv_shortcut", "samplers", "quant_conv")
            if isinstance(module, nn.Conv2d) and any(word in name for word in outside):
                part = module.weight[:LATENT_CHANNELS] if name == "quant_conv" else module.weight
                part *= 3**0.5


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """L1 + L2 + half the L1 of neighbouring differences + a little KL; pixels [b, 3, h, w] in [-1, 1]."""
    posterior = vae.encode(pixels).latent_dist
    drawn = vae.decode(posterior.sample()).sample
    error = drawn - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
    return error.abs().mean() + error.square().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * divergence


def _batch(pixels: Tensor, draws: torch.Generator, *, small: bool) -> Tensor:
    """Random pictures, mirrored at random; small ones are crops, four times as cheap, for the first part."""
    chosen = torch.randint(len(pixels), (SMALL_BATCH if small else WHOLE_BATCH,), generator=draws)
    batch = dataset.as_pixels(pixels[chosen].numpy())
    if torch.rand((), generator=draws) < 0.5:
        batch = batch.flip(-1)
    if not small:
        return batch
    top, left = torch.randint(batch.shape[-1] - SMALL_CROP + 1, (2,), generator=draws).tolist()
    return batch[..., top : top + SMALL_CROP, left : left + SMALL_CROP]


def _train(rank: int, work: Path, budget: Budget, seed: int) -> None:
    torch.manual_seed(seed)
    vae = new_vae()
    prepare(vae)
    torch.manual_seed(seed + 1 + rank)
    draws = torch.Generator().manual_seed(seed + 1 + rank)
    pixels = torch.cat([torch.from_numpy(dataset.read(name, work).pictures) for name in ("train", "abstract")])
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    started, smooth, progress, step = time.process_time(), 0.0, 0.0, 0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, step, peak=PEAK_RATE, warmup=WARMUP)
        loss = reconstruction_loss(vae, _batch(pixels, draws, small=progress < SMALL_SHARE))
        descend(optimizer, loss, parameters)
        step += 1
        progress = budget.progress(step, started)
        smooth = float(loss.detach()) if step == 1 else 0.95 * smooth + 0.05 * float(loss.detach())
        if rank == 0 and (step % SAVE_EVERY == 0 or progress >= 1):
            LOGGER.info("vae step %d progress %.3f loss %.4f", step, progress, smooth)
            torch.save(vae.state_dict(), work / FILE)


def chunks(pixels: Tensor, size: int = 50) -> Iterator[Tensor]:
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


@torch.no_grad()
def normalise(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Folds mean and deviation of the latents into the 1x1 convolutions around them.

    Afterwards ``LATENT_SCALE * latents`` has mean 0 and deviation 1 in each channel; what decodes is unchanged.
    """
    means = torch.cat([vae.encode(part).latent_dist.mean for part in chunks(pixels)])
    centre = means.mean(dim=(0, 2, 3))
    factor = 1 / (LATENT_SCALE * means.std(dim=(0, 2, 3)))
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.weight[:LATENT_CHANNELS] *= factor[:, None, None, None]
    inward.bias[:LATENT_CHANNELS] = (inward.bias[:LATENT_CHANNELS] - centre) * factor
    inward.bias[LATENT_CHANNELS:] += 2 * factor.log()
    outward.bias += (outward.weight[:, :, 0, 0] * centre).sum(dim=1)
    outward.weight /= factor[None, :, None, None]


@torch.no_grad()
def peak_signal_to_noise(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Mean PSNR in dB of the round trip over pixels [count, 3, h, w] in [-1, 1]."""
    errors = [
        F.mse_loss(vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1), part, reduction="none")
        for part in chunks(pixels)
    ]
    return float((10 * (4 / torch.cat(errors).mean(dim=(1, 2, 3))).log10()).mean())


def read_vae(work: Path = dataset.WORK) -> AutoencoderKL:
    """The trained VAE of the work folder."""
    vae = new_vae()
    vae.load_state_dict(torch.load(work / FILE, weights_only=True))
    return vae.eval().requires_grad_(False)


def distortion(drawn: Tensor, pixels: Tensor) -> Tensor:
    """What PSNR counts, the mean over pictures of log L2, beside L1 and edges; all [b, 3, h, w] in [-1, 1]."""
    error = drawn - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    squares = error.square().mean(dim=(1, 2, 3))
    return LOG_WEIGHT * (squares + LOG_FLOOR).log().mean() + error.abs().mean() + EDGE_WEIGHT * edges


def decoder_parameters(vae: AutoencoderKL) -> dict[str, nn.Parameter]:
    """What comes after the latents, by its name in the VAE."""
    after = ("decoder.", "post_quant_conv.")
    return {name: value for name, value in vae.named_parameters() if name.startswith(after)}


def _refine(rank: int, work: Path, budget: Budget, seed: int) -> None:
    vae = read_vae(work).to(memory_format=torch.channels_last)
    named = decoder_parameters(vae)
    parameters = [value.requires_grad_(True) for value in named.values()]
    mean = {name: value.detach().clone() for name, value in named.items()}
    optimizer = torch.optim.AdamW(parameters, lr=DECODER_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    torch.manual_seed(seed + rank)
    pictures = torch.cat([torch.from_numpy(dataset.read(name, work).pictures) for name in ("train", "abstract")])
    held_out = dataset.as_pixels(dataset.read("held_out", work).pictures[:100])
    started, progress, step = time.process_time(), 0.0, 0
    while progress < 1:
        optimizer.param_groups[0]["lr"] = rate(progress, step, peak=DECODER_RATE, warmup=WARMUP)
        pixels = dataset.as_pixels(pictures[torch.randint(len(pictures), (DECODER_BATCH,))].numpy())
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample()
        with torch.autocast("cpu", torch.bfloat16):  # a third faster, and far finer than what is left to learn
            drawn = vae.decode(latents).sample
        loss = distortion(drawn.float(), pixels)
        descend(optimizer, loss, parameters)
        step += 1
        running_mean(mean, parameters, step, DECODER_MEMORY)
        progress = budget.progress(step, started)
        if rank == 0 and (step % SAVE_EVERY == 0 or progress >= 1):
            current = {name: value.detach().clone() for name, value in named.items()}
            vae.load_state_dict(mean, strict=False)
            torch.save(vae.state_dict(), work / (FILE + ".part"))
            (work / (FILE + ".part")).replace(work / FILE)
            heard = peak_signal_to_noise(vae, held_out)
            vae.load_state_dict(current, strict=False)
            LOGGER.info("decoder step %d progress %.3f held-out %.2f dB", step, progress, heard)


def refine_decoder(work: Path, budget: Budget, seed: int = 12, *, processes: int = 2) -> None:
    """Trains the decoder on alone: latents stay what they are, and with them every UNet and LoRA made for them."""
    run_together(_refine, work, budget, seed, processes=processes)
    held_out = dataset.as_pixels(dataset.read("held_out", work).pictures)
    LOGGER.info("PSNR captioned %.2f dB", peak_signal_to_noise(read_vae(work), held_out))


def train_vae(work: Path, budget: Budget, seed: int = 11) -> None:
    """Trains the VAE into the work folder, its latents normalised, and logs its PSNR on held-out pictures."""
    run_together(_train, work, budget, seed)
    vae = read_vae(work)
    normalise(vae, dataset.as_pixels(dataset.read("train", work).pictures[:1000]))
    torch.save(vae.state_dict(), work / FILE)
    held_out = dataset.as_pixels(dataset.read("held_out", work).pictures)
    LOGGER.info("PSNR captioned %.2f dB", peak_signal_to_noise(vae, held_out))
