"""Runs of one tiny model on one folder of pictures, for the tests of a family of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.runs import logged, tiny_settings, write_dataset
from trainer import train
from trainer.config import TrainingConfig, load_config

Made = tuple[list[float], dict[str, Tensor]]
"""What a run made: the loss of each step, and the tensors of its file."""


class Ground:
    """A model in its own files, pictures, and where runs go; `usual` is what all runs have beside."""

    def __init__(self, given: Mapping[str, str], folder: Path, **usual: object) -> None:
        self.given, self.dataset, self.output = given, write_dataset(folder), folder / "out"
        self._usual = {"learning_rate": 5e-3, "text_encoder_lr": 0, "shuffle_caption": True, **usual}

    def settings(self, name: str, **more: object) -> dict[str, object]:
        """Return the settings of a run of this name."""
        model = Path(self.given["pretrained_model_name_or_path"])
        return tiny_settings(model, self.dataset, self.output / name, **{**self.given, **self._usual, **more})

    def config(self, name: str, **more: object) -> TrainingConfig:
        """Return the configuration of a run of this name."""
        return load_config(overrides=self.settings(name, **more))

    def run(self, name: str, **more: object) -> Made:
        """Train, and return what came of it."""
        train(self.config(name, **more), emit=lambda event: None)
        return self.made(name)

    def made(self, name: str) -> Made:
        """Return what a run of this name made."""
        losses = [each["loss"] for each in logged(self.output / name / "tiny.run") if each["event"] == "StepDone"]
        return losses, load_file(self.output / name / "tiny.safetensors")


def assert_equal(one: Made, other: Made) -> None:
    """Assert that two runs made the same, bit for bit."""
    assert one[0] == other[0] and one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
