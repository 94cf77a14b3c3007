"""What only watches a run (samples, TensorBoard, the terminal) costs a notice where it fails, and never the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import logged, tiny_config, write_dataset
from tests.training.test_loop import wired
from trainer import Start, train
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.results import sinks
from trainer.training import loop

PROMPTS = "tok class --w 128 --h 64 --s 2 --d 1\nanother --w 64 --h 64 --s 2 --d 2"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def warnings(told: list[events.Event]) -> list[str]:
    return [event.message for event in told if isinstance(event, events.Warned)]


def test_sample_pictures_that_cannot_be_written(ground: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[events.Event] = []

    def watch(event: events.Event) -> None:
        told.append(event)
        if isinstance(event, events.StepDone) and event.step == 1:
            shutil.rmtree(tmp_path / "tiny.run" / "samples")

    config = tiny_config(*ground, tmp_path, max_train_steps=3, sample_prompts=PROMPTS, sample_every_n_steps=1)
    finished = train(config, emit=watch)
    assert (finished.step, finished.stopped, Path(finished.path).exists()) == (3, False, True)
    failed = [text for text in warnings(told) if "goes on without" in text]
    assert len(failed) == 6
    assert all("samples" in text and "No such file" in text for text in failed)


def test_a_sample_picture_that_fails_by_whatever_error(
    ground: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[events.Event] = []
    training = wired(
        tiny_config(*ground, tmp_path, max_train_steps=2, sample_prompts=PROMPTS, sample_every_n_steps=2), told
    )

    def broken(latents: torch.Tensor) -> torch.Tensor:
        raise IndexError("index 1000 is out of bounds for dimension 0 with size 1000")

    training.bundle.decode_latents = broken  # type: ignore[method-assign]
    assert not loop.train(training).stopped
    assert [text for text in warnings(told) if "Sample picture 2 after step 2 failed" in text and "index 1000" in text]
    assert "Traceback" in caplog.text


def test_memory_that_runs_out_while_drawing_lowers_the_picture(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """A limit on what the decoder is given stands in for a GPU's memory."""
    told: list[events.Event] = []
    training = wired(
        tiny_config(*ground, tmp_path, max_train_steps=2, sample_prompts=PROMPTS, sample_every_n_steps=1), told
    )
    decode = training.bundle.decode_latents

    def limited(latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[-1] * latents.shape[-2] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(latents)

    training.bundle.decode_latents = limited  # type: ignore[method-assign]
    loop.train(training)
    sizes = [_size(event.path) for event in told if isinstance(event, events.SampleReady)]
    assert sizes == [(64, 64)] * 4
    assert sum("128x64 ran out of memory" in text for text in warnings(told)) == 1
    assert training.micro_batch_size is None


def _size(path: str) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(each.step, each.value) for each in found.Scalars(name)]


def test_tensorboard_holds_each_step_once_after_a_crash(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """Aborted at step 5 with the newest state of step 3, and gone on from there."""
    logs = tmp_path / "logs"
    settings = {"max_train_steps": 8, "log_with": "tensorboard", "logging_dir": str(logs)}
    config, inbox = tiny_config(*ground, tmp_path / "out", **settings), Inbox()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            if event.step == 3:
                inbox.send(Command.SAVE_NOW)
            if event.step == 5:
                inbox.send(Command.ABORT)

    train(config, emit=watch, inbox=inbox)
    train(config, emit=lambda event: None, start=Start(resume="auto"))
    steps = [step for step, _ in scalars(logs / "tiny", "loss/current")]
    assert steps == list(range(1, 9))
    told = [record["loss"] for record in logged(tmp_path / "out" / "tiny.run") if record["event"] == "StepDone"]
    assert [value for _, value in scalars(logs / "tiny", "loss/current")] == pytest.approx(told, rel=1e-6)


def test_tensorboard_draws_the_validation_of_the_lora_alone(tmp_path: Path) -> None:
    board = sinks.TensorBoard(tmp_path / "logs")
    board(events.Started(folder="f", step=0, total_steps=2, total_epochs=1, steps_per_epoch=2, resumed=False))
    board(events.Validated(step=0, epoch=0, loss=0.5, base=True))
    for step, loss in ((1, 0.25), (2, 0.125)):
        board(events.Validated(step=step, epoch=1, loss=loss))
        board(events.Validated(step=step, epoch=1, loss=9.0, on="table"))
    board.close()
    assert scalars(tmp_path / "logs", "loss/validation") == [(1, 0.25), (2, 0.125)]


def test_a_folder_that_tensorboard_cannot_write_to(ground: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[events.Event] = []
    settings = {"max_train_steps": 1, "log_with": "tensorboard", "logging_dir": str(tmp_path / "file")}
    assert not train(tiny_config(*ground, tmp_path / "out", **settings), emit=told.append).stopped
    assert [text for text in warnings(told) if text.startswith("TensorBoard failed")]


def test_a_terminal_that_is_gone_is_told_nothing_more() -> None:
    told: list[events.Event] = []
    calls: list[events.Event] = []

    def gone(event: events.Event) -> None:
        calls.append(event)
        raise BrokenPipeError("the terminal is gone")

    emit = sinks.fan_out((told.append,), (gone,))
    for _ in range(3):
        emit(events.Stage(name="scan"))
    assert len(calls) == 1
    assert [type(event).__name__ for event in told] == ["Stage", "Warned", "Stage", "Stage"]
