"""Aspect-ratio buckets: which size a picture is trained at, and how it gets there.

The rules are those of sd-scripts (`library/model_util.py` make_bucket_resolutions, `library/train_util.py`
BucketManager). Sizes are (width, height) in pixels everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from trainer.config import LATENT_STEP, TrainingConfig, resolution_size
from trainer.ground.errors import ConfigError, Problem

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a picture, in pixels of the picture as it is seen, which is `whole` (width, height)."""

    left: int
    top: int
    width: int
    height: int
    whole: Size


@dataclass(frozen=True, slots=True)
class Placement:
    """How one picture is brought to its bucket: scaled to `resized`, which covers `bucket`, then cut at (left, top).

    `ar_error` is the bucket's width/height minus the picture's. `original` is the picture's own size, or that of the
    `part` of it that alone is trained, as if it had been cut out beforehand.
    """

    original: Size
    bucket: Size
    resized: Size
    left: int
    top: int
    ar_error: float
    part: Part | None = None

    @property
    def upscaled(self) -> bool:
        """True when the picture is smaller than what it is trained at."""
        return self.resized[0] > self.original[0] or self.resized[1] > self.original[1]


@dataclass(frozen=True)
class Buckets:
    """The buckets of one resolution.

    `minimum`, `maximum` and `steps` are sides in pixels. With `no_upscale` a picture is only ever shrunk, buckets
    are made to measure and minimum and maximum do not count; without `enable` there is one bucket, the resolution.
    Sides of buckets must be multiples of `latent_step` pixels, which the model says.

    Raises:
        ConfigError: the sides contradict each other.
    """

    resolution: Size
    minimum: int = 256
    maximum: int = 1024
    steps: int = 64
    no_upscale: bool = True
    enable: bool = True
    latent_step: int = LATENT_STEP

    def __post_init__(self) -> None:
        problems = [*self._step_problems()] or [*self._range_problems()]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_config(cls, config: TrainingConfig, latent_step: int = LATENT_STEP) -> Buckets:
        """Return the buckets that the dataset settings describe, for a model with this step."""
        dataset = config.dataset
        return cls(
            resolution=resolution_size(config),
            minimum=dataset.min_bucket_reso,
            maximum=dataset.max_bucket_reso,
            steps=dataset.bucket_reso_steps,
            no_upscale=dataset.bucket_no_upscale,
            enable=dataset.enable_bucket,
            latent_step=latent_step,
        )

    @cached_property
    def resolutions(self) -> tuple[Size, ...]:
        """All buckets that exist beforehand, sorted; empty with `no_upscale`, where pictures make their own."""
        if not self.enable:
            return (self.resolution,)
        if self.no_upscale:
            return ()
        return bucket_resolutions(self.resolution, *self._rounded_range(), self.steps)

    def choose(self, size: Size) -> Placement:
        """Return the placement of a picture of `size`."""
        if self.enable and self.no_upscale:
            bucket, resized = self._made_to_measure(size)
        else:
            bucket = self._nearest(size)
            resized = covering(size, bucket)
        return Placement(
            original=size,
            bucket=bucket,
            resized=resized,
            left=(resized[0] - bucket[0]) // 2,
            top=(resized[1] - bucket[1]) // 2,
            ar_error=bucket[0] / bucket[1] - size[0] / size[1],
        )

    def _nearest(self, size: Size) -> Size:
        """Return `size` itself where it is a bucket, else the bucket of nearest width/height, ties to the first."""
        if size in self.resolutions:
            return size
        ratio = size[0] / size[1]
        return min(self.resolutions, key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))

    def _made_to_measure(self, size: Size) -> tuple[Size, Size]:
        """Return (bucket, resized) for a picture that must not be scaled up."""
        resized = self._shrunk(size) if size[0] * size[1] > self._area else size
        bucket = (floor_to(resized[0], self.steps), floor_to(resized[1], self.steps))
        if min(bucket) > 0:
            return bucket, resized
        # sd-scripts makes a bucket of side 0 here. One step is the least that can be trained, and the longer side is
        # held to the area so that a ribbon of a picture does not become a giant.
        longest = max(self.steps, floor_to(self._area / self.steps, self.steps))
        bucket = (min(max(bucket[0], self.steps), longest), min(max(bucket[1], self.steps), longest))
        return bucket, covering(size, bucket)

    def _shrunk(self, size: Size) -> Size:
        """Return the size, near the resolution's area, at which one side is a whole number of steps.

        Of rounding the width and rounding the height, the one whose bucket is nearer in width/height is taken.
        """
        ratio = size[0] / size[1]
        width = math.sqrt(self._area * ratio)
        height = self._area / width
        by_width = floor_to(int(width + 0.5), self.steps)
        by_height = floor_to(int(height + 0.5), self.steps)
        width_error = _ratio_error(by_width, floor_to(int(by_width / ratio + 0.5), self.steps), ratio)
        height_error = _ratio_error(floor_to(int(by_height * ratio + 0.5), self.steps), by_height, ratio)
        if width_error < height_error:
            return by_width, int(by_width / ratio + 0.5)
        return int(by_height * ratio + 0.5), by_height

    @property
    def _area(self) -> int:
        return self.resolution[0] * self.resolution[1]

    def _rounded_range(self) -> tuple[int, int]:
        """Minimum rounded down, maximum up to the step, as sd-scripts does; a side of 0 is no bucket."""
        return max(self.steps, floor_to(self.minimum, self.steps)), -floor_to(-self.maximum, self.steps)

    @property
    def _example(self) -> int:
        """A step that fits, and suits most models."""
        return math.lcm(64, self.latent_step)

    def _step_problems(self) -> list[Problem]:
        problems = []
        if self.enable and (self.steps <= 0 or self.steps % self.latent_step):
            rule = f"is {self.steps}; it must be a positive multiple of {self.latent_step}: use {self._example}."
            problems.append(Problem("bucket_reso_steps", rule, self.steps))
        if not self.enable and any(side <= 0 or side % self.latent_step for side in self.resolution):
            rule = (
                f"is {self.resolution[0]},{self.resolution[1]}; without buckets both sides must be multiples of "
                f"{self.latent_step}: use multiples of {self._example}, or set enable_bucket = true."
            )
            problems.append(Problem("resolution", rule, self.resolution))
        return problems

    def _range_problems(self) -> list[Problem]:
        if not self.enable:
            return []
        shown = f"is {self.resolution[0]},{self.resolution[1]}"
        if min(self.resolution) < self.steps:
            rule = f"{shown}; each side must be at least one bucket step ({self.steps}): raise it."
            return [Problem("resolution", rule, self.resolution)]
        if self.no_upscale:
            return []
        low, high = self._rounded_range()
        problems = []
        if min(self.resolution) < low:
            rule = f"{shown}; its smaller side must not be below min_bucket_reso ({low}): lower min_bucket_reso."
            problems.append(Problem("resolution", rule, self.resolution))
        if max(self.resolution) > high:
            rule = f"{shown}; its larger side must not be above max_bucket_reso ({high}): raise max_bucket_reso."
            problems.append(Problem("resolution", rule, self.resolution))
        return problems


def bucket_resolutions(resolution: Size, minimum: int, maximum: int, steps: int) -> tuple[Size, ...]:
    """Return the sorted buckets whose area is at most that of `resolution` and whose sides lie in the range.

    One square; then for every width the largest height within the area, and both turned on their side.
    """
    area = resolution[0] * resolution[1]
    square = floor_to(math.sqrt(area), steps)
    found = {(square, square)}
    for width in range(minimum, maximum + 1, steps):
        height = min(maximum, floor_to(area / width, steps))
        if height >= minimum:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def covering(size: Size, bucket: Size) -> Size:
    """Return `size` scaled, in proportion, to just cover `bucket`; sides rounded to the nearest pixel."""
    width, height = size
    scale = bucket[1] / height if width / height > bucket[0] / bucket[1] else bucket[0] / width
    # A float scale may round the matching side below the bucket; the bucket must be covered.
    return max(int(width * scale + 0.5), bucket[0]), max(int(height * scale + 0.5), bucket[1])


def floor_to(value: float, step: int) -> int:
    """Return the largest multiple of `step` not above `value`."""
    return math.floor(value / step) * step


def _ratio_error(width: int, height: int, ratio: float) -> float:
    return abs(width / height - ratio) if width and height else math.inf
