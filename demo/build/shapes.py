"""Outlines of the demo's subjects as polygons around the origin, y downwards, reaching about 1 in each direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """One polygon [corners, 2] and what fills it: "body", "hole" (the background shows) or "shade" (darker body)."""

    points: Points
    fill: str = "body"


def _arc(
    radius: float, start: float, stop: float, *, centre: tuple[float, float] = (0.0, 0.0), count: int = 48
) -> Points:
    """Points on a circle; angles in radians, clockwise from the right because y points down."""
    angles = np.linspace(start, stop, count)
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _regular(corners: int, radius: float, turn: float = -np.pi / 2) -> Points:
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius


def disc(radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> Points:
    return _arc(radius, 0.0, 2 * np.pi, centre=centre)


def star_points() -> Points:
    outer, inner = _regular(5, 1.12), _regular(5, 0.46, -np.pi / 2 + np.pi / 5)
    return np.stack([outer, inner], axis=1).reshape(-1, 2)


def _circle() -> list[Part]:
    return [Part(disc())]


def _square() -> list[Part]:
    return [Part(_polygon((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)))]


def _triangle() -> list[Part]:
    return [Part(_polygon((0, -1.05), (1.08, 0.85), (-1.08, 0.85)))]


def _star() -> list[Part]:
    return [Part(star_points())]


def _heart() -> list[Part]:
    turn = np.linspace(0, 2 * np.pi, 64)
    across = np.sin(turn) ** 3
    down = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 15
    return [Part(np.stack([across * 1.05, down], axis=1))]


def _ring() -> list[Part]:
    return [Part(disc()), Part(disc(0.55), "hole")]


def _moon() -> list[Part]:
    outer = _arc(1.0, -0.42 * np.pi, -1.58 * np.pi)
    tips = outer[0], outer[-1]
    offset = 0.62
    reach = float(np.hypot(tips[0][0] - offset, tips[0][1]))
    angle = float(np.arctan2(tips[1][1], tips[1][0] - offset))
    inner = _arc(reach, angle, 2 * np.pi - angle, centre=(offset, 0.0))
    return [Part(np.concatenate([outer, inner]) + np.array([0.15, 0.0]))]


def _diamond() -> list[Part]:
    return [Part(_polygon((0, -1.15), (0.72, 0), (0, 1.15), (-0.72, 0)))]


def _cross() -> list[Part]:
    arm = 0.34
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm), (arm, 1.0)]
    other = [(-x, -y) for x, y in quarter]
    return [Part(_polygon(*quarter, *other))]


def _flower() -> list[Part]:
    petals = [
        Part(disc(0.46, (0.62 * float(np.cos(turn)), 0.62 * float(np.sin(turn)))))
        for turn in -np.pi / 2 + np.arange(5) * 2 * np.pi / 5
    ]
    return [*petals, Part(disc(0.5)), Part(disc(0.3), "hole")]


def _house() -> list[Part]:
    walls = _polygon((-0.75, -0.1), (0.75, -0.1), (0.75, 0.95), (-0.75, 0.95))
    roof = _polygon((0, -1.05), (1.08, -0.08), (-1.08, -0.08))
    door = _polygon((-0.22, 0.35), (0.22, 0.35), (0.22, 0.95), (-0.22, 0.95))
    return [Part(walls), Part(roof, "shade"), Part(door, "hole")]


def _tree() -> list[Part]:
    trunk = _polygon((-0.2, 0.3), (0.2, 0.3), (0.2, 1.1), (-0.2, 1.1))
    crown = [disc(0.52, (-0.42, -0.08)), disc(0.52, (0.42, -0.08)), disc(0.58, (0.0, -0.52))]
    return [Part(trunk, "wood"), *(Part(points) for points in crown)]


SUBJECTS: dict[str, Callable[[], list[Part]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "moon": _moon,
    "diamond": _diamond,
    "cross": _cross,
    "flower": _flower,
    "house": _house,
    "tree": _tree,
}
UPRIGHT = frozenset({"house", "tree"})


def shield() -> Points:
    """The outline of every emblem: a flat top and sides that run into a point."""
    fall = np.linspace(0, 1, 24)
    right = np.stack([0.9 * (1 - fall**2), 0.15 + 1.0 * fall], axis=1)
    left = right[-2::-1] * [-1.0, 1.0]
    return np.concatenate([_polygon((-0.9, -1.0), (0.9, -1.0)), right, left])
