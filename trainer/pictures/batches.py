"""Which pictures make up which step: examples with their repeats, and the order of an epoch.

The order is a function of (seed, epoch) alone and an epoch shows every picture exactly as often as it should
(sd-scripts' first batch of an epoch still comes from the epoch before). Counting is sd-scripts'
(`library/train_util.py` DreamBoothDataset).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from trainer.config import LATENT_STEP, TrainingConfig, datasets_of
from trainer.config.datasets import Subset
from trainer.ground.randomness import python_random
from trainer.pictures.buckets import Buckets, Part, Placement, Size
from trainer.pictures.report import DatasetReport, Folder, Picture
from trainer.pictures.treatment import Treatment

MicroBatch = tuple[tuple[int, int], ...]
"""(slot, index of the example) of each sample. A slot is the sample's place in the step over all ranks."""

_EPOCHS_KEPT = 2
"""A loader that runs ahead asks for the epoch that ends and the one that begins."""


@dataclass(frozen=True, slots=True)
class Example:
    """One picture as it is trained: how often in an epoch, in which bucket, with what weight in the loss.

    `dataset` is the number of its dataset, whose pictures alone share batches; `treatment` what is done to it.
    """

    picture: Picture
    regularisation: bool
    repeats: int
    placement: Placement
    loss_weight: float
    dataset: int = 0
    treatment: Treatment = Treatment()

    @property
    def bucket(self) -> Size:
        """Width and height in pixels that the picture is trained at."""
        return self.placement.bucket

    @property
    def masked(self) -> bool:
        """True where the loss is weighted by a mask."""
        return self.treatment.masked or self.picture.mask is not None or self.picture.alpha_mask


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
    found: list[Example] = []
    for number, of_dataset in enumerate(_treatments(config)):
        folders = [folder for folder in report.folders if folder.dataset == number]
        found += _of_dataset(folders, of_dataset, latent_step, number)
    return tuple(found)


def _treatments(config: TrainingConfig) -> list[tuple[TrainingConfig, tuple[Treatment, ...]]]:
    """Return the settings of each dataset and what is done to the pictures of its subsets, or those of the run."""
    listed = [(each.config, tuple(map(_treatment, each.subsets))) for each in datasets_of(config)]
    return listed or [(config, (Treatment.from_config(config),))]


def _treatment(subset: Subset) -> Treatment:
    return Treatment.from_config(subset.config, preserved=subset.diff_output_preservation)


def _of_dataset(
    folders: Sequence[Folder],
    settings: tuple[TrainingConfig, tuple[Treatment, ...]],
    latent_step: int,
    number: int,
) -> list[Example]:
    """Return the examples of one dataset: its training pictures, then as many of regularisation."""
    config, treatments = settings
    place = _placing(config, latent_step)
    pairs = [(picture, folder) for folder in folders for picture in folder.pictures]
    training = [(picture, folder) for picture, folder in pairs if not folder.regularisation]
    offered = [(picture, folder) for picture, folder in pairs if folder.regularisation]
    wanted = sum(folder.repeats_of(picture) for picture, folder in training)
    balanced = balance([folder.repeats_of(picture) for picture, folder in offered], wanted)
    shown = [(picture, folder, folder.repeats_of(picture)) for picture, folder in training]
    shown += [(*pair, repeats) for pair, repeats in zip(offered, balanced, strict=False)]
    weights = {False: 1.0, True: config.dataset.prior_loss_weight}
    return [
        Example(
            picture,
            folder.regularisation,
            repeats,
            place(picture),
            weights[folder.regularisation],
            number,
            treatments[folder.subset],
        )
        for picture, folder, repeats in shown
    ]


def _placing(config: TrainingConfig, latent_step: int) -> Callable[[Picture], Placement]:
    """Return what places pictures in the buckets of these settings."""
    choose = cache(Buckets.from_config(config, latent_step).choose)

    def place(picture: Picture) -> Placement:
        placement = choose(picture.trained_size)
        return replace(placement, part=Part(*picture.crop, whole=picture.size)) if picture.crop else placement

    return place


def held_out_examples(
    report: DatasetReport, config: TrainingConfig, latent_step: int = LATENT_STEP
) -> tuple[Example, ...]:
    """Return the pictures that are only judged by, each in its bucket and once.

    Raises:
        ConfigError: the bucket settings contradict each other.
    """
    found: list[Example] = []
    for number, (of_dataset, treatments) in enumerate(_treatments(config)):
        place = _placing(of_dataset, latent_step)
        for folder in (each for each in report.held_out if each.dataset == number):
            treatment = treatments[folder.subset]
            found += [Example(each, False, 1, place(each), 1.0, number, treatment) for each in folder.pictures]
    return tuple(found)


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


def batches_per_epoch(examples: Sequence[Example], sizes: Sequence[int]) -> int:
    """Return the number of batches in an epoch; each bucket's last batch may be short.

    `sizes` are the batch sizes of the datasets.
    """
    return sum(math.ceil(len(members) / sizes[dataset]) for (dataset, _), members in _members(examples).items())


def epoch_batches(examples: Sequence[Example], sizes: Sequence[int], seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Return the batches of `epoch` (from 1) in order, as indices into `examples`.

    Every batch holds pictures of one bucket of one dataset; every example comes exactly `repeats` times. `sizes` are
    the batch sizes of the datasets, whose batches come in random order, in proportion to their number.
    """
    rng = python_random(seed, epoch, 0, "order")
    batches: list[tuple[int, ...]] = []
    for (dataset, _), members in _members(examples).items():
        rng.shuffle(members)
        size = sizes[dataset]
        batches += [tuple(members[start : start + size]) for start in range(0, len(members), size)]
    rng.shuffle(batches)
    return batches


class BatchPlan:
    """The batches of a whole run: `accumulation` x `ranks` of an epoch's batches make one optimizer step.

    The last step of an epoch may have fewer. Within a step batch i belongs to rank i modulo `ranks`, so the slots, and
    with them all random numbers, are the same however many ranks share the work. `sizes` are the batch sizes of the
    datasets.
    """

    def __init__(
        self, examples: Sequence[Example], *, sizes: Sequence[int], accumulation: int, ranks: int, seed: int
    ) -> None:
        self.examples = examples
        self.sizes = tuple(sizes)
        self.accumulation = accumulation
        self.ranks = ranks
        self.seed = seed
        self.micro_batches = batches_per_epoch(examples, sizes)
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
        largest = max(self.sizes)
        micro = (
            tuple((index * largest + place, example) for place, example in enumerate(batch))
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
            self._epochs[epoch] = epoch_batches(self.examples, self.sizes, self.seed, epoch)
        return self._epochs[epoch]


def _members(examples: Sequence[Example]) -> dict[tuple[int, Size], list[int]]:
    """Return for each bucket of each dataset, in order, the indices of its examples, each as often as it repeats."""
    keys = sorted({(example.dataset, example.bucket) for example in examples})
    found: dict[tuple[int, Size], list[int]] = {key: [] for key in keys}
    for index, example in enumerate(examples):
        found[example.dataset, example.bucket] += [index] * example.repeats
    return found
