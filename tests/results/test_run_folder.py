"""A run's folder tells what happened, survives a torn log, and admits one run at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.source import PROJECT
from trainer.ground import events
from trainer.ground.errors import StateError
from trainer.results.event_log import cut_events, read_events
from trainer.results.run_folder import RunFolder, next_free_name, past_runs


def write_log(folder: RunFolder, *story: events.Event, tail: str = "") -> None:
    folder.make()
    lines = [json.dumps(events.to_record(event)) + "\n" for event in story]
    folder.events.write_text("".join(lines) + tail)


def started(step: int = 0) -> events.Started:
    return events.Started(folder="f", step=step, total_steps=4, total_epochs=2, steps_per_epoch=2, resumed=step > 0)


def done(step: int) -> events.StepDone:
    return events.StepDone(step=step, epoch=1, loss=1.0, average_loss=1.0, lr={}, seconds=0.1)


def test_cutting_drops_what_came_after_the_state_and_the_torn_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "cat")
    saved = events.Saved(kind="state", path="s", step=2, epoch=1, bytes=1)
    write_log(folder, started(), done(1), done(2), saved, done(3), tail='{"event": "StepDo')
    cut_events(folder.events, 2)
    assert list(read_events(folder.events)) == list(read_events(folder.events))
    assert [type(event).__name__ for event in read_events(folder.events)] == [
        "Started",
        "StepDone",
        "StepDone",
        "Saved",
    ]
    assert folder.events.read_text().endswith("\n")


def test_past_runs_and_their_ends(tmp_path: Path) -> None:
    finished = events.Finished(step=4, epoch=2, path="p", stopped=False, seconds=1.0)
    write_log(RunFolder(tmp_path, "whole"), started(), done(4), finished)
    write_log(RunFolder(tmp_path, "killed"), started(), done(3))
    (tmp_path / "other.run").mkdir()
    found = {run.folder.output_name: (run.status, run.step, run.total_steps) for run in past_runs(tmp_path)}
    assert found == {"whole": ("finished", 4, 4), "killed": ("interrupted", 3, 4)}


LIST_RUNS = """
import sys
from pathlib import Path
from tests.helpers.mishaps import drop_powers
from trainer.results.run_folder import past_runs
drop_powers()
sys.stdout.write(" ".join(f"{run.folder.output_name}={run.status}" for run in past_runs(Path(sys.argv[1]))))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of a POSIX system")
def test_a_log_that_may_not_be_read_does_not_hide_the_other_runs(tmp_path: Path) -> None:
    write_log(RunFolder(tmp_path, "whole"), started(), done(4))
    write_log(RunFolder(tmp_path, "secret"), started(), done(4))
    RunFolder(tmp_path, "secret").events.chmod(0)
    command = [sys.executable, "-c", LIST_RUNS, str(tmp_path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    assert listed == "whole=interrupted secret=unreadable"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "cat")
    folder.make()
    lock = folder.lock()
    with pytest.raises(StateError, match="another run is writing"):
        folder.lock()
    lock.release()
    folder.lock().release()


def test_the_next_free_name(tmp_path: Path) -> None:
    assert next_free_name(tmp_path, "cat") == "cat"
    (tmp_path / "cat.safetensors").touch()
    (tmp_path / "cat-2.safetensors").touch()
    assert next_free_name(tmp_path, "cat") == "cat-3"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "below", "cat")
    for attempt in (folder.check, folder.make):
        with pytest.raises(StateError, match="output_dir"):
            attempt()


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new" / "deeper", "cat").check()
    assert list(tmp_path.iterdir()) == []
