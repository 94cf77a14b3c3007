"""Which pictures make up which step: examples with their repeats, and the order of an epoch.

The order is a function of (seed, epoch) alone and an epoch shows every picture exactly as often as it should
(sd-scripts' first batch of an epoch still comes from the epoch before). Counting is sd-scripts'
(`library/train_util.py` DreamBoothDataset).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from trainer.config import LATENT_STEP, TrainingConfig
from trainer.ground.randomness import python_random
from trainer.pictures.buckets import Buckets, Placement, Size
from trainer.pictures.report import DatasetReport, Picture

MicroBatch = tuple[tuple[int, int], ...]
"""(slot, index of the example) of each sample. A slot is the sample's place in the step over all ranks."""

_EPOCHS_KEPT = 2
"""A loader that runs ahead asks for the epoch that ends and the one that begins."""


@dataclass(frozen=True, slots=True)
class Example:
    """One picture as it is trained: how often in an epoch, in which bucket, with what weight in the loss."""

    picture: Picture
    regularisation: bool
    repeats: int
    placement: Placement
    loss_weight: float

    @property
    def bucket(self) -> Size:
        """Width and height in pixels that the picture is trained at."""
        return self.placement.bucket


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """All batches of one optimizer step, over all ranks. `step` counts from 0 over the run, `epoch` from 1."""

    step: int
    epoch: int
    micro: tuple[MicroBatch, ...]


@dataclass(frozen=True, slots=True)
class RankBatch:
    """One batch that one rank computes.

    `index` of `count` batches of this rank in the step; `group_size` counts the step's batches over all ranks.
    `padding` marks a batch that only keeps ranks in step where the last group of an epoch does not divide by them:
    its samples must have no weight.
    """

    step: int
    epoch: int
    index: int
    count: int
    group_size: int
    samples: MicroBatch
    padding: bool


def examples(report: DatasetReport, config: TrainingConfig, latent_step: int = LATENT_STEP) -> tuple[Example, ...]:
    """Return the pictures that take part in training, each in its bucket, regularisation pictures balanced.

    Sides of buckets are multiples of `latent_step` pixels.

    Raises:
        ConfigError: the bucket settings contradict each other.
    """
    place = cache(Buckets.from_config(config, latent_step).choose)
    training = [(picture, folder.repeats) for folder in report.train_folders for picture in folder.pictures]
    offered = [(picture, folder.repeats) for folder in report.reg_folders for picture in folder.pictures]
    wanted = sum(repeats for _, repeats in training)
    balanced = balance([repeats for _, repeats in offered], wanted)
    regularising = [(picture, repeats) for (picture, _), repeats in zip(offered, balanced, strict=False)]
    weight = config.dataset.prior_loss_weight
    return (
        *(Example(picture, False, repeats, place(picture.size), 1.0) for picture, repeats in training),
        *(Example(picture, True, repeats, place(picture.size), weight) for picture, repeats in regularising),
    )


def balance(repeats: Sequence[int], wanted: int) -> list[int]:
    """Return the repeats of the regularisation pictures that take part, so that together they reach `wanted`.

    Pictures are taken with their own repeats until the sum is reached, the rest are left out; where all of them are
    too few, each in turn gets one more. The first pass may overshoot by what one picture's repeats exceed.
    """
    taken: list[int] = []
    missing = wanted
    for own in repeats:
        if missing <= 0:
            break
        taken.append(own)
        missing -= own
    missing = max(0, missing)
    each, first = divmod(missing, len(taken)) if taken else (0, 0)
    return [own + each + (index < first) for index, own in enumerate(taken)]


def batches_per_epoch(examples: Sequence[Example], batch_size: int) -> int:
    """Return the number of batches in an epoch; each bucket's last batch may be short."""
    return sum(math.ceil(len(members) / batch_size) for members in _members(examples).values())


def epoch_batches(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Return the batches of `epoch` (from 1) in order, as indices into `examples`.

    Every batch holds pictures of one bucket; every example comes exactly `repeats` times.
    """
    rng = python_random(seed, epoch, 0, "order")
    batches: list[tuple[int, ...]] = []
    for members in _members(examples).values():
        rng.shuffle(members)
        batches += [tuple(members[start : start + batch_size]) for start in range(0, len(members), batch_size)]
    rng.shuffle(batches)
    return batches


class BatchPlan:
    """The batches of a whole run: `accumulation` x `ranks` of an epoch's batches make one optimizer step.

    The last step of an epoch may have fewer. Within a step batch i belongs to rank i modulo `ranks`, so the slots, and
    with them all random numbers, are the same however many ranks share the work.
    """

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, accumulation: int, ranks: int, seed: int
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.ranks = ranks
        self.seed = seed
        self.micro_batches = batches_per_epoch(examples, batch_size)
        self.steps_per_epoch = math.ceil(self.micro_batches / (accumulation * ranks))
        self._epochs: dict[int, list[tuple[int, ...]]] = {}

    @property
    def rank_batches_per_epoch(self) -> int:
        """How many batches each rank computes in an epoch, padding included."""
        in_last_step = self.micro_batches - (self.steps_per_epoch - 1) * self.accumulation * self.ranks
        return (self.steps_per_epoch - 1) * self.accumulation + math.ceil(in_last_step / self.ranks)

    def batches_before(self, step: int) -> int:
        """Return how many batches each rank has computed when `step` (from 0) begins."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.rank_batches_per_epoch + steps * self.accumulation

    def step(self, step: int) -> GlobalBatch:
        """Return all batches of optimizer step `step`, counted from 0 over the run."""
        epoch, place = step // self.steps_per_epoch + 1, step % self.steps_per_epoch
        group = self.accumulation * self.ranks
        batches = self._epoch(epoch)[place * group : (place + 1) * group]
        micro = (
            tuple((index * self.batch_size + place, example) for place, example in enumerate(batch))
            for index, batch in enumerate(batches)
        )
        return GlobalBatch(step, epoch, tuple(micro))

    def rank_batch(self, number: int, rank: int) -> RankBatch:
        """Return the `number`-th batch (from 0 over the run) that `rank` computes."""
        epochs, within = divmod(number, self.rank_batches_per_epoch)
        steps, index = divmod(within, self.accumulation)
        group = self.step(epochs * self.steps_per_epoch + steps)
        place = index * self.ranks + rank
        padding = place >= len(group.micro)
        return RankBatch(
            step=group.step,
            epoch=group.epoch,
            index=index,
            count=math.ceil(len(group.micro) / self.ranks),
            group_size=len(group.micro),
            samples=group.micro[0 if padding else place],
            padding=padding,
        )

    def _epoch(self, epoch: int) -> list[tuple[int, ...]]:
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = epoch_batches(self.examples, self.batch_size, self.seed, epoch)
        return self._epochs[epoch]


def _members(examples: Sequence[Example]) -> dict[Size, list[int]]:
    """Return, for each bucket in order of size, the indices of its examples, each as often as it repeats."""
    found: dict[Size, list[int]] = {bucket: [] for bucket in sorted({example.bucket for example in examples})}
    for index, example in enumerate(examples):
        found[example.bucket] += [index] * example.repeats
    return found
