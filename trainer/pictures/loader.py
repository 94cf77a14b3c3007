"""Batches for the training loop, from any step on, with any number of workers, always the same.

Every choice about a sample (mirrored or not, what its caption becomes, its noise) is drawn from (seed, step, slot),
so a batch does not depend on which came before it, on which process made it, or on how many ranks there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from trainer.config import TrainingConfig, batch_sizes
from trainer.ground.errors import DataError, RunError
from trainer.ground.randomness import python_random
from trainer.pictures.batches import BatchPlan, Example, RankBatch
from trainer.pictures.buckets import Placement, Size
from trainer.pictures.captions import choose, render
from trainer.pictures.latent_cache import Latent, LatentCache
from trainer.pictures.masks import check_masks, mask_of
from trainer.pictures.pixels import change_colours, cut_at_random, load_pixels
from trainer.pictures.treatment import ALL_TIMESTEPS

Draw = Callable[[tuple[int, int, int, int], int, tuple[int, ...], "Timesteps"], object]
"""(shape of the latents, step, slots, timesteps) -> the objective's random numbers."""

Timesteps = tuple[tuple[int, int], ...] | None
"""The lowest timestep and the one above the highest for each sample; None for those of the run."""

LatentShape = Callable[[Size], tuple[int, int, int]]
"""(width, height) of a bucket in pixels -> (channels, height, width) of its latents."""

Tokens = Mapping[str, Mapping[str, torch.Tensor]]
"""{text encoder: {"ids": ..., "mask": ...}}, each encoder with its own length."""

Tokenize = Callable[[str], Tokens]
"""caption -> tokens, without a batch dimension."""

Conditions = Callable[[Placement, bool], Mapping[str, torch.Tensor]]
"""(how a picture was placed, whether it is mirrored) -> the model's further inputs, without a batch dimension."""

Text = Mapping[str, torch.Tensor]
"""What a text encoder makes of one caption, without a batch dimension."""

_T = TypeVar("_T")


_OF_SAMPLES = ("slots", "names", "captions", "preserved")
"""Fields of a batch that have one entry for each sample and are no tensors."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward and backward needs; b samples of one bucket, H x W pixels, h x w latents with c channels.

    `step` counts optimizer steps from 0, `epoch` from 1. This is batch `micro_index` of the `micro_count` that this
    rank computes in the step; `group_size` counts the step's batches over all ranks. Either `mean` and `std`
    (posterior, float32, unscaled) or `pixels` (float32 in [-1, 1]) are there. `conditions` are the model's own
    further inputs; `mask` weights the loss. Of
    samples that are `preserved` the model is to say what it said before; () where none is. A `padding` batch has loss
    weights of 0 and only keeps the ranks in step.
    """

    step: int
    epoch: int
    micro_index: int
    micro_count: int
    group_size: int
    padding: bool
    slots: tuple[int, ...]
    names: tuple[str, ...]
    captions: tuple[str, ...]
    loss_weights: torch.Tensor  # [b] float32
    mean: torch.Tensor | None = None  # [b, c, h, w]
    std: torch.Tensor | None = None  # [b, c, h, w]
    pixels: torch.Tensor | None = None  # [b, 3, H, W]
    draws: Any = None
    text: dict[str, torch.Tensor] | None = None  # each [b, ...]
    tokens: Tokens | None = None  # each [b, ...]
    conditions: Mapping[str, torch.Tensor] = field(default_factory=dict)  # each [b, ...]
    mask: torch.Tensor | None = None  # [b, 1, h, w], from 0 to 1
    preserved: tuple[bool, ...] = ()

    def split(self, most: int) -> tuple[Batch, ...]:
        """Return the samples in batches of at most `most`, in order, with their random numbers."""
        if len(self.slots) <= most:
            return (self,)
        return tuple(self._cut(slice(first, first + most)) for first in range(0, len(self.slots), most))

    def filled(self, size: int) -> Batch:
        """Return the batch with `size` samples: its own, and some of them again with loss weights of 0."""
        own = len(self.slots)
        if own >= size:
            return self
        again = [number % own for number in range(size)]
        values = {name: getattr(self, name) for name in _OF_SAMPLES}
        plain: dict[str, Any] = {name: tuple(each[number] for number in again) for name, each in values.items() if each}
        batch = dataclasses.replace(map_tensors(self, lambda tensor: tensor[again]), **plain)
        batch.loss_weights[own:] = 0
        return batch

    def _cut(self, samples: slice) -> Batch:
        plain: dict[str, Any] = {name: getattr(self, name)[samples] for name in _OF_SAMPLES}
        return dataclasses.replace(map_tensors(self, lambda tensor: tensor[samples]), **plain)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with all tensors, those of `draws` too, on `device`."""
        if torch.device(device) == self.loss_weights.device:
            return self
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU need not wait."""
        return map_tensors(self, torch.Tensor.pin_memory)


def map_tensors(value: _T, function: Callable[[torch.Tensor], torch.Tensor]) -> _T:
    """Return `value` with `function` applied to every tensor in its fields, tuples, lists and dicts."""
    result: Any = value
    if isinstance(value, torch.Tensor):
        result = function(value)
    elif isinstance(value, dict):
        result = {key: map_tensors(part, function) for key, part in value.items()}
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        result = type(value)(map_tensors(part, function) for part in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: map_tensors(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        result = dataclasses.replace(value, **parts)
    return result


@dataclass(frozen=True, slots=True)
class Source:
    """Makes the batches of one rank. Must be picklable for workers on Windows and macOS.

    `cache` None decodes pictures each time. `draw` and `latent_shape` come together. `tokenize` and `text_cache` are
    given where the loop wants token ids or ready-made text; `prepared` are then the texts of each example, of which a
    step sees one.
    """

    plan: BatchPlan
    total_steps: int
    seed: int
    rank: int = 0
    cache: LatentCache | None = None
    draw: Draw | None = None
    latent_shape: LatentShape | None = None
    conditions: Conditions | None = None
    tokenize: Tokenize | None = None
    text_cache: Mapping[str, Text] | None = None
    prepared: Sequence[Sequence[str]] | None = None

    def batch(self, number: int) -> Batch:
        """Return the `number`-th batch (from 0 over the run) of this rank.

        Raises:
            DataError: a picture or cached latent cannot be read.
        """
        planned = self.plan.rank_batch(number, self.rank)
        slots = tuple(slot for slot, _ in planned.samples)
        examples = [self.plan.examples[index] for _, index in planned.samples]
        flips = [self._flipped(example, planned.step, slot) for example, slot in zip(examples, slots, strict=True)]
        placements = [self._placed(example, planned.step, slot) for example, slot in zip(examples, slots, strict=True)]
        captions = tuple(self._caption(index, planned, slot) for slot, index in planned.samples)
        mean, std, pixels = self._pictures(planned, examples, flips, placements)
        weights = [0.0 if planned.padding else example.loss_weight for example in examples]
        preserved = tuple(example.treatment.preserved for example in examples)
        return Batch(
            step=planned.step,
            epoch=planned.epoch,
            micro_index=planned.index,
            micro_count=planned.count,
            group_size=planned.group_size,
            padding=planned.padding,
            slots=slots,
            names=tuple(example.picture.name for example in examples),
            captions=captions,
            loss_weights=torch.tensor(weights, dtype=torch.float32),
            mean=mean,
            std=std,
            pixels=pixels,
            draws=self._draws(examples, planned.step, slots),
            text=self._text(captions),
            conditions=self._conditions(placements, flips),
            tokens=stacked([self.tokenize(caption) for caption in captions]) if self.tokenize else None,
            mask=self._mask(examples, flips, placements),
            preserved=preserved if any(preserved) else (),
        )

    def _placed(self, example: Example, step: int, slot: int) -> Placement:
        if not example.treatment.crop:
            return example.placement
        return cut_at_random(example.placement, python_random(self.seed, step, slot, "crop"))

    def _flipped(self, example: Example, step: int, slot: int) -> bool:
        return example.treatment.flip and python_random(self.seed, step, slot, "flip").random() < 0.5

    def _caption(self, index: int, planned: RankBatch, slot: int) -> str:
        rng = python_random(self.seed, planned.step, slot, "caption")
        example = self.plan.examples[index]
        if self.prepared is not None:
            return choose(self.prepared[index], example.treatment.captions, rng=rng, epoch=planned.epoch)
        return render(
            example.picture.caption,
            example.treatment.captions,
            rng=rng,
            epoch=planned.epoch,
            step=planned.step,
            total_steps=self.total_steps,
        )

    def _pictures(
        self,
        planned: RankBatch,
        examples: Sequence[Example],
        flips: Sequence[bool],
        placements: Sequence[Placement],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return (mean, std, None) from the cache, or (None, None, pixels)."""
        if self.cache is None:
            pixels = []
            for example, flipped, placement, (slot, _) in zip(
                examples, flips, placements, planned.samples, strict=True
            ):
                loaded = load_pixels(example, flipped, placement)
                if example.treatment.color:
                    loaded = change_colours(loaded, python_random(self.seed, planned.step, slot, "colour"))
                pixels.append(loaded)
            return None, None, torch.stack(pixels)
        indices = (index for _, index in planned.samples)
        latents: list[Latent] = [self.cache.get(index, flipped) for index, flipped in zip(indices, flips, strict=True)]
        return torch.stack([mean for mean, _ in latents]), torch.stack([std for _, std in latents]), None

    def _mask(
        self, examples: Sequence[Example], flips: Sequence[bool], placements: Sequence[Placement]
    ) -> torch.Tensor | None:
        """Return the masks of a batch, None where no picture of it has one."""
        if self.latent_shape is None or not any(example.masked for example in examples):
            return None
        size = self.latent_shape(examples[0].bucket)[1:]
        each = zip(examples, flips, placements, strict=True)
        return torch.stack([mask_of(example, placement, flipped, size) for example, flipped, placement in each])

    def _conditions(self, placements: Sequence[Placement], flips: Sequence[bool]) -> dict[str, torch.Tensor]:
        if self.conditions is None:
            return {}
        each = [self.conditions(placement, flipped) for placement, flipped in zip(placements, flips, strict=True)]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _draws(self, examples: Sequence[Example], step: int, slots: Sequence[int]) -> object:
        if self.draw is None or self.latent_shape is None:
            return None
        timesteps: Timesteps = tuple(example.treatment.timesteps for example in examples)
        if all(each == ALL_TIMESTEPS for each in timesteps or ()):
            timesteps = None
        return self.draw((len(examples), *self.latent_shape(examples[0].bucket)), step, tuple(slots), timesteps)

    def _text(self, captions: Sequence[str]) -> dict[str, torch.Tensor] | None:
        if self.text_cache is None:
            return None
        missing = [caption for caption in captions if caption not in self.text_cache]
        if missing:
            raise RunError(f"The caption {missing[0]!r} was not encoded beforehand.", remedy="Please report this.")
        texts = [self.text_cache[caption] for caption in captions]
        return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}


@dataclass(frozen=True, slots=True)
class _Refused:
    """An error that happened in a worker, to be raised, unadorned, in the process that waits for the batch."""

    message: str
    remedy: str


class _Numbered(Dataset[Batch | _Refused]):
    """A source as a data set whose index 0 is the first batch wanted."""

    def __init__(self, source: Source, first: int, length: int) -> None:
        self.source, self.first, self.length = source, first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch | _Refused:
        try:
            return self.source.batch(self.first + index)
        except DataError as error:
            return _Refused(error.message, error.remedy)


class BatchLoader:
    """All batches of one rank from a step on, in order; one pass. `len` is the number of batches."""

    def __init__(self, source: Source, *, start_step: int = 0, workers: int = 0, pin_memory: bool = False) -> None:
        self.source = source
        first = source.plan.batches_before(start_step)
        length = max(0, source.plan.batches_before(source.total_steps) - first)
        self._loader = DataLoader(
            _Numbered(source, first, length),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            # Without a generator of its own the loader would draw from the global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for item in self._loader:
            if isinstance(item, _Refused):
                raise DataError(item.message, item.remedy)
            yield item


def make_loader(
    examples: Sequence[Example],
    cache: LatentCache | None,
    config: TrainingConfig,
    *,
    total_steps: int,
    start_step: int = 0,
    steps_per_epoch: int | None = None,
    ranks: int = 1,
    rank: int = 0,
    draw: Draw | None = None,
    latent_shape: LatentShape | None = None,
    conditions: Conditions | None = None,
    tokenize: Tokenize | None = None,
    text_cache: Mapping[str, Text] | None = None,
    prepared: Sequence[Sequence[str]] | None = None,
    pin_memory: bool = False,
) -> BatchLoader:
    """Return the batches that `rank` of `ranks` computes, from optimizer step `start_step` (from 0) on.

    `steps_per_epoch` is what the plan says, to be compared with what the pictures give.

    Raises:
        DataError: masks are missing.
        RunError: the two disagree.
    """
    check_masks(examples)
    plan = BatchPlan(
        examples,
        sizes=batch_sizes(config),
        accumulation=config.training.gradient_accumulation_steps,
        ranks=ranks,
        seed=config.training.seed,
    )
    if steps_per_epoch not in (None, plan.steps_per_epoch):
        raise RunError(
            f"The plan has {steps_per_epoch} steps per epoch but the pictures make {plan.steps_per_epoch}.",
            remedy="The folder has changed since the plan was made; start again.",
        )
    source = Source(
        plan=plan,
        total_steps=total_steps,
        seed=config.training.seed,
        rank=rank,
        cache=cache,
        draw=draw,
        latent_shape=latent_shape,
        conditions=conditions,
        tokenize=tokenize,
        text_cache=text_cache,
        prepared=prepared,
    )
    workers = config.dataset.max_data_loader_n_workers
    return BatchLoader(source, start_step=start_step, workers=workers, pin_memory=pin_memory)


def stacked(texts: Sequence[Tokens]) -> Tokens:
    """Return the tokens of several captions, each [b, ...]."""
    return {
        encoder: {name: torch.stack([text[encoder][name] for text in texts]) for name in taken}
        for encoder, taken in texts[0].items()
    }


def _as_it_is(item: _T) -> _T:
    return item
