"""The pretraining pictures as arrays, drawn once from seeds and kept in the work folder."""

from __future__ import annotations

import json
import logging
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo.build.drawing import abstract, draw, random_caption, random_scene

WORK = Path(__file__).parent / "made"
TRAIN_COUNT = 20_000
HELD_OUT_COUNT = 500
ABSTRACT_COUNT = 2_500
CHUNK = 500
LOGGER = logging.getLogger(__name__)

Pictures = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drawings:
    """Pictures [count, 64, 64, 3] (uint8) and their captions; abstract pictures have none."""

    pictures: Pictures
    captions: tuple[str, ...]


def captioned_chunk(seed: str) -> tuple[Pictures, list[str]]:
    """One chunk of the grammar's pictures; a pure function of its seed."""
    draws = random.Random(seed)
    scenes = [random_scene(draws) for _ in range(CHUNK)]
    captions = [random_caption(draws, scene) for scene in scenes]
    return np.stack([np.asarray(draw(scene)) for scene in scenes]), captions


def abstract_chunk(seed: str) -> Pictures:
    draws = random.Random(seed)
    return np.stack([np.asarray(abstract(draws)) for _ in range(CHUNK)])


def draw_all(work: Path = WORK) -> None:
    """Draws the three sets into the work folder (some seconds on two cores)."""
    work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(max_workers=2) as pool:
        for name, count in {"train": TRAIN_COUNT, "held_out": HELD_OUT_COUNT}.items():
            chunks = list(pool.map(captioned_chunk, [f"{name}-{place}" for place in range(count // CHUNK)]))
            np.save(work / f"{name}.npy", np.concatenate([pictures for pictures, _ in chunks]))
            captions = [caption for _, captions in chunks for caption in captions]
            (work / f"{name}.json").write_text(json.dumps(captions), encoding="utf-8")
        seeds = [f"abstract-{place}" for place in range(ABSTRACT_COUNT // CHUNK)]
        np.save(work / "abstract.npy", np.concatenate(list(pool.map(abstract_chunk, seeds))))
    LOGGER.info("drew %d pictures into %s", TRAIN_COUNT + HELD_OUT_COUNT + ABSTRACT_COUNT, work)


def read(name: str, work: Path = WORK) -> Drawings:
    """Reads one of the sets "train", "held_out" and "abstract"."""
    captions = work / f"{name}.json"
    words = json.loads(captions.read_text(encoding="utf-8")) if captions.exists() else []
    return Drawings(np.load(work / f"{name}.npy"), tuple(words))


def as_pixels(pictures: Pictures) -> Tensor:
    """Pictures [count, height, width, 3] as pixels [count, 3, height, width] in [-1, 1], float32."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
