"""What is saved where it is not what is trained: schedule-free averages, and the moving average (`use_ema`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import VALIDATED, tiny_settings, write_dataset
from trainer.config import load_config
from trainer.ground import events
from trainer.run import train

COMMON = {"max_train_steps": 4, "save_precision": "float", "learning_rate": 1e-2, "text_encoder_lr": 1e-2}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def run(ground: tuple[Path, Path], output: Path, **settings: object) -> tuple[Path, dict[str, torch.Tensor], Any]:
    """Train; return the output folder, the matrices of the newest state, and the optimizer's part of it."""
    train(load_config(overrides=tiny_settings(*ground, output, **{**COMMON, **settings})), emit=lambda event: None)
    state = max((output / "tiny.run" / "state").glob("step-*"))
    trained = torch.load(state / "optimizer.pt", weights_only=True)
    return output, load_file(state / "adapter.safetensors"), trained["optimizer"]


def kept(optimizer: Any, name: str) -> list[torch.Tensor]:
    """What the optimizer keeps of each matrix."""
    return [optimizer["state"][index][name] for group in optimizer["param_groups"] for index in group["params"]]


def matrices(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [key for key in tensors if not key.endswith(".alpha")]


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "ProdigyPlusScheduleFree"])
def test_a_file_holds_the_average_and_the_state_what_is_trained(
    ground: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    rates = {"learning_rate": 1.0, "text_encoder_lr": 1.0} if name.startswith("Prodigy") else {}
    output, adapter, optimizer = run(ground, tmp_path, optimizer_type=name, **rates)
    assert all(group["train_mode"] for group in optimizer["param_groups"])
    saved = load_file(output / "tiny.safetensors")
    assert any(not torch.equal(saved[key], adapter[key]) for key in matrices(adapter))
    beta, iterates = optimizer["param_groups"][0]["betas"][0], kept(optimizer, "z")
    assert len(iterates) == len(matrices(adapter))
    for key in matrices(adapter):  # which iterate belongs to it is not written down
        of_shape = [each for each in iterates if each.shape == adapter[key].shape]
        averages = [adapter[key] + (each - adapter[key]) * (1 - 1 / beta) for each in of_shape]
        assert any(torch.allclose(saved[key], each, rtol=1e-4, atol=1e-7) for each in averages), key


def test_the_moving_average_lies_beside_the_file_and_changes_nothing(ground: tuple[Path, Path], tmp_path: Path) -> None:
    plain, _, _ = run(ground, tmp_path / "plain")
    output, adapter, optimizer = run(ground, tmp_path / "averaged", use_ema=True, ema_decay=0.9, save_every_n_steps=2)
    raw, average = load_file(output / "tiny.safetensors"), load_file(output / "tiny-ema.safetensors")
    expected = load_file(plain / "tiny.safetensors")
    assert all(torch.equal(raw[key], value) for key, value in expected.items())
    assert (output / "tiny-step00000002-ema.safetensors").is_file()
    assert not list(plain.glob("*-ema*"))
    values = kept(optimizer, "ema")
    assert len(values) == len(matrices(adapter))
    for key in matrices(adapter):
        assert torch.equal(raw[key], adapter[key])
        assert any(torch.equal(average[key], value) for value in values if value.shape == average[key].shape), key
    assert any(not torch.equal(average[key], raw[key]) for key in matrices(adapter))
    with safe_open(output / "tiny-ema.safetensors", "pt") as file:
        assert file.metadata()["ss_ema_decay"] == "0.9"


def test_validation_is_of_what_is_shown(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """With `sample_ema` of the average; the model without the adapter is the same either way."""
    losses: dict[bool, list[float]] = {}
    for shown in (False, True):
        seen: list[events.Event] = []
        settings = {**COMMON, "use_ema": True, "ema_decay": 0.9, "sample_ema": shown}
        config = load_config(overrides=tiny_settings(*ground, tmp_path / str(shown), **settings, **VALIDATED))
        train(config, emit=seen.append)
        losses[shown] = [each.loss for each in seen if isinstance(each, events.Validated) and each.on == "training"]
    assert len(losses[True]) == len(losses[False]) >= 2
    assert losses[True][0] == losses[False][0]
    assert all(averaged != newest for averaged, newest in zip(losses[True][1:], losses[False][1:], strict=True))
