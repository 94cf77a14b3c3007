"""Measuring the loss of pictures at fixed noise and fixed timesteps. It leaves no trace in what is trained.

Noise, timesteps and the draw from the VAE's distribution are functions of (validation_seed, the picture's name, the
place of the timestep), so a picture's number depends on the model and the timesteps alone. What chance does to training
pictures (flips, shuffled captions, dropout, input perturbation) is left out.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from trainer.config import TrainingConfig
from trainer.ground.control import Progress
from trainer.ground.randomness import python_random, stream
from trainer.pictures.batches import Example
from trainer.pictures.captions import render
from trainer.pictures.latent_cache import Latent
from trainer.pictures.loader import Batch, stacked
from trainer.process.draws import Drawing, PlacedTimesteps, joined
from trainer.validation.places import Places

PHASE = "validating"

LossesOf = Callable[[Batch], Tensor]
"""A batch on the CPU -> the loss [b] of each sample, on any device."""

TextsOf = Callable[[Batch], Mapping[str, Tensor]]
"""A batch of captions -> what the text encoders make of them, each [b, ...]."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One picture as it is measured.

    `caption` is its text, `latent` its distribution, `conditions` without a batch, `mask` [1, h, w] weights its loss;
    `at_once` is how many samples of its size go through the model together.
    """

    example: Example
    caption: str
    latent: Callable[[], Latent]
    conditions: Mapping[str, Tensor]
    at_once: int
    mask: Tensor | None = None
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


def placed(drawing: Drawing, places: Places) -> Drawing:
    """Return what draws noise as in training, but timesteps at the places, and without input perturbation."""
    options = dataclasses.replace(drawing.options, ip_noise_gamma=None)
    return dataclasses.replace(drawing, options=options, timesteps=PlacedTimesteps(drawing.timesteps, tuple(places)))


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What was measured: of each picture the loss at each of its places, by its name."""

    places: Places
    losses: Mapping[str, Mapping[float, float]]

    @property
    def pictures(self) -> dict[str, float]:
        """The loss of each picture, the weighted mean over its timesteps."""
        return {
            name: statistics.fmean(self.places[place] * loss for place, loss in each.items())
            for name, each in self.losses.items()
        }

    @property
    def by_place(self) -> dict[float, float]:
        """The mean loss at each place, unweighted, over the pictures that were measured there."""
        each = {place: [loss[place] for loss in self.losses.values() if place in loss] for place in self.places}
        return {place: statistics.fmean(losses) for place, losses in each.items() if losses}


def measure(
    subjects: Sequence[Subject],
    drawing: Drawing,
    *,
    timesteps: int,
    places: Places,
    seed: int,
    losses_of: LossesOf,
    texts_of: TextsOf,
    progress: Progress,
) -> Found:
    """Return the loss of each picture at its timesteps.

    Args:
        drawing: the process' own.
        timesteps: how many each picture is measured at, a divisor of the number of places: the first picture has the
            first of them and every so many after it, the next one the second, and so on.
        seed: the seed of validation.

    Raises:
        Stopped: `progress` says so.
    """
    drawing, every = placed(drawing, places), tuple(places)
    stride = len(every) // timesteps
    found: dict[str, dict[float, float]] = {subject.name: {} for subject in subjects}
    passes = [(each, slot) for n, each in enumerate(subjects) for slot in range(n % stride, len(every), stride)]
    done = 0
    for together in _together(passes):
        progress(PHASE, done, len(passes))
        texts = texts_of(_batch(list(dict.fromkeys((each, 0) for each, _ in together)), None))
        losses = losses_of(_drawn(together, drawing, texts, seed)).float().tolist()
        for (each, slot), loss in zip(together, losses, strict=True):
            found[each.name][every[slot]] = loss
        done += len(together)
    progress(PHASE, done, len(passes))
    return Found(places, found)


Pass = tuple[Subject, int]
"""A picture, and which of all timesteps."""


def _together(passes: Sequence[Pass]) -> Iterator[list[Pass]]:
    """Yield what goes through the model at once: pictures of one size and dataset, in batches of about one size."""
    alike: dict[object, list[Pass]] = {}
    for each in passes:
        alike.setdefault((each[0].example.bucket, each[0].example.dataset, each[0].mask is None), []).append(each)
    for group in alike.values():
        size = math.ceil(len(group) / math.ceil(len(group) / group[0][0].at_once))
        yield from (group[first : first + size] for first in range(0, len(group), size))


def _drawn(together: Sequence[Pass], drawing: Drawing, texts: Mapping[str, Tensor], seed: int) -> Batch:
    """Return the batch of some passes with its latents, random numbers and texts, which are one for each picture."""
    subjects = list(dict.fromkeys(each for each, _ in together))
    latents = [each.latent() for each in subjects]
    where = torch.tensor([subjects.index(each) for each, _ in together])
    draws = []
    for each, slot in together:
        own = stream(seed, 0, 0, f"validation {each.name}")
        draws.append(drawing((1, *latents[subjects.index(each)][0].shape), 0, (slot,), seed=own))
    return dataclasses.replace(
        _batch(together, joined(draws)),
        mean=torch.stack([mean for mean, _ in latents])[where],
        std=torch.stack([deviation for _, deviation in latents])[where],
        text={name: states[where.to(states.device)] for name, states in texts.items()},
    )


def _batch(together: Sequence[Pass], draws: object) -> Batch:
    subjects = [each for each, _ in together]
    masks = [each.mask for each in subjects if each.mask is not None]
    texts = [each.text for each in subjects if each.text]
    tokens = [each.tokens for each in subjects if each.tokens]
    return Batch(
        step=0,
        epoch=0,
        micro_index=0,
        micro_count=1,
        group_size=1,
        padding=False,
        slots=tuple(slot for _, slot in together),
        names=tuple(each.name for each in subjects),
        captions=tuple(each.caption for each in subjects),
        loss_weights=torch.ones(len(subjects)),
        draws=draws,
        text={name: torch.stack([text[name] for text in texts]) for name in texts[0]} if texts else None,
        tokens=stacked(tokens) if tokens else None,
        conditions={name: torch.stack([each.conditions[name] for each in subjects]) for name in subjects[0].conditions},
        mask=torch.stack(masks) if masks else None,
    )
