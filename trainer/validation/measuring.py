"""Measuring the loss of pictures at fixed noise and fixed timesteps. It leaves no trace in what is trained.

Noise, timesteps and the draw from the VAE's distribution are functions of (validation_seed, the picture's name, the
place of the timestep), so a picture's number depends on the model and the timesteps alone. What chance does to training
pictures (flips, shuffled captions, dropout, input perturbation) is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from trainer.config import TrainingConfig
from trainer.ground.control import Progress
from trainer.ground.randomness import python_random, stream
from trainer.pictures.batches import Example
from trainer.pictures.captions import render
from trainer.pictures.latent_cache import Latent
from trainer.pictures.loader import Batch
from trainer.process.draws import Drawing, EvenTimesteps

PHASE = "validating"

LossesOf = Callable[[Batch], Tensor]
"""A batch on the CPU -> the loss [b] of each sample, on any device."""

TextsOf = Callable[[Batch], Mapping[str, Tensor]]
"""A batch of one caption -> what the text encoders make of it, each [1, ...]."""


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """One picture as it is measured: `caption` is its text, `latent` its distribution, `conditions` without a batch."""

    example: Example
    caption: str
    latent: Callable[[], Latent]
    conditions: Mapping[str, Tensor]
    text: Mapping[str, Tensor] | None = None
    tokens: Mapping[str, Mapping[str, Tensor]] | None = None

    @property
    def name(self) -> str:
        """Folder and file name."""
        return self.example.picture.name


def plain_caption(example: Example, config: TrainingConfig) -> str:
    """Return the caption of a picture as training would have it without chance: whole, in order, with its prefix."""
    rules = dataclasses.replace(
        example.treatment.captions,
        shuffle_caption=False,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        token_warmup_step=0,
    )
    rng = python_random(seed_of(config), 0, 0, f"validation caption {example.picture.name}")
    return render(example.picture.caption, rules, rng=rng, epoch=1, step=0, total_steps=1)


def seed_of(config: TrainingConfig) -> int:
    """Return the seed of validation."""
    seed = config.validation.validation_seed
    return config.training.seed if seed is None else seed


def even(drawing: Drawing, count: int) -> Drawing:
    """Return what draws noise as in training, but the even timesteps, and without input perturbation."""
    options = dataclasses.replace(drawing.options, ip_noise_gamma=None)
    return dataclasses.replace(drawing, options=options, timesteps=EvenTimesteps(drawing.timesteps, count))


def measure(
    subjects: Sequence[Subject],
    drawing: Drawing,
    *,
    timesteps: int,
    of: int,
    at_once: int,
    seed: int,
    losses_of: LossesOf,
    texts_of: TextsOf,
    progress: Progress,
) -> dict[str, float]:
    """Return the mean loss over the timesteps of each picture, by its name.

    Args:
        drawing: the process' own.
        timesteps: how many each picture is measured at, a divisor of `of`: the first picture has the first of them and
            every so many after it, the next one the second, and so on.
        of: how many even shares of all timesteps there are.
        at_once: most samples that go through the model together.
        seed: the seed of validation.

    Raises:
        Stopped: `progress` says so.
    """
    drawing, found, stride = even(drawing, of), {}, of // timesteps
    for done, subject in enumerate(subjects):
        progress(PHASE, done, len(subjects))
        text = texts_of(_batch(subject, (0,), None))
        places = range(done % stride, of, stride)
        losses = [losses_of(batch) for batch in _batches(subject, drawing, text, places, at_once, seed)]
        found[subject.name] = float(torch.cat([loss.float() for loss in losses]).mean())
    progress(PHASE, len(subjects), len(subjects))
    return found


def _batches(
    subject: Subject, drawing: Drawing, text: Mapping[str, Tensor], places: range, at_once: int, seed: int
) -> Iterator[Batch]:
    """Yield one picture at all its timesteps, in batches of about the same size."""
    mean, deviation = subject.latent()
    own = stream(seed, 0, 0, f"validation {subject.name}")
    size = math.ceil(len(places) / math.ceil(len(places) / at_once))
    for first in range(0, len(places), size):
        slots = tuple(places[first : first + size])
        batch = _batch(subject, slots, drawing((len(slots), *mean.shape), 0, slots, seed=own))
        yield dataclasses.replace(
            batch,
            mean=mean.expand(len(slots), *mean.shape),
            std=deviation.expand(len(slots), *deviation.shape),
            text={name: states.expand(len(slots), *states.shape[1:]) for name, states in text.items()},
        )


def _batch(subject: Subject, slots: tuple[int, ...], draws: object) -> Batch:
    count = len(slots)
    conditions = {name: value.expand(count, *value.shape) for name, value in subject.conditions.items()}
    tokens = subject.tokens and {
        encoder: {name: value.expand(count, *value.shape) for name, value in taken.items()}
        for encoder, taken in subject.tokens.items()
    }
    text = subject.text and {name: value.expand(count, *value.shape) for name, value in subject.text.items()}
    return Batch(
        step=0,
        epoch=0,
        micro_index=0,
        micro_count=1,
        group_size=1,
        padding=False,
        slots=slots,
        names=(subject.name,) * count,
        captions=(subject.caption,) * count,
        loss_weights=torch.ones(count),
        draws=draws,
        text=dict(text) if text else None,
        tokens=tokens or None,
        conditions=conditions,
    )
