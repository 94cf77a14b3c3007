"""Commands in the middle of any phase: a pause saves and says what is so, a stop finishes, nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import VALIDATED, logged, tiny_config, write_dataset
from trainer import Start, train
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.training.states import load_newest

SETTINGS: dict[str, object] = {
    "max_train_steps": 4,
    "network_train_unet_only": True,
    "cache_text_encoder_outputs": True,
    "sample_prompts": "tok class --w 64 --h 64 --s 2 --d 1",
    "sample_every_n_steps": 2,
    **VALIDATED,
}
WITH_A_STATE = {"reading pictures", "caching latents", "caching captions", "drawing samples", "validating"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


@pytest.fixture(scope="module")
def straight(ground: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    train(tiny_config(*ground, output, **SETTINGS), emit=lambda event: None)
    return output


def assert_same_lora(one: Path, other: Path) -> None:
    expected, found = load_file(one / "tiny.safetensors"), load_file(other / "tiny.safetensors")
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def in_phase(name: str, inbox: Inbox, *commands: Command) -> Callable[[events.Event], None]:
    """Return a watcher that sends commands when a phase is first heard of."""
    left = list(commands)

    def watch(event: events.Event) -> None:
        if isinstance(event, events.Stage) and event.name == name:
            while left:
                inbox.send(left.pop(0))

    return watch


def test_a_pause_in_each_phase_saves_first_and_one_resume_ends_it(
    ground: tuple[Path, Path], straight: Path, tmp_path: Path
) -> None:
    """Pause is pressed twice in each phase; a run whose commands pile up waits for ever at the first."""
    inbox, paused, seen = Inbox(), dict[str, events.Paused](), set[str]()
    inbox.send(Command.PAUSE)

    def watch(event: events.Event) -> None:
        if isinstance(event, events.Stage) and event.name not in seen:
            seen.add(event.name)
            inbox.send(Command.PAUSE)
            inbox.send(Command.PAUSE)
        if isinstance(event, events.Paused):
            paused[event.phase] = event
            state = load_newest(tmp_path / "tiny.run" / "state", pytest.fail)
            assert event.saved == (state is not None)
            assert state is None or state.position.step == event.step
            inbox.send(Command.RESUME)

    train(tiny_config(*ground, tmp_path, **SETTINGS), emit=watch, inbox=inbox)
    assert paused.keys() >= WITH_A_STATE
    assert {name for name, event in paused.items() if not event.saved} == paused.keys() - WITH_A_STATE
    assert paused["drawing samples"].step == 2
    assert all(paused[name].device_free for name in WITH_A_STATE)
    assert_same_lora(straight, tmp_path)
    kinds = [record["event"] for record in logged(tmp_path / "tiny.run")]
    assert kinds.count("Paused") == kinds.count("Resumed") == len(WITH_A_STATE)
    assert kinds.count("SampleReady") == 2


def test_save_now_is_done_before_a_pause_in_the_same_phase(ground: tuple[Path, Path], tmp_path: Path) -> None:
    inbox, story = Inbox(), list[str]()
    press = in_phase("drawing samples", inbox, Command.PAUSE, Command.SAVE_NOW)

    def watch(event: events.Event) -> None:
        press(event)
        if isinstance(event, events.Saved):
            story.append(Path(event.path).name)
        if isinstance(event, events.Paused):
            story.append("paused")
            inbox.send(Command.SAVE_NOW)
            inbox.send(Command.RESUME)

    train(tiny_config(*ground, tmp_path, **SETTINGS), emit=watch, inbox=inbox)
    assert story[:3] == ["tiny-step00000002.safetensors", "step-00000002", "paused"]


@pytest.mark.parametrize("phase", sorted(WITH_A_STATE - {"drawing samples"}))
def test_a_stop_before_the_first_step_writes_no_lora(ground: tuple[Path, Path], tmp_path: Path, phase: str) -> None:
    inbox = Inbox()
    watch = in_phase(phase, inbox, Command.SAVE_NOW, Command.STOP)
    finished = train(tiny_config(*ground, tmp_path, **SETTINGS), emit=watch, inbox=inbox)
    assert (finished.step, finished.path, finished.stopped) == (0, "", True)
    assert not list(tmp_path.glob("*.safetensors"))
    train(tiny_config(*ground, tmp_path, **SETTINGS), emit=lambda event: None, start=Start(resume="auto"))
    assert (tmp_path / "tiny.safetensors").exists()


@pytest.mark.parametrize("phase", ["caching latents", "drawing samples"])
def test_a_stop_while_going_on_leaves_the_finished_file(ground: tuple[Path, Path], tmp_path: Path, phase: str) -> None:
    """What goes on first is the sample picture that the end of the first sitting cut short."""
    config = tiny_config(*ground, tmp_path, **SETTINGS)
    first = Inbox()
    train(config, emit=in_phase("drawing samples", first, Command.SAVE_NOW, Command.ABORT), inbox=first)
    assert not (tmp_path / "tiny.safetensors").exists()
    inbox = Inbox()
    watch = in_phase(phase, inbox, Command.STOP)
    finished = train(config, emit=watch, inbox=inbox, start=Start(resume="auto"))
    assert (finished.step, finished.stopped) == (2, True)
    assert Path(finished.path).exists()


def test_samples_that_a_stop_cut_short_are_drawn_by_the_resume(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """A stop while validation is under way, before the pictures of that step: the first sitting draws none."""
    inbox = Inbox()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 2:
            inbox.send(Command.STOP)

    config = tiny_config(*ground, tmp_path, **SETTINGS, validate_every_n_steps=2)
    assert train(config, emit=watch, inbox=inbox).step == 2
    assert not [record for record in logged(tmp_path / "tiny.run") if record["event"] == "SampleReady"]
    train(config, emit=lambda event: None, start=Start(resume="auto"))
    steps = [record["step"] for record in logged(tmp_path / "tiny.run") if record["event"] == "SampleReady"]
    assert steps == [2, 4]


def test_sample_now_while_samples_are_drawn_draws_them_once(ground: tuple[Path, Path], tmp_path: Path) -> None:
    inbox = Inbox()
    watch = in_phase("drawing samples", inbox, Command.SAMPLE_NOW, Command.SAMPLE_NOW)
    train(tiny_config(*ground, tmp_path, **SETTINGS), emit=watch, inbox=inbox)
    steps = [record["step"] for record in logged(tmp_path / "tiny.run") if record["event"] == "SampleReady"]
    assert steps == [2, 4]


def test_a_stop_after_steps_that_changed_nothing_writes_no_lora(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """The first step of a warm-up has the rate 0."""
    inbox = Inbox()

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            inbox.send(Command.STOP)

    config = tiny_config(*ground, tmp_path, max_train_steps=6, lr_warmup_steps=6, save_every_n_steps=1)
    finished = train(config, emit=watch, inbox=inbox)
    assert (finished.step, finished.path, finished.stopped) == (1, "", True)
    assert not list(tmp_path.glob("*.safetensors"))
    train(config, emit=lambda event: None, start=Start(resume="auto"))
    assert any(bool(tensor.any()) for key, tensor in load_file(tmp_path / "tiny.safetensors").items() if "up" in key)
