"""A small classifier that says what a 64x64 picture shows, and how many of a model's samples show their captions."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from demo.build.dataset import WORK, as_pixels
from demo.build.drawing import BACKGROUNDS, COLOURS, Scene, caption, draw, random_scene
from demo.build.sampling import Model, sample
from demo.build.shapes import SUBJECTS

LOGGER = logging.getLogger(__name__)
LABELS: dict[str, tuple[str, ...]] = {
    "shape": (*SUBJECTS, "emblem"),
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
}
FILE = "judge.pt"
TRAIN_COUNT = 9000
CHECK_COUNT = 600
PASSES = 6
BATCH = 50
SAMPLES = 96


class Judge(nn.Module):
    """Four strided convolutions and one linear layer for each question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        layers: list[nn.Module] = []
        for inside, outside in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(4, outside), nn.GELU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(64 * 16, len(words)) for name, words in LABELS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits for each question; pixels [b, 3, 64, 64] in [-1, 1]."""
        inside = self.trunk(pixels)
        return {name: head(inside) for name, head in self.heads.items()}

    @torch.no_grad()
    def answers(self, pictures: NDArray[np.uint8]) -> list[dict[str, str]]:
        """What each picture [64, 64, 3] shows, in the grammar's words."""
        logits = self(as_pixels(pictures))
        chosen = {name: values.argmax(dim=1).tolist() for name, values in logits.items()}
        return [{name: LABELS[name][chosen[name][place]] for name in LABELS} for place in range(len(pictures))]


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares of right answers, 0 to 1; ``colours`` counts the object's and the background's answers together."""

    shapes: float
    colour: float
    background: float

    @property
    def colours(self) -> float:
        return (self.colour + self.background) / 2


def scenes_of(seed: str, count: int) -> list[Scene]:
    """Scenes of the grammar, one subject after another, in the plain style and at each size."""
    draws = random.Random(seed)
    subjects = list(SUBJECTS)
    return [random_scene(draws, subject=subjects[place % len(subjects)], style="") for place in range(count)]


def _drawings(seed: str, count: int, style: str | None = None) -> tuple[NDArray[np.uint8], dict[str, Tensor]]:
    draws = random.Random(seed)
    scenes = [random_scene(draws, style=style) for _ in range(count)]
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    # -100 is cross_entropy's "not asked": an emblem has no one colour.
    labels = {
        "shape": [LABELS["shape"].index(scene.subject) for scene in scenes],
        "colour": [LABELS["colour"].index(scene.colour_name) if scene.colour_name else -100 for scene in scenes],
        "background": [LABELS["background"].index(scene.background_name) for scene in scenes],
    }
    return pictures, {name: torch.tensor(values) for name, values in labels.items()}


def train_judge(count: int = TRAIN_COUNT, passes: int = PASSES, seed: int = 31) -> Judge:
    """Trains a judge on real drawings, half of them softened so that a blurred edge does not matter."""
    torch.manual_seed(seed)
    judge = Judge()
    pictures, labels = _drawings(f"judge-{seed}", count)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=passes * (count // BATCH))
    for _ in range(passes):
        order = torch.randperm(count)
        for chosen in order[: count // BATCH * BATCH].split(BATCH):
            pixels = as_pixels(pictures[chosen.numpy()])
            soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            pixels = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, soft, pixels)
            pixels = pixels + 0.03 * torch.randn_like(pixels)
            logits = judge(pixels)
            loss = torch.stack([F.cross_entropy(logits[name], labels[name][chosen]) for name in LABELS]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval().requires_grad_(False)


def read_judge(work: Path = WORK) -> Judge:
    """The judge of the work folder, trained there first if it is missing (about a minute)."""
    path = work / FILE
    if not path.exists():
        judge = train_judge()
        work.mkdir(parents=True, exist_ok=True)
        torch.save(judge.state_dict(), path)
    judge = Judge()
    judge.load_state_dict(torch.load(path, weights_only=True))
    return judge.eval().requires_grad_(False)


def figures(judge: Judge, pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> Figures:
    """How many pictures show the scenes that they were asked for."""
    answers = judge.answers(pictures)
    pairs = list(zip(answers, scenes, strict=True))
    return Figures(
        shapes=float(np.mean([answer["shape"] == scene.subject for answer, scene in pairs])),
        colour=float(np.mean([answer["colour"] == scene.colour_name for answer, scene in pairs])),
        background=float(np.mean([answer["background"] == scene.background_name for answer, scene in pairs])),
    )


def shuffled(scenes: Sequence[Scene], seed: int = 1) -> list[Scene]:
    """The same scenes in another order: what a judge that ignores the caption would be measured against."""
    mixed = list(scenes)
    random.Random(seed).shuffle(mixed)
    return mixed


def judge_drawings(judge: Judge, count: int = CHECK_COUNT) -> tuple[Figures, Figures]:
    """The judge's own figures on unseen real drawings: with their captions, and with shuffled ones."""
    scenes = scenes_of("real drawings", count)
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return figures(judge, pictures, scenes), figures(judge, pictures, shuffled(scenes))


def judge_model(judge: Judge, model: Model, count: int = SAMPLES, seed: int = 41) -> tuple[Figures, Figures]:
    """The model's figures on ``count`` captions: as asked, and against shuffled captions."""
    scenes = scenes_of("samples", count)
    parts = [
        sample(model, [caption(scene) for scene in scenes[start : start + 16]], seed=seed + start)
        for start in range(0, count, 16)
    ]
    pictures = np.concatenate(parts)
    return figures(judge, pictures, scenes), figures(judge, pictures, shuffled(scenes))
