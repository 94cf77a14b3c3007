"""Who has a device: one at a time, between objects and processes alike, and never a dead process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.page import PROJECT
from trainer.gate import Gate
from trainer.ground.errors import StateError, Stopped

TAKES = """
import sys
from trainer.gate import Gate
gate = Gate("gpu-1", "The GPU", "drawing", "a program")
gate.take()
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path))
    return tmp_path


def gate(what: str = "training", device: str = "gpu-1") -> Gate:
    return Gate(device, "The GPU", what, "started in a test")


def test_a_second_is_told_who_is_there_and_comes_in_after() -> None:
    first, second = gate("training 'cat'"), gate()
    first.take()
    with pytest.raises(StateError, match=r"The GPU is in use: training 'cat', started in a test \(process"):
        second.take()
    gate(device="gpu-2").take()
    first.leave()
    first.leave()
    second.take()
    assert not first.try_to_take()


@pytest.fixture
def other(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the device until it ends."""
    command = [sys.executable, "-c", TAKES]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_a_killed_process_holds_nothing(other: subprocess.Popen[str]) -> None:
    with pytest.raises(StateError, match=f"drawing, a program .process {other.pid}"):
        gate().take()
    other.kill()
    other.wait()
    gate().take()


def test_who_waits_gets_in_or_gives_up(other: subprocess.Popen[str]) -> None:
    looks: list[int] = []

    def waiting() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise Stopped("told to stop")

    with pytest.raises(Stopped):
        gate().take(waiting)
    gate().take(other.kill)
    assert len(looks) == 2


@pytest.mark.parametrize("said", ["", "[]", '{"what": 1}', '{"what": "x", "by": "y", "pid": "z", "since": 1}'])
def test_a_holder_that_cannot_be_read_still_holds(cache: Path, said: str) -> None:
    holder = gate()
    holder.take()
    (cache / "devices" / "gpu-1.json").write_text(said)
    with pytest.raises(StateError, match="does not say who it is"):
        gate().take()


def test_where_no_lock_can_be_kept_nothing_is_refused(cache: Path) -> None:
    (cache / "devices").write_text("in the way")
    first, second = gate(), gate()
    first.take()
    second.take()
