"""What a model is told of a picture beside its noisy latents, the timestep and the text: nothing, or a family's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Size = tuple[int, int]
"""Width and height in pixels."""


class Placed(Protocol):
    """How a picture was brought to the size that it is trained at."""

    @property
    def original(self) -> Size:
        """The picture's own size."""

    @property
    def bucket(self) -> Size:
        """The size that it is trained at."""


class Conditions:
    """A family's further inputs. Picklable and independent of the models, for the loader's workers."""

    def of_picture(self, placement: Placed, flipped: bool) -> Mapping[str, Tensor]:
        """Return the inputs of one picture, by name, without a batch dimension; `flipped` says that it is mirrored."""
        return {}

    def of_sample(self, size: Size, guidance: float) -> Mapping[str, Tensor]:
        """Return those of a sample picture of this size; `guidance` is what a distilled model is told."""
        return {}
