"""Drawing sample pictures with the model as it is being trained.

The loop is small on purpose: text encoding, chunks and clip skip are the bundle's own, so a sample shows what training
sees. Guidance is Ho & Salimans 2022, "Classifier-Free Diffusion Guidance".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from trainer.families.bundle import Bundle
from trainer.families.text.tokens import as_batch
from trainer.ground.control import Progress
from trainer.ground.files import replacing
from trainer.preview.prompts import SampleRequest
from trainer.preview.schedulers import make_scheduler

_PHASE = "drawing samples"

_Predict = Callable[[Tensor, Tensor], Tensor]
"""Latents and timestep -> the model's prediction, guided."""


def sample(
    bundle: Bundle,
    request: SampleRequest,
    *,
    progress: Progress | None = None,
    texts: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Image.Image:
    """Draw one picture. It is a function of the weights and the request; all random numbers come from the CPU.

    The models' modes and the global random numbers are left as they were found.

    Args:
        progress: called with ("drawing samples", done, steps) before the first step and after each.
        texts: prompts that were encoded before, without a batch dimension; the text encoders see the others.

    Raises:
        Stopped: `progress` asked for it.
    """
    report = progress or (lambda _phase, _done, _total: None)
    with torch.no_grad(), left_as_found(bundle):
        latents = _denoise(bundle, request, _guided(bundle, request, texts or {}), report)
        pixels = bundle.decode_latents(latents)
    return to_picture(pixels[0])


def save_picture(picture: Image.Image, request: SampleRequest, path: Path) -> None:
    """Write a PNG with its prompt and parameters in the text entry "parameters", at once or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    entries = PngInfo()
    entries.add_itxt("parameters", request.parameters)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=entries)


def to_picture(pixels: Tensor) -> Image.Image:
    """Turn float [3, H, W] in [-1, 1] into an 8-bit RGB picture."""
    values = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def _denoise(bundle: Bundle, request: SampleRequest, predict: _Predict, report: Progress) -> Tensor:
    """Go from noise to latents; returns [1, c, h, w] float32."""
    process = bundle.process
    shape = bundle.latents.shape((request.width, request.height))
    scheduler = make_scheduler(request.sampler, process)
    scheduler.set_timesteps(**process.sampling_steps(request.steps, shape), device=bundle.device)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    # Samplers without randomness of their own take no generator.
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    latents = torch.randn((1, *shape), generator=generator).to(bundle.device) * scheduler.init_noise_sigma
    total = len(scheduler.timesteps)
    report(_PHASE, 0, total)
    for number, timestep in enumerate(scheduler.timesteps, 1):
        prediction = predict(scheduler.scale_model_input(latents, timestep), process.told(timestep))
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        report(_PHASE, number, total)
    return latents


def _guided(bundle: Bundle, request: SampleRequest, texts: Mapping[str, Mapping[str, Tensor]]) -> _Predict:
    """Return the prediction for the prompt, pushed away from that for the negative prompt by the guidance scale."""
    guides = request.scale > 1
    prompts = [request.negative_prompt, request.prompt] if guides else [request.prompt]
    text = _text(bundle, prompts, texts)
    told = bundle.conditions.of_sample((request.width, request.height), request.guidance)
    conditions = {name: value.expand(len(prompts), *value.shape).to(bundle.device) for name, value in told.items()}

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        inputs, steps = latents.expand(len(prompts), *latents.shape[1:]), timestep.expand(len(prompts))
        predictions = bundle.predict(inputs, steps, text, conditions).float()
        if not guides:
            return predictions
        away, towards = predictions.chunk(2)
        return away + request.scale * (towards - away)

    return predict


def _text(bundle: Bundle, prompts: Sequence[str], texts: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    if all(prompt in texts for prompt in prompts):
        found = [texts[prompt] for prompt in prompts]
        return {name: torch.stack([text[name] for text in found]).to(bundle.device) for name in found[0]}
    # Each alone, as captions are, so that a prompt's states do not depend on its company.
    rows = [bundle.encode_text(as_batch(bundle.tokenize(prompt))) for prompt in prompts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@contextmanager
def left_as_found(bundle: Bundle) -> Iterator[None]:
    """Put every module in eval mode, and restore modes and global random numbers at the end."""
    training = [part for module in bundle.components.values() for part in module.modules() if part.training]
    devices = [bundle.device] if bundle.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True
