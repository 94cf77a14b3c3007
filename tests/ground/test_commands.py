"""Commands reach a run from its own process and from others, and nothing else does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from trainer.ground.commands import CONTROL_FILE, Command, Inbox, Wishes
from trainer.ground.control import progress_of, wait
from trainer.ground.errors import Stopped
from trainer.ground.events import Event, Paused, Resumed, Stage, Warned


def wished(*commands: Command) -> Wishes:
    inbox = Inbox()
    for command in commands:
        inbox.send(command)
    return inbox.wishes


def test_commands_are_states_to_reach() -> None:
    assert wished(Command.PAUSE, Command.PAUSE, Command.RESUME) == Wishes()
    assert wished(Command.PAUSE, Command.RESUME, Command.RESUME, Command.PAUSE) == Wishes(pausing=True)
    assert wished(Command.RESUME, Command.SAVE_NOW, Command.SAVE_NOW) == Wishes(saving=True)
    assert wished(Command.STOP, Command.ABORT, Command.STOP) == Wishes(ending=Command.ABORT)
    assert wished(Command.SAMPLE_NOW, Command.STOP) == Wishes(ending=Command.STOP, sampling=True)


def test_an_end_is_stronger_than_a_pause() -> None:
    assert wished(Command.PAUSE).waiting
    assert not wished(Command.PAUSE, Command.STOP).waiting
    assert wished(Command.STOP, Command.RESUME).ending is Command.STOP


def test_what_was_reached_is_wished_for_no_more() -> None:
    inbox = Inbox()
    inbox.send(Command.SAVE_NOW)
    inbox.send(Command.SAMPLE_NOW)
    assert inbox.wishes == inbox.wishes == Wishes(saving=True, sampling=True)
    inbox.send(Command.SAVE_NOW)
    inbox.saved()
    assert inbox.wishes == Wishes(sampling=True)
    inbox.sampled()
    assert inbox.wishes == Wishes()


def test_the_control_file_is_read_once_and_removed(tmp_path: Path) -> None:
    inbox = Inbox()
    inbox.watch(tmp_path)
    (tmp_path / CONTROL_FILE).write_text("save_now\nnonsense\nstop\n")
    assert inbox.wishes == Wishes(saving=True, ending=Command.STOP)
    assert list(tmp_path.iterdir()) == []


def test_a_control_file_that_is_still_empty_is_taken_later(tmp_path: Path) -> None:
    """A shell makes the file before it writes to it."""
    inbox = Inbox()
    inbox.watch(tmp_path)
    with open(tmp_path / CONTROL_FILE, "w") as file:
        assert inbox.wishes == Wishes()
        file.write("stop\n")
    assert inbox.wishes == Wishes(ending=Command.STOP)


def test_a_control_file_that_cannot_be_taken_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / f"{CONTROL_FILE}.taken" / "in the way").mkdir(parents=True)
    (tmp_path / CONTROL_FILE).write_text("stop")
    inbox = Inbox()
    inbox.watch(tmp_path)
    assert inbox.wishes == Wishes()


def test_a_control_file_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("stop")
    run = tmp_path / "run"
    run.mkdir()
    (run / CONTROL_FILE).symlink_to(outside)
    inbox = Inbox()
    inbox.watch(run)
    assert inbox.wishes == Wishes()
    assert outside.read_text() == "stop"


def test_a_pause_told_twice_ends_with_one_command_and_saves_meanwhile() -> None:
    inbox, told, saved = Inbox(), list[Event](), list[str]()
    for command in (Command.PAUSE, Command.PAUSE, Command.SAVE_NOW):
        inbox.send(command)
    threading.Timer(0.05, inbox.send, (Command.RESUME,)).start()
    wait(told.append, inbox, Paused(step=3), lambda: saved.append("now"))
    assert [type(event) for event in told] == [Paused, Resumed]
    assert saved == ["now"]
    assert inbox.wishes == Wishes()


def test_a_phase_without_anything_to_save_says_so_and_goes_on() -> None:
    inbox, told = Inbox(), list[Event]()
    progress = progress_of(told.append, inbox)
    for command in (Command.SAVE_NOW, Command.PAUSE, Command.RESUME):
        inbox.send(command)
    progress("scan", 1, 2)
    assert [type(event) for event in told] == [Stage, Warned]
    inbox.send(Command.PAUSE)
    threading.Timer(0.05, inbox.send, (Command.STOP,)).start()
    progress.on_device = True
    with pytest.raises(Stopped):
        progress("load", 2, 2)
    paused = next(event for event in told if isinstance(event, Paused))
    assert (paused.phase, paused.saved, paused.device_free) == ("load", False, False)
