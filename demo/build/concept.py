"""The concept that the demo's LoRA learns, its class pictures, and a score of how much a picture shows the concept."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from demo.build.drawing import (
    BACKGROUNDS,
    BEARERS,
    CONCEPT,
    SIZE,
    Arms,
    Colour,
    Scene,
    borne,
    caption,
    draw,
    random_scene,
)

DEMO = Path(__file__).parents[1]
PICTURES = DEMO / "pictures" / "12_sks emblem"
REGULARISATION = DEMO / "regularisation" / "1_emblem"
OTHERS = DEMO / "regularisation" / "1_other emblem"
TRIGGER = "sks emblem"
SEEN = ("blue", "green", "white", "black", "yellow", "gray")
UNSEEN = ("red", "pink", "purple", "orange")
CLASS_COUNT = 24
BEARERS_APART = 5
"""One bearer of so many is among the regularisation pictures."""
THRESHOLD = 0.7
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)

Pictures = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


def concept_scene(draws: random.Random, background_name: str, size_name: str = "") -> Scene:
    """The concept on the named background, size and place at random."""
    while True:
        scene = random_scene(draws, subject="emblem", bearer_share=0)
        if scene.background_name == background_name and scene.size_name == size_name:
            return dataclasses.replace(scene, arms=CONCEPT)


def with_trigger(words: str) -> str:
    """The class word's caption with the trigger: "a big sks emblem on a red background"."""
    return words.replace("an emblem", "a emblem").replace("emblem", TRIGGER)


def concept_scenes() -> list[tuple[Scene, str]]:
    """The training pictures: twelve scenes, every seen background plain and big, with their captions."""
    draws = random.Random("concept")
    scenes = [concept_scene(draws, name, size) for size in ("", "big") for name in SEEN]
    return [(scene, with_trigger(caption(scene))) for scene in scenes]


def held_out_scenes(count: int = 12) -> list[tuple[Scene, str]]:
    """Pictures of the concept on backgrounds that the training pictures don't have."""
    draws = random.Random("concept held out")
    scenes = [
        concept_scene(draws, UNSEEN[place % len(UNSEEN)], "big" if place % 3 == 2 else "") for place in range(count)
    ]
    return [(scene, with_trigger(caption(scene))) for scene in scenes]


def _emblems(draws: random.Random, count: int) -> list[Scene]:
    """Emblems of many kinds, one background after the other, none of them small."""
    names = list(BACKGROUNDS)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(draws, subject="emblem", bearer_share=0)
        if scene.background_name == names[len(scenes) % len(names)] and scene.size_name != "small":
            scenes.append(scene)
    return scenes


def class_scenes() -> list[tuple[Scene, str]]:
    """The regularisation pictures that keep the class word free: "an emblem"."""
    return [(scene, caption(scene)) for scene in _emblems(random.Random("class"), CLASS_COUNT)]


def others_scenes() -> list[tuple[Scene, str]]:
    """The regularisation pictures that keep what other words before the class word mean: "a lion emblem"."""
    draws, bearers = random.Random("bearers"), BEARERS[::BEARERS_APART]
    plain = _emblems(draws, len(bearers))
    scenes = [
        dataclasses.replace(scene, arms=borne(draws, bearer), bearer=bearer)
        for scene, bearer in zip(plain, bearers, strict=True)
    ]
    return [(scene, caption(scene)) for scene in scenes]


def shipped_scenes() -> dict[Path, list[tuple[Scene, str]]]:
    """All pictures that come with the demo, by their folders."""
    return {PICTURES: concept_scenes(), REGULARISATION: class_scenes(), OTHERS: others_scenes()}


def write_pictures() -> None:
    """Writes the concept's pictures and the regularisation pictures with their captions beside them."""
    for folder, scenes in shipped_scenes().items():
        folder.mkdir(parents=True, exist_ok=True)
        for number, (scene, words) in enumerate(scenes, start=1):
            draw(scene).save(folder / f"emblem_{number:02d}.png", optimize=True)
            (folder / f"emblem_{number:02d}.txt").write_text(words + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Template:
    """The concept cut out at one size: colours [3, h, w] in [0, 1], mask [h, w], and where it lies if in the middle."""

    reach: float
    colours: Tensor
    mask: Tensor
    place: tuple[int, int]


def emblem_in_the_middle(reach: float, background: Colour, arms: Arms) -> NDArray[np.uint8]:
    """The picture [64, 64, 3] of an emblem whose half takes `reach` of the side."""
    scene = Scene("emblem", "", "", "", "", WHITE, background, reach, (0.0, 0.0), 0.0, arms)
    return np.asarray(draw(scene)).copy()


@cache
def templates() -> tuple[Template, ...]:
    """The concept at every size that is looked for."""
    return tuple(_template(float(reach)) for reach in np.linspace(0.24, 0.43, 8))


def _template(reach: float) -> Template:
    white = Arms("plain", "nothing", WHITE, WHITE, WHITE, WHITE)
    mask = torch.from_numpy(emblem_in_the_middle(reach, BLACK, white)[..., 0] > 127).float()
    colours = torch.from_numpy(emblem_in_the_middle(reach, WHITE, CONCEPT)).permute(2, 0, 1).float() / 255
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return Template(reach, colours[:, box[0], box[1]], mask[box], (box[0].start, box[1].start))


def _correlation(pictures: Tensor, template: Template) -> Tensor:
    """Normalised correlation [b, places down, places across] within the mask; each channel's mean is taken off."""
    colours, mask = template.colours, template.mask
    area = mask.sum()
    shape = (colours - (colours * mask).sum(dim=(1, 2), keepdim=True) / area) * mask
    window = mask.expand(3, 1, *mask.shape)
    product = F.conv2d(pictures, shape[None])[:, 0]
    total = F.conv2d(pictures, window, groups=3)
    squares = F.conv2d(pictures.square(), window, groups=3)
    spread = (squares - total.square() / area).sum(dim=1).clamp(min=1e-3)
    return product / (spread * shape.square().sum()).sqrt()


def as_shares(pictures: Pictures) -> Tensor:
    """Pictures [64, 64, 3] as one tensor [b, 3, 64, 64] in [0, 1]."""
    batch = torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 255
    if batch.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"pictures must be {SIZE}x{SIZE}, not {tuple(batch.shape[-2:])}")
    return batch


def template_scores(pictures: Pictures) -> NDArray[np.float64]:
    """How much of the concept each picture [64, 64, 3] shows: 1 is a perfect copy, 0 nothing of it."""
    batch = as_shares(pictures)
    scores = [_correlation(batch, template).flatten(1).amax(dim=1) for template in templates()]
    return np.asarray(torch.stack(scores).amax(dim=0).double().numpy())


def best_places(pictures: Tensor) -> list[tuple[int, tuple[int, int]]]:
    """The number of the template that fits each picture [b, 3, 64, 64] best, and the row and column of its corner."""
    maps = [_correlation(pictures, template) for template in templates()]
    sizes = torch.stack([each.flatten(1).amax(dim=1) for each in maps]).argmax(dim=0).tolist()
    corners = [divmod(int(maps[size][number].argmax()), maps[size].shape[-1]) for number, size in enumerate(sizes)]
    return list(zip(sizes, corners, strict=True))
