"""Which of the concept's marks a picture shows: the border, the left half, the right half and the disc."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo.build.concept import UNSEEN, Pictures, Template, as_shares, best_places, emblem_in_the_middle, templates
from demo.build.drawing import BACKGROUNDS, COLOURS, CONCEPT, Colour, painted

MARKS = ("border", "first", "second", "mark")


def _colours(mark: str) -> dict[str, Colour]:
    """The colours that may stand in a mark's place: those of the concept, and of the grammar beside them."""
    own = {name: getattr(CONCEPT, name) for name in MARKS}
    # A white disc is the grammar's white as well: only the concept's name for it stands.
    return own | {name: value for name, value in COLOURS.items() if name != "white"}


def _middle(picture: Tensor, template: Template, mark: str, corner: tuple[int, int]) -> Tensor:
    """The middle colour [3] of a mark's pixels where the template lies in a picture [3, 64, 64]."""
    own = torch.tensor(getattr(CONCEPT, mark), dtype=torch.float32)[:, None, None]
    there = ((template.colours * 255).round() == own).all(dim=0) & (template.mask > 0)
    (top, left), (high, wide) = corner, template.mask.shape
    return picture[:, top : top + high, left : left + wide][:, there].median(dim=1).values


class Marks:
    """Tells the marks of pictures, by the colours of drawings that went the same way.

    A border of four pixels between two colours does not come out of the VAE in its own colour: of real pictures that
    went through it next to none would show one. So each colour that may stand in a mark's place is drawn there, at
    every size and on every background of the samples, and a mark is there where its middle colour is nearest to a
    drawing that has it.
    """

    def __init__(self, through: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda drawn: drawn) -> None:
        """`through` takes drawings [count, 64, 64, 3] the way of the pictures that will be asked about."""
        self._through = through
        self._known: dict[tuple[int, str], tuple[list[str], Tensor]] = {}

    def _looks(self, size: int, mark: str) -> tuple[list[str], Tensor]:
        """Names of colours, and how each [3] looks in the mark's place at one of the sizes."""
        if (size, mark) not in self._known:
            self._known[size, mark] = self._drawn(templates()[size], mark)
        return self._known[size, mark]

    def _drawn(self, template: Template, mark: str) -> tuple[list[str], Tensor]:
        cases = [(name, colour, ground) for name, colour in _colours(mark).items() for ground in UNSEEN]
        drawn = [
            emblem_in_the_middle(template.reach, BACKGROUNDS[ground], painted(CONCEPT, {mark: colour}))
            for _, colour, ground in cases
        ]
        pictures = as_shares(self._through(np.stack(drawn))) * 255
        looks = [_middle(picture, template, mark, template.place) for picture in pictures]
        return [name for name, _, _ in cases], torch.stack(looks)

    def shown(self, pictures: Pictures) -> NDArray[np.bool_]:
        """Which marks each picture [64, 64, 3] shows, where the concept fits it best: [count, 4]."""
        batch = as_shares(pictures)
        found = np.zeros((len(batch), len(MARKS)), dtype=bool)
        for number, (size, corner) in enumerate(best_places(batch)):
            for place, mark in enumerate(MARKS):
                names, looks = self._looks(size, mark)
                colour = _middle(batch[number] * 255, templates()[size], mark, corner)
                found[number, place] = names[int(torch.cdist(colour[None], looks)[0].argmin())] == mark
        return found
