"""Commands reach a run from its own process and from others, and nothing else does."""

from __future__ import annotations

import threading
from pathlib import Path

from trainer.ground.commands import CONTROL_FILE, Command, Inbox


def test_commands_come_out_in_order_and_once() -> None:
    inbox = Inbox()
    inbox.send(Command.SAVE_NOW)
    inbox.send(Command.STOP)
    assert inbox.peek() == (Command.SAVE_NOW, Command.STOP)
    assert inbox.take() == [Command.SAVE_NOW, Command.STOP]
    assert inbox.take() == []


def test_the_control_file_is_read_once_and_removed(tmp_path: Path) -> None:
    inbox = Inbox()
    inbox.watch(tmp_path)
    (tmp_path / CONTROL_FILE).write_text("save_now\nnonsense\nstop\n")
    assert inbox.take() == [Command.SAVE_NOW, Command.STOP]
    assert inbox.take() == []
    assert list(tmp_path.iterdir()) == []


def test_a_control_file_that_is_still_empty_is_taken_later(tmp_path: Path) -> None:
    """A shell makes the file before it writes to it."""
    inbox = Inbox()
    inbox.watch(tmp_path)
    with open(tmp_path / CONTROL_FILE, "w") as file:
        assert inbox.take() == []
        file.write("stop\n")
    assert inbox.take() == [Command.STOP]


def test_a_control_file_that_cannot_be_taken_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / f"{CONTROL_FILE}.taken" / "in the way").mkdir(parents=True)
    (tmp_path / CONTROL_FILE).write_text("stop")
    inbox = Inbox()
    inbox.watch(tmp_path)
    assert inbox.take() == []


def test_a_control_file_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("stop")
    run = tmp_path / "run"
    run.mkdir()
    (run / CONTROL_FILE).symlink_to(outside)
    inbox = Inbox()
    inbox.watch(run)
    assert inbox.take() == []
    assert outside.read_text() == "stop"


def test_waiting_leaves_other_commands_in_the_inbox() -> None:
    inbox = Inbox()
    inbox.send(Command.SAMPLE_NOW)
    threading.Timer(0.05, inbox.send, (Command.RESUME,)).start()
    assert inbox.wait_for(Command.RESUME, Command.STOP) is Command.RESUME
    assert inbox.take() == [Command.SAMPLE_NOW]
