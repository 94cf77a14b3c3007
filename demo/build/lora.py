"""What a LoRA trained on the demo has learnt and what it has forgotten, in figures and as a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from demo.build import dataset
from demo.build.concept import THRESHOLD, UNSEEN, held_out_scenes, template_scores, with_trigger
from demo.build.denoiser import add_noise, signal_share
from demo.build.drawing import draw
from demo.build.marks import Marks
from demo.build.models import LATENT_SCALE, tokenize, tokenizer
from demo.build.sampling import Model, round_trip, sample
from demo.build.single_file import SCHEDULER_CONFIG, read_single_file

PROMPTS = tuple(
    f"{size} emblem on {'an' if name == 'orange' else 'a'} {name} background"
    for size in ("an", "a big")
    for name in UNSEEN
)
SAMPLES_EACH = 4
LOSS_TIMESTEPS = tuple(range(50, 1000, 100))
PRIOR_COUNT = 48


@dataclass(frozen=True, slots=True)
class Learnt:
    """Scores are template scores' means, hits the share above the threshold; losses are mean squared errors.

    Marks are the share of the concept's four marks that the samples show, with the trigger word and without it.
    """

    with_trigger: float
    hits: float
    marks: float
    without_trigger: float
    marks_without: float
    concept_loss: float
    prior_loss: float


def load_model(path: Path, lora: Path | None = None) -> Model:
    """The demo model from its file; a LoRA is put on by diffusers' own loader, as a user's program would do."""
    unet, vae, text = read_single_file(path)
    if lora is not None:
        from diffusers import StableDiffusionPipeline  # takes seconds, which the pretraining need not spend

        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler.from_config(SCHEDULER_CONFIG),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.load_lora_weights(str(lora))
    return Model(unet, vae, text)


@torch.no_grad()
def loss_at_fixed_noise(model: Model, pictures: NDArray[np.uint8], captions: Sequence[str]) -> float:
    """Mean squared error of the predicted noise over ten timesteps; noise from a fixed seed."""
    latents: Tensor = model.vae.encode(dataset.as_pixels(pictures)).latent_dist.mean * LATENT_SCALE
    context = model.text(input_ids=tokenize(list(captions))).last_hidden_state
    draws, share, errors = torch.Generator().manual_seed(51), signal_share(), []
    for timestep in LOSS_TIMESTEPS:
        noise = torch.randn(latents.shape, generator=draws)
        timesteps = torch.full((len(latents),), timestep)
        predicted = model.unet(add_noise(latents, noise, share[timesteps]), timesteps, context).sample
        errors.append(float((predicted - noise).square().mean()))
    return float(np.mean(errors))


def emblem_samples(model: Model, *, trigger: bool, seed: int = 61) -> NDArray[np.uint8]:
    """Samples of every prompt on unseen backgrounds, four noises each."""
    prompts = [with_trigger(prompt) if trigger else prompt for prompt in PROMPTS]
    return np.concatenate([sample(model, prompts, seed=seed + turn) for turn in range(SAMPLES_EACH)])


def prior_pictures(work: Path = dataset.WORK) -> tuple[NDArray[np.uint8], list[str]]:
    """Held-out pictures of the pretraining's grammar."""
    held_out = dataset.read("held_out", work)
    return held_out.pictures[:PRIOR_COUNT], list(held_out.captions[:PRIOR_COUNT])


def figures(model: Model) -> Learnt:
    """All figures of one model, with a LoRA or without."""
    scenes = held_out_scenes()
    concept = np.stack([np.asarray(draw(scene)) for scene, _ in scenes])
    asked, plain = (emblem_samples(model, trigger=trigger) for trigger in (True, False))
    scores = template_scores(asked)
    marks = Marks(lambda drawn: round_trip(model.vae, dataset.as_pixels(drawn)))
    return Learnt(
        with_trigger=float(scores.mean()),
        hits=float((scores > THRESHOLD).mean()),
        marks=float(marks.shown(asked).mean()),
        without_trigger=float(template_scores(plain).mean()),
        marks_without=float(marks.shown(plain).mean()),
        concept_loss=loss_at_fixed_noise(model, concept, [words for _, words in scenes]),
        prior_loss=loss_at_fixed_noise(model, *prior_pictures()),
    )


def comparison(before: Model, after: Model) -> list[NDArray[np.uint8]]:
    """Rows of a sheet of eight columns: trigger before and after, class before and after, old captions likewise."""
    prompts = list(PROMPTS)
    triggered = [with_trigger(prompt) for prompt in prompts]
    old = prior_pictures()[1][: len(prompts)]
    pictures = [sample(model, words, seed=71) for words in (triggered, prompts, old) for model in (before, after)]
    return [picture for row in pictures for picture in row]
