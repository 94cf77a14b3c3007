"""A step that does not fit is done again in parts, with the same numbers; a limit stands in for a GPU's memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from tests.training.test_loop import wired
from trainer.ground import events
from trainer.ground.errors import RunError
from trainer.training import loop
from trainer.training.micro_batches import MicroBatchSize
from trainer.training.training import Training

GPU_ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def trained(
    ground: tuple[Path, Path], output: Path, fits: Callable[[Training, int], bool], **settings: object
) -> tuple[Training, list[events.Event]]:
    """Train three steps of up to five pictures with a UNet that runs out of memory where `fits` says no.

    The first micro-batch always fits, so that gradients are there when the next one does not.
    """
    more = {"gradient_accumulation_steps": 2, "adaptive_noise_scale": 0.1, "noise_offset": 0.1, **settings}
    told: list[events.Event] = []
    training = wired(tiny_config(*ground, output, max_train_steps=3, train_batch_size=5, **more), told)
    predict, calls = training.bundle.predict, itertools.count()

    def limited(noisy: Tensor, *others: object) -> Tensor:
        if next(calls) > 0 and not fits(training, len(noisy)):
            raise torch.OutOfMemoryError(GPU_ERROR)
        return predict(noisy, *others)

    training.bundle.predict = limited  # type: ignore[method-assign]
    loop.train(training)
    return training, told


def losses(told: Sequence[events.Event]) -> list[float]:
    return [event.loss for event in told if isinstance(event, events.StepDone)]


def test_parts_of_a_batch_have_the_batchs_numbers(ground: tuple[Path, Path], tmp_path: Path) -> None:
    training = wired(tiny_config(*ground, tmp_path, train_batch_size=5), [])
    batch = next(each for each in training.batches if len(each.slots) == 5)
    parts = batch.split(2)
    assert [len(part.slots) for part in parts] == [2, 2, 1]
    for name in ("slots", "names", "captions"):
        assert sum((getattr(part, name) for part in parts), ()) == getattr(batch, name)
    for name in ("mean", "std", "loss_weights"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    ids = [each.tokens["text_encoder"]["ids"] for each in (batch, *parts) if each.tokens]
    assert torch.equal(torch.cat(ids[1:]), ids[0])
    for name in ("noise", "posterior", "timesteps"):
        assert torch.equal(torch.cat([getattr(part.draws, name) for part in parts]), getattr(batch.draws, name))
    assert batch.split(5) == (batch,)


@pytest.mark.parametrize(
    ("fits", "micro_batch_size", "tries"),
    [
        (lambda training, samples: samples <= 3, MicroBatchSize(3, False), 1),
        (lambda training, samples: samples <= 1, MicroBatchSize(1, False), 3),
        (lambda training, samples: training.bundle.unet.is_gradient_checkpointing, MicroBatchSize(1, True), 4),
    ],
    ids=["halves", "single pictures", "checkpointing"],
)
def test_a_step_that_does_not_fit_is_done_again(
    ground: tuple[Path, Path],
    tmp_path: Path,
    fits: Callable[[Training, int], bool],
    micro_batch_size: MicroBatchSize,
    tries: int,
) -> None:
    _, expected = trained(ground, tmp_path / "straight", lambda training, samples: True)
    training, told = trained(ground, tmp_path / "out", fits)
    assert training.micro_batch_size == micro_batch_size
    assert losses(told) == pytest.approx(losses(expected), rel=1e-5)
    warnings = [event.message for event in told if isinstance(event, events.Warned)]
    assert sum("Step 1 ran out of memory: CUDA out of memory" in text for text in warnings) == tries
    one, other = (load_file(tmp_path / name / "tiny.safetensors") for name in ("straight", "out"))
    assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one)


def test_when_nothing_fits_the_error_says_what_else_to_lower(ground: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        trained(ground, tmp_path, lambda training, samples: False)
    assert "2.00 GiB" in caught.value.message
    assert "lower resolution" in caught.value.remedy
    assert "gradient_checkpointing" not in caught.value.remedy
    assert "train_batch_size" not in caught.value.remedy


def test_switched_off_nothing_is_tried_again(ground: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(ground, tmp_path, lambda training, samples: samples < 5, step_down_on_out_of_memory=False)
