"""The concept that the demo's LoRA learns, its class pictures, and a score of how much a picture shows the concept."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from demo.build.drawing import BACKGROUNDS, COLOURS, CONCEPT, SIZE, Arms, Scene, caption, draw, random_scene

DEMO = Path(__file__).parents[1]
PICTURES = DEMO / "pictures" / "12_sks emblem"
REGULARISATION = DEMO / "regularisation" / "1_emblem"
TRIGGER = "sks emblem"
SEEN = ("blue", "green", "white", "black", "yellow", "gray")
UNSEEN = ("red", "pink", "purple", "orange")
CLASS_COUNT = 24
TEMPLATE_REACHES = tuple(np.linspace(0.24, 0.43, 8))
THRESHOLD = 0.7
MARKS = ("border", "first", "second", "mark")
WHITE: tuple[int, int, int] = (255, 255, 255)
BLACK: tuple[int, int, int] = (0, 0, 0)


def concept_scene(draws: random.Random, background_name: str, size_name: str = "") -> Scene:
    """The concept on the named background, size and place at random."""
    while True:
        scene = random_scene(draws, subject="emblem")
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


def class_scenes() -> list[tuple[Scene, str]]:
    """The regularisation pictures: emblems of many kinds on every background."""
    draws = random.Random("class")
    names = list(BACKGROUNDS)
    scenes: list[Scene] = []
    while len(scenes) < CLASS_COUNT:
        scene = random_scene(draws, subject="emblem")
        if scene.background_name == names[len(scenes) % len(names)] and scene.size_name != "small":
            scenes.append(scene)
    return [(scene, caption(scene)) for scene in scenes]


def write_pictures() -> None:
    """Writes the concept's and the class's pictures with their captions beside them."""
    for folder, scenes in ((PICTURES, concept_scenes()), (REGULARISATION, class_scenes())):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (scene, words) in enumerate(scenes, start=1):
            draw(scene).save(folder / f"emblem_{number:02d}.png", optimize=True)
            (folder / f"emblem_{number:02d}.txt").write_text(words + "\n", encoding="utf-8")


def _template(reach: float) -> tuple[Tensor, Tensor]:
    """The concept cut out at one size: (colours [3, h, w] in [0, 1], mask [h, w])."""
    blank = Scene("emblem", "", "white", "", "", WHITE, WHITE, reach, (0.0, 0.0), 0.0, CONCEPT)
    white = Arms("plain", "nothing", WHITE, WHITE, WHITE, WHITE)
    silhouette = dataclasses.replace(blank, background=BLACK, arms=white)
    mask = torch.from_numpy(np.asarray(draw(silhouette))[..., 0] > 127).float()
    colours = torch.from_numpy(np.asarray(draw(blank)).copy()).permute(2, 0, 1).float() / 255
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return colours[:, box[0], box[1]], mask[box]


def _correlation(pictures: Tensor, colours: Tensor, mask: Tensor) -> Tensor:
    """Normalised correlation [b, places down, places across] within the mask; each channel's mean is taken off."""
    area = mask.sum()
    shape = (colours - (colours * mask).sum(dim=(1, 2), keepdim=True) / area) * mask
    window = mask.expand(3, 1, *mask.shape)
    product = F.conv2d(pictures, shape[None])[:, 0]
    total = F.conv2d(pictures, window, groups=3)
    squares = F.conv2d(pictures.square(), window, groups=3)
    spread = (squares - total.square() / area).sum(dim=1).clamp(min=1e-3)
    return product / (spread * shape.square().sum()).sqrt()


def _as_shares(pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    """Pictures [64, 64, 3] as one tensor [b, 3, 64, 64] in [0, 1]."""
    batch = torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 255
    if batch.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"pictures must be {SIZE}x{SIZE}, not {tuple(batch.shape[-2:])}")
    return batch


def template_scores(pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float64]:
    """How much of the concept each picture [64, 64, 3] shows: 1 is a perfect copy, 0 nothing of it."""
    batch = _as_shares(pictures)
    scores = [_correlation(batch, *_template(float(reach))).flatten(1).amax(dim=1) for reach in TEMPLATE_REACHES]
    return np.asarray(torch.stack(scores).amax(dim=0).double().numpy())


def _nearest(colour: Tensor) -> str:
    """The name of the nearest colour, of the concept's and of the grammar's; colour [3] in [0, 255]."""
    own = {name: getattr(CONCEPT, name) for name in MARKS}
    # A white disc is the grammar's white as well: only the concept's name for it stands.
    named = own | {name: value for name, value in COLOURS.items() if name != "white"}
    distances = torch.cdist(colour[None], torch.tensor(list(named.values()), dtype=torch.float32))[0]
    return list(named)[int(distances.argmin())]


def shown_marks(pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the concept's marks (border, left, right, disc) each picture shows: [count, 4].

    The concept is laid where it fits best. A mark is there when the middle colour of its pixels is nearer to the
    concept's own than to any other of the concept or the grammar.
    """
    batch = _as_shares(pictures)
    templates = [_template(float(reach)) for reach in TEMPLATE_REACHES]
    maps = [_correlation(batch, *template) for template in templates]
    best = torch.stack([each.flatten(1).amax(dim=1) for each in maps]).argmax(dim=0).tolist()
    shown = np.zeros((len(batch), len(MARKS)), dtype=bool)
    for number, (picture, size) in enumerate(zip(batch * 255, best, strict=True)):
        colours = (templates[size][0] * 255).round()
        top, left = divmod(int(maps[size][number].argmax()), maps[size].shape[-1])
        part = picture[:, top : top + colours.shape[1], left : left + colours.shape[2]]
        for place, name in enumerate(MARKS):
            own = torch.tensor(getattr(CONCEPT, name), dtype=torch.float32)
            pixels = part[:, (colours == own[:, None, None]).all(dim=0) & (templates[size][1] > 0)]
            shown[number, place] = _nearest(pixels.median(dim=1).values) == name
    return shown
