"""Pictures that show nearly the same, found by their perceptual hashes and their colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from trainer.workbench.inspection import Inspected

MOST_DIFFERENT = 40.0
"""Of 255: by how much at most one of the mean colours of 8 x 8 parts may differ."""

_BITS = numpy.array([bin(value).count("1") for value in range(256)], dtype=numpy.uint8)


def groups(pictures: Sequence[Inspected], distance: int) -> list[list[int]]:
    """Return the groups of pictures that are near-duplicates, by their places, each of two or more.

    Two are where at most `distance` of the 64 bits of their hashes differ and no colour does by more than
    MOST_DIFFERENT; a group is what such pairs link. 10,000 pictures are compared within seconds, a row at a time.
    """
    if len(pictures) < 2:
        return []
    hashes = numpy.frombuffer(bytes.fromhex("".join(each.hash for each in pictures)), dtype=numpy.uint8)
    hashes = hashes.reshape(len(pictures), -1)
    colours = numpy.frombuffer(bytes.fromhex("".join(each.colours for each in pictures)), dtype=numpy.uint8)
    colours = colours.reshape(len(pictures), -1)
    leader = list(range(len(pictures)))
    for place in range(len(pictures) - 1):
        for other in _near(place, hashes, colours, distance):
            leader[_root(leader, other)] = _root(leader, place)
    found: dict[int, list[int]] = {}
    for place in range(len(pictures)):
        found.setdefault(_root(leader, place), []).append(place)
    return [group for group in found.values() if len(group) > 1]


def _near(place: int, hashes: NDArray[numpy.uint8], colours: NDArray[numpy.uint8], distance: int) -> list[int]:
    """Return the places after one whose pictures are its near-duplicates."""
    different = _BITS[hashes[place + 1 :] ^ hashes[place]].sum(axis=1, dtype=numpy.int32)
    alike = numpy.flatnonzero(different <= distance) + place + 1
    if not len(alike):
        return []
    apart = numpy.abs(colours[alike].astype(numpy.int16) - colours[place]).max(axis=1)
    return [int(each) for each in alike[apart <= MOST_DIFFERENT]]


def _root(leader: list[int], place: int) -> int:
    while leader[place] != place:
        leader[place] = leader[leader[place]]
        place = leader[place]
    return place
