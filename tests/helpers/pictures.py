"""Small real pictures and folders of them in kohya's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from trainer.config import TrainingConfig, load_config

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "golden_data.json").read_text(encoding="utf-8"))


def gradient(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return an RGB picture whose colours change across it, so that flips, turns and cuts show; `seed` varies it."""
    width, height = size
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, down, Image.new("L", size, (37 * seed + 90) % 256)))


def write_picture(path: Path, size: tuple[int, int] = (64, 64), seed: int = 0, caption: str | None = None) -> Path:
    """Write a picture in the format of its extension, with a caption file where one is given; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gradient(size, seed).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def write_folder(folder: Path, count: int, size: tuple[int, int] = (64, 64), caption: str | None = None) -> Path:
    """Write `count` pictures that differ; return `folder`."""
    for index in range(count):
        write_picture(folder / f"{index:04d}.png", size, index, caption)
    return folder


def data_config(train: Path, reg: Path | None = None, **settings: object) -> TrainingConfig:
    """Return a configuration with these folders; the rest are defaults and `settings`."""
    layers: Mapping[str, object] = {"train_data_dir": str(train), "reg_data_dir": str(reg or ""), **settings}
    return load_config(overrides=layers)
