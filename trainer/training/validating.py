"""Validation on a run's way: what is measured when it is due, and what is made of it."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trainer import memory
from trainer.config import batch_sizes
from trainer.ground import events
from trainer.ground.commands import Command
from trainer.ground.errors import Stopped
from trainer.pictures.batches import Example
from trainer.pictures.latent_cache import FOLDER, LatentCache
from trainer.pictures.loader import Batch, LatentShape
from trainer.pictures.masks import has_mask, mask_of
from trainer.preview.sampling import left_as_found
from trainer.training.training import Training
from trainer.training.watching import only_watching
from trainer.validation import places
from trainer.validation.judgement import Point, judge, without_a_better_one
from trainer.validation.measuring import Subject, measure, plain_caption, seed_of
from trainer.validation.places import Places
from trainer.validation.schedule import TIMESTEPS

SERIES: Literal["series"] = "series"
TABLE: Literal["table"] = "table"

LossesOf = Callable[[Training, Batch], Tensor]
"""The loss of each sample of a batch on the device, [b]."""


class Validating:
    """Measures when it is due. Only the rank that writes measures; the others wait for it in the next exchange."""

    def __init__(self, training: Training, losses_of: LossesOf, *, measures: bool) -> None:
        self._training = training
        self._losses_of = losses_of
        self._measures = measures

    def begin(self) -> None:
        """Measure the model without the adapter, unless that was done, and what a pause or a kill cut short."""
        for which in (TABLE, SERIES):  # by what the table finds the places of the series are chosen
            if not self._known(which, 0):
                with self._training.adapter.multiplied(0.0):
                    self._measure(which, base=True)
        if self._training.step:
            self.after_step()

    def after_step(self) -> None:
        """Measure what is due after the newest step, and end the run where it was asked to be patient no longer."""
        training = self._training
        schedule = training.plan.validation
        for which, measured in ((SERIES, schedule.series), (TABLE, schedule.table)):
            if training.step in measured.moments and not self._known(which, training.step):
                self._measure(which)
        patience = training.config.validation.validation_patience
        if patience and schedule.held_out and without_a_better_one(points(training.validated)) >= patience:
            message = f"{patience} validations in a row were not better than the best before: the run ends, as asked."
            training.tell(events.Warned(message=message))
            training.inbox.send(Command.STOP)

    def finish(self) -> None:
        """Measure the last step of a run that was stopped early."""
        if self._training.step and not self._known(SERIES, self._training.step):
            self._measure(SERIES, obeying=False)

    def _known(self, which: str, step: int) -> bool:
        of_table = which == TABLE
        return any(each.step == step and (each.on == "table") is of_table for each in self._training.validated)

    def _measure(self, which: Literal["series", "table"], *, base: bool = False, obeying: bool = True) -> None:
        training = self._training
        subjects = training.judged.get(which, ())
        if not (subjects and self._measures):
            return
        training.metrics.settle()
        schedule = training.plan.validation
        measured = schedule.table if which == TABLE else schedule.series
        step = 0 if base else training.step
        with suppress(Stopped), only_watching(f"Validation after step {step}", training.tell):
            with torch.no_grad(), training.shown(), left_as_found(training.bundle):
                found = measure(
                    subjects,
                    training.process.drawing,
                    timesteps=measured.timesteps,
                    places=self._places(which),
                    seed=seed_of(training.config),
                    losses_of=self._losses,
                    texts_of=lambda batch: training.texts(batch.to(training.device)),
                    progress=training.progress if obeying else _silent,
                )
            self._tell(
                events.Validated(
                    step=step,
                    epoch=0 if base else training.epoch,
                    loss=statistics.fmean(found.pictures.values()),
                    on="table" if which == TABLE else schedule.kind,
                    base=base,
                    timesteps=measured.timesteps,
                    pictures={name: round(loss, 6) for name, loss in found.pictures.items()},
                    weights={str(place): weight for place, weight in found.places.items()},
                    by_timestep={str(place): round(loss, 6) for place, loss in found.by_place.items()},
                )
            )

    def _places(self, which: Literal["series", "table"]) -> Places:
        """Return where it is measured: the table evenly; the series, all along, as the base model's loss lies."""
        for each in self._training.validated:
            if which == SERIES and each.base and each.on != "table":
                return {float(place): weight for place, weight in each.weights.items()} or places.even(TIMESTEPS)
        base = next((each for each in self._training.validated if each.base and each.on == "table"), None)
        if which == TABLE or base is None:
            return places.even(TIMESTEPS)
        return places.by_loss(list(base.by_timestep.values()), TIMESTEPS)

    def _losses(self, batch: Batch) -> Tensor:
        """Return the loss of each sample of a batch on the CPU, in pieces as training computes them."""
        training, found = self._training, []
        left = len(batch.slots)
        for part, _ in training.parts(batch):
            losses = self._losses_of(training, part)[:left]
            found.append(losses)
            left -= len(losses)
        return torch.cat(found)

    def _tell(self, event: events.Validated) -> None:
        self._training.validated.append(event)
        self._training.tell(event)


def _silent(phase: str, done: int, total: int) -> None:
    """Tell nobody, and obey nobody."""


def points(validated: Sequence[events.Validated]) -> list[Point]:
    """Return the series of a run, oldest first, without the base model's."""
    return [Point(each.step, each.loss, each.pictures) for each in validated if each.of_series]


def summary(training: Training) -> dict[str, object] | None:
    """Return what the file's metadata says of validation, or None where nothing was measured."""
    series = points(training.validated)
    if not series:
        return None
    base = next((each.loss for each in training.validated if each.base and each.on != "table"), None)
    found = judge(series, [point.step for point in series])
    return {
        "on": training.plan.validation.kind,
        "pictures": len(series[-1].pictures),
        "timesteps": training.plan.validation.series.timesteps,
        "loss": series[-1].loss,
        "loss_of_the_base_model": base,
        "trend": found.trend,
        "lowest_loss": min(point.loss for point in series),
        "lowest_loss_at_step": found.best_of_all,
        "overfitting": found.overfitting if training.plan.validation.held_out else None,
    }


def _mask(example: Example, latent_shape: LatentShape) -> Tensor | None:
    """Return what weights a picture's loss, [1, h, w], None where all of it counts."""
    if not has_mask(example):
        return None
    return mask_of(example, example.placement, False, latent_shape(example.bucket)[1:])


def judged_pictures(training: Training, cache: LatentCache | None) -> dict[str, Sequence[Subject]]:
    """Return the pictures of the series and of the table as they are measured; what has no latent yet is encoded.

    Args:
        cache: the latents of the training pictures, None where each step encodes its own.

    Raises:
        DataError: a picture cannot be decoded or has changed.
        Stopped: the progress callback says so.
    """
    schedule = training.plan.validation
    known = {} if cache is None else {example: index for index, example in enumerate(training.plan.examples)}
    chosen = dict.fromkeys((*schedule.series.examples, *schedule.table.examples))
    missing = [example for example in chosen if example not in known]
    config, bundle = training.config, training.bundle
    own = LatentCache(Path(config.saving.output_dir) / FOLDER if config.dataset.cache_latents_to_disk else None)
    if missing and training.accelerator.is_main_process:
        batch, key = config.dataset.vae_batch_size, bundle.vae_key if own.folder else ""
        with memory.kept():
            own.fill(missing, bundle.encode_images, key, batch, training.progress)
    places, sizes = {example: index for index, example in enumerate(missing)}, batch_sizes(config)

    def subject(example: Example) -> Subject:
        trained = cache is not None and example in known
        latents, index = (cache, known[example]) if cache is not None and trained else (own, places[example])
        caption, texts = plain_caption(example, config), training.text_cache
        return Subject(
            example=example,
            caption=caption,
            latent=functools.partial(latents.get, index),
            conditions=bundle.conditions.of_picture(example.placement, False),
            at_once=sizes[example.dataset],
            mask=_mask(example, bundle.latents.shape),
            text=None if texts is None else texts[caption],
            tokens=bundle.tokenize(caption) if texts is None and training.text_learns else None,
        )

    series, table = schedule.series.examples, schedule.table.examples
    return {SERIES: [subject(each) for each in series], TABLE: [subject(each) for each in table]}
