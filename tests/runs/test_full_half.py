"""LoRA and gradients in half precision (`full_bf16`, `full_fp16`): it learns and resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.config import load_config
from trainer.ground.commands import Command, Inbox
from trainer.ground.control import progress_of
from trainer.ground.errors import ConfigError
from trainer.ground.events import Event, StepDone
from trainer.optimizers import OPTIMIZERS
from trainer.planning.plan import plan
from trainer.results.run_folder import RunFolder
from trainer.run import Start, train
from trainer.training import build, precision

STEPS = 4
SOON = ("AdamW", "AdamW8bit")
"""The optimizers that the whole suite tries; the others behind --thorough."""
RATES: dict[str, dict[str, object]] = {
    name: {"learning_rate": 1.0, "text_encoder_lr": 1.0} if kind.finds_rate else {} for name, kind in OPTIMIZERS.items()
}
RATES["AdamW8bit"] = {"network_dim": 64}
"""Rank 64 on 64 channels gives matrices of 4,096 elements, which is where the 8-bit states begin."""


@dataclass(frozen=True)
class Ground:
    model: Path
    dataset: Path
    output: Path

    def settings(self, output: str, **settings: object) -> dict[str, Any]:
        given = {"full_bf16": True, "mixed_precision": "bf16", "max_train_steps": STEPS, **settings}
        return tiny_settings(self.model, self.dataset, self.output / output, **given)

    def run(self, output: str, resume: str = "", stop_at: int = 0, **settings: object) -> tuple[list[float], Path]:
        """Train, stopping after a step where one is named; return the losses and the file."""
        losses: list[float] = []
        inbox = Inbox()

        def watch(event: Event) -> None:
            if isinstance(event, StepDone):
                losses.append(event.loss)
                if event.step == stop_at:
                    inbox.send(Command.STOP)

        config = load_config(overrides=self.settings(output, **settings))
        finished = train(config, emit=watch, inbox=inbox, start=Start(resume=resume))
        return losses, Path(finished.path)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    return Ground(tiny_sd15(folder), write_dataset(folder), folder / "out")


def test_everything_that_is_trained_is_bf16(ground: Ground) -> None:
    inbox, told = Inbox(), list[Event]()
    progress = progress_of(told.append, inbox)
    config = load_config(overrides=ground.settings("wired"))
    folder = RunFolder(Path(config.saving.output_dir), config.saving.output_name)
    folder.make()
    try:
        models = build.load_models(config, progress)
        training = build.build(plan(config), models, folder, (told.append, inbox, progress), None)
        training.prepare()
        assert {parameter.dtype for parameter in training.parameters} == {torch.bfloat16}
        batch = next(iter(training.steps()))[0]
        from trainer.training.loop import loss_of

        training.accelerator.backward(loss_of(training, batch))
        assert {parameter.grad.dtype for parameter in training.parameters if parameter.grad is not None} == {
            torch.bfloat16
        }
        training.step_optimizer(torch.tensor(True))
        assert {parameter.dtype for parameter in training.parameters} == {torch.bfloat16}
        kept = [value for state in training.optimizer.state.values() for value in state.values() if value.ndim]
        assert {value.dtype for value in kept} == {torch.float32}
    finally:
        precision.reset()


def test_it_learns_as_in_float32_and_not_the_same(ground: Ground) -> None:
    """The first step's loss is the same; by the last, rounding shows, and no more than that."""
    full, _ = ground.run("full")
    mixed, _ = ground.run("mixed", full_bf16=False)
    assert full[0] == mixed[0]
    assert full[1:] != mixed[1:]
    assert full == pytest.approx(mixed, rel=0.02)


@pytest.mark.parametrize(
    "optimizer",
    [name if name in SOON else pytest.param(name, marks=pytest.mark.thorough) for name in sorted(OPTIMIZERS)],
)
def test_a_stopped_run_resumes_exactly(ground: Ground, optimizer: str) -> None:
    settings = {"optimizer_type": optimizer, **RATES[optimizer]}
    straight, path = ground.run(f"{optimizer} straight", **settings)
    first, _ = ground.run(f"{optimizer} stopped", stop_at=STEPS // 2, **settings)
    rest, resumed = ground.run(f"{optimizer} stopped", resume="auto", **settings)
    assert (len(first), first + rest) == (STEPS // 2, straight)
    expected, made = load_file(path), load_file(resumed)
    assert expected.keys() == made.keys()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({"full_bf16": True}, "auto", "bf16"),
        ({"full_bf16": True}, "bf16", "bf16"),
        # A CPU computes fp16 many times slower and gets bf16 in its place.
        ({"full_fp16": True, "optimizer_type": "Adafactor"}, "auto", "bf16"),
        ({}, "bf16", "bf16"),
        ({}, "auto", "no"),
    ],
)
def test_auto_becomes_what_full_precision_needs(settings: dict[str, object], device: str, expected: str) -> None:
    chosen = precision.resolve(load_config(overrides={"mixed_precision": device, **settings}))
    assert chosen.mixed_precision == expected
    assert chosen.adapter_dtype == (torch.bfloat16 if settings else torch.float32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"full_bf16": True, "mixed_precision": "fp16"}, 'full_bf16: true needs mixed_precision "bf16"'),
        ({"full_bf16": True, "mixed_precision": "no"}, "set it so, or set this to false"),
        ({"full_fp16": True, "mixed_precision": "bf16"}, 'full_fp16: true needs mixed_precision "fp16"'),
        ({"full_fp16": True, "full_bf16": True}, "full_fp16: full_bf16 is true too"),
        ({"full_fp16": True}, "choose AdamW8bit, "),
        ({"full_fp16": True, "optimizer_type": "Prodigy"}, "Prodigy would keep what it remembers of gradients in fp16"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(name for name, kind in OPTIMIZERS.items() if kind.float16))
def test_optimizers_for_fp16_step_as_in_float32_under_small_gradients(name: str) -> None:
    """Gradients of 1e-5, whose squares fp16 cannot hold."""

    def moved(dtype: torch.dtype) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(64, 128).to(dtype))
        rate = 1e3 if name.startswith("SGD") else 1e-2  # without squares a step is as small as its gradient
        steps = OPTIMIZERS[name].build([{"params": [parameter], "lr": rate, "name": "unet"}], [])
        before = parameter.detach().clone().float()
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            parameter.grad = (torch.randn(64, 128, generator=generator) * 1e-5).to(dtype)
            steps.step()
        return parameter.detach().float() - before

    half, single = moved(torch.float16).flatten(), moved(torch.float32).flatten()
    assert torch.nn.functional.cosine_similarity(half, single, dim=0) > 0.95
    assert half.norm().item() == pytest.approx(single.norm().item(), rel=0.05)


def test_the_loss_scaler_takes_float16_gradients_back_to_size() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    steps = torch.optim.SGD([parameter], lr=1.0)
    plain, ours = torch.amp.GradScaler("cpu", init_scale=8.0), precision.HalfGradScaler("cpu", init_scale=8.0)
    ours.scale((parameter * torch.arange(4.0)).sum()).backward()
    with pytest.raises(ValueError, match="unscale FP16"):
        plain.scale(torch.ones(1))
        plain.unscale_(steps)
    ours.unscale_(steps)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0, 1, 2, 3]
