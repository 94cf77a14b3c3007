"""The log of a run: nothing is lost over a hundred thousand steps, a full disk or a resume; all of it stays light."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.ground import events
from trainer.results.event_log import JsonLines, cut_events, earlier_files, read_events, remove_log
from trainer.results.run_folder import RunFolder, past_runs
from trainer.results.snapshot import LISTED, RING_SIZE, Board

STEPS, STEPS_PER_EPOCH, SAMPLES_EVERY = 100_000, 1000, 100


def steps_of(path: Path) -> list[int]:
    return [event.step for event in read_events(path) if isinstance(event, events.StepDone)]


def done(step: int, loss: float = 0.5) -> events.StepDone:
    return events.StepDone(
        time=1e9 + step, step=step, epoch=1 + step // STEPS_PER_EPOCH, loss=loss, average_loss=0.5, lr={}, seconds=0.1
    )


def story(steps: int) -> Iterator[events.Event]:
    """What a run tells that takes no time at all."""
    epochs = steps // STEPS_PER_EPOCH
    yield events.Started(
        folder="f", step=0, total_steps=steps, total_epochs=epochs, steps_per_epoch=STEPS_PER_EPOCH, resumed=False
    )
    for step in range(1, steps + 1):
        yield done(step, 1.0 / step)
        if step % SAMPLES_EVERY == 0:
            yield events.SampleReady(path=f"{step}.png", step=step, epoch=1, index=0, prompt="a cat")
            yield events.Warned(message=f"note {step}")
        if step % STEPS_PER_EPOCH == 0:
            yield events.EpochDone(epoch=step // STEPS_PER_EPOCH, step=step, loss=0.5)
            yield events.Saved(kind="lora", path=f"{step}.safetensors", step=step, epoch=1, bytes=1)
    yield events.Finished(step=steps, epoch=epochs, path="f.safetensors", stopped=False, seconds=steps * 0.1)


@pytest.mark.slow
def test_a_hundred_thousand_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "long")
    folder.make()
    board, log = Board(), JsonLines(folder.events)
    sizes = []
    for event in story(STEPS):
        board.post(event)
        log(event)
        if isinstance(event, events.EpochDone):
            sizes.append(len(pickle.dumps(board.snapshot)))
    log.close()
    assert len(earlier_files(folder.events)) >= 1, "the log was put aside in parts"
    assert steps_of(folder.events) == list(range(1, STEPS + 1))
    assert max(sizes) < 300_000, "what the page reads stays small"
    assert max(sizes[50:]) < 1.5 * sizes[50], "and has stopped growing by half-time"
    assert len(board.since(0)) == RING_SIZE
    assert len(board.snapshot.samples) == len(board.snapshot.warnings) == LISTED
    assert [(run.status, run.step, run.total_steps) for run in past_runs(tmp_path)] == [("finished", STEPS, STEPS)]
    cut_events(folder.events, STEPS // 3)
    assert steps_of(folder.events) == list(range(1, STEPS // 3 + 1))


def write(path: Path, steps: range, limit: int = 500) -> None:
    log = JsonLines(path, limit)
    for step in steps:
        log(done(step))
    log.close()


@pytest.mark.parametrize("kept", [0, 1, 5, 17, 30])
def test_a_resumed_log_goes_on_in_parts(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "events.jsonl"
    write(path, range(1, 31))
    assert len(earlier_files(path)) > 3
    cut_events(path, kept)
    assert steps_of(path) == list(range(1, kept + 1))
    write(path, range(kept + 1, 41))
    assert steps_of(path) == list(range(1, 41))
    remove_log(path)
    assert list(tmp_path.iterdir()) == []


def test_reading_while_the_log_is_put_aside_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = JsonLines(path, 500)
    for step in range(1, 8):
        log(done(step))
    reading = read_events(path)
    first = next(reading)
    assert isinstance(first, events.StepDone)
    for step in range(8, 20):
        log(done(step))
    rest = [event.step for event in reading if isinstance(event, events.StepDone)]
    log.close()
    assert rest[:6] == list(range(2, 8))
    assert rest == sorted(set(rest))


@pytest.mark.parametrize(
    "line",
    [b"\0" * 50, b"{", b"[]", b"5", b'{"event": "Unknown"}', b'{"event": "StepDone"}', b"\xff\xfe", b"[" * 99_999],
    ids=["zeros", "torn", "list", "number", "unknown", "fields missing", "no text", "deep"],
)
def test_lines_that_are_no_events_are_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    write(path, range(1, 3))
    with open(path, "ab") as file:
        file.write(line + b"\n")
    write(path, range(3, 5))
    assert steps_of(path) == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_an_error_and_not_silence() -> None:
    with pytest.raises(OSError, match="No space left"):
        JsonLines(Path("/dev/full"))(done(1))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a POSIX system")
def test_a_line_cut_off_by_a_full_disk_does_not_swallow_the_next(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "events.jsonl"
    log = JsonLines(path)
    log(done(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            log(done(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log(done(3))
    log.close()
    assert steps_of(path) == [1, 3]


def test_numbers_that_are_none_are_written_as_null_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = JsonLines(path)
    log(done(1, float("nan")))
    log.close()
    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record["loss"] is None
    event = next(iter(read_events(path)))
    assert isinstance(event, events.StepDone)
    assert event.loss != event.loss
