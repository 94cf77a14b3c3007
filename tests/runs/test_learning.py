"""Every optimizer lowers the loss on the demo at the rate that it is advised with."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

from tests.training.test_loop import wired
from trainer.config import load_config
from trainer.config.files import PRESETS
from trainer.optimizers import OPTIMIZERS
from trainer.training import loop
from trainer.training.training import Training

SOON = ("AdamW", "AdamWScheduleFree")
"""What the whole suite tries, for a few steps; all of them, and longer, behind --thorough."""
STEPS, MORE = 30, 150
MEASURED = 6
FEW_STEPS = {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 5}


def loss_of(training: Training, batches: list[object]) -> float:
    """The mean loss over batches with fixed draws, of the weights that a file would get."""
    with torch.no_grad(), training.used():
        return sum(float(loop.loss_of(training, batch)) for batch in batches) / len(batches)  # type: ignore[arg-type]


def trained(optimizer: str, output: Path, steps: int) -> tuple[float, float]:
    """Train on the demo, and return the loss before and after."""
    rate = (OPTIMIZERS[optimizer].usual_rates or (1e-4, 1e-4, 1e-4))[2]
    config = load_config(
        PRESETS / "demo.toml",
        overrides={
            "optimizer_type": optimizer,
            "learning_rate": rate,
            "text_encoder_lr": rate,
            "optimizer_args": list(OPTIMIZERS[optimizer].usual_arguments),
            "max_train_epochs": None,
            "max_train_steps": steps + MEASURED,
            "sample_prompts": "",
            "output_dir": str(output),
            "max_grad_norm": 0.0 if OPTIMIZERS[optimizer].clips else 1.0,
            **FEW_STEPS,
        },
    )
    training = wired(config, [])
    steps_of = training.steps()
    measured = [batch for batches in itertools.islice(steps_of, MEASURED) for batch in batches]
    before = loss_of(training, measured)
    for batches in itertools.islice(steps_of, steps):
        loop.accumulate(training, batches)
        loop.update(training, loop.clip(training))
        training.step += 1
    return before, loss_of(training, measured)


@pytest.mark.parametrize("optimizer", SOON)
def test_an_optimizer_lowers_the_loss_on_the_demo(optimizer: str, tmp_path: Path) -> None:
    before, after = trained(optimizer, tmp_path, STEPS)
    assert after < before


@pytest.mark.thorough
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_on_the_demo(optimizer: str, tmp_path: Path) -> None:
    before, after = trained(optimizer, tmp_path, MORE)
    sys.stdout.write(f"\n{optimizer}: {before:.5f} -> {after:.5f} ({after / before - 1:+.2%})\n")
    assert after < before
