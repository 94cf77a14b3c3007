"""Sample prompts that are changed while a run goes on: from the next pictures on, the same after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.events import Event
from trainer.results import prompt_changes
from trainer.results.event_log import read_events
from trainer.results.prompt_changes import Change
from trainer.results.run_folder import RunFolder
from trainer.run import Start, train

ONE = "tok --w 64 --h 64 --s 2 --d 1"
OTHERS = "class, red --w 64 --h 64 --s 2 --d 2\ntok --w 64 --h 64 --s 2 --d 3"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def drawn(folder: RunFolder) -> dict[tuple[int, int], bytes]:
    """The pictures by step and number."""
    ready = [event for event in read_events(folder.events) if isinstance(event, events.SampleReady)]
    found = {(each.step, each.index): Path(each.path).read_bytes() for each in ready}
    assert len(found) == len(ready) == len(list(folder.samples.glob("*.png")))
    return found


def told(folder: RunFolder) -> list[tuple[int, str]]:
    return [(each.step, each.prompts) for each in read_events(folder.events) if isinstance(each, events.PromptsChanged)]


@pytest.mark.parametrize("cached", [False, True], ids=["", "texts encoded ahead"])
def test_from_the_next_pictures_on_and_again_after_going_back(
    ground: tuple[Path, Path], tmp_path: Path, cached: bool
) -> None:
    options = {"max_train_steps": 6, "sample_every_n_steps": 2, "sample_prompts": ONE, "text_encoder_lr": 0.0}
    options |= {"save_state_minutes": 1e-6, "cache_text_encoder_outputs": cached, "validation_split": 0.0}
    config = tiny_config(*ground, tmp_path, **options)
    folder, inbox = RunFolder(tmp_path, "tiny"), Inbox()

    def want(event: Event) -> None:
        if isinstance(event, events.SampleReady) and event.step == 2:
            prompt_changes.ask(folder, OTHERS)
        if isinstance(event, events.SampleReady) and (event.step, event.index) == (4, 1):
            inbox.send(Command.STOP)

    train(config, emit=want, inbox=inbox)
    before = drawn(folder)
    assert list(before) == [(2, 0), (4, 0), (4, 1)]
    assert prompt_changes.changes(folder) == [Change(4, OTHERS)] and prompt_changes.asked(folder) is None
    assert told(folder) == [(4, OTHERS)]
    shutil.rmtree(folder.state / "step-00000004")  # as if killed before it was written

    train(config, emit=lambda event: None, start=Start(resume="auto"))
    after = drawn(folder)
    assert list(after) == [(2, 0), (4, 0), (4, 1), (6, 0), (6, 1)]
    assert {key: after[key] for key in before} == before, "the same pictures, by the prompts of then"
    assert told(folder) == [(4, OTHERS)]
    if cached:
        return

    prompt_changes.ask(folder, "tok --ss none")
    longer = tiny_config(*ground, tmp_path, **{**options, "max_train_steps": 8})
    train(longer, emit=lambda event: None, start=Start(resume="auto"))
    assert {index for step, index in drawn(folder) if step == 8} == {0, 1}, "those that cannot be read change nothing"
    said = [event.message for event in read_events(folder.events) if isinstance(event, events.Warned)]
    assert any("'none' is no sampler" in each and "stay as they were" in each for each in said)

    other = tiny_config(*ground, tmp_path, **{**options, "max_train_steps": 10, "sample_prompts": "red --s 2"})
    train(other, emit=lambda event: None, start=Start(resume="auto"))
    assert [index for step, index in drawn(folder) if step == 10] == [0], "other settings win"
    assert prompt_changes.changes(folder) == []


def test_a_run_killed_before_its_first_state_knows_them_too(ground: tuple[Path, Path], tmp_path: Path) -> None:
    options = {"max_train_steps": 3, "sample_every_n_steps": 1, "sample_prompts": ONE, "validation_split": 0.0}
    config = tiny_config(*ground, tmp_path, **options)
    folder, inbox = RunFolder(tmp_path, "tiny"), Inbox()

    def want(event: Event) -> None:
        if isinstance(event, events.SampleReady) and event.step == 1:
            prompt_changes.ask(folder, OTHERS)
        if isinstance(event, events.SampleReady) and (event.step, event.index) == (2, 1):
            inbox.send(Command.STOP)

    train(config, emit=want, inbox=inbox)
    before = drawn(folder)
    shutil.rmtree(folder.state)  # as if killed before it was written
    folder.state.mkdir()
    kept = shutil.copytree(folder.output_dir, tmp_path / "other" / "out")
    anew = shutil.copytree(folder.output_dir, tmp_path / "anew" / "out")

    train(config, emit=lambda event: None, start=Start(resume="auto"))
    after = drawn(folder)
    assert list(after) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert {key: after[key] for key in before} == before, "the same pictures, by the prompts of then"
    assert told(folder) == [(2, OTHERS)]

    for output, changed, start in (
        (kept, {"sample_prompts": "red --w 64 --h 64 --s 2"}, Start(resume="auto")),
        (anew, {}, Start(overwrite=True)),
    ):
        another = RunFolder(output, "tiny")
        train(tiny_config(*ground, output, **{**options, "max_train_steps": 2, **changed}), emit=ignore, start=start)
        assert list(drawn(another)) == [(1, 0), (2, 0)] and not told(another)
        assert prompt_changes.changes(another) == [] and prompt_changes.asked(another) is None


def ignore(event: Event) -> None:
    """Nobody listens."""
