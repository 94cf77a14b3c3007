"""Any number of watchers can follow a run from its snapshot."""

from __future__ import annotations

import json
import pickle

import pytest

from trainer.ground import events
from trainer.results.snapshot import RING_SIZE, Board, RunSnapshot, fold


def step(number: int, loss: float = 0.5, **more: object) -> events.StepDone:
    values = {"epoch": 1, "average_loss": loss, "lr": {"unet": 1e-4}, "seconds": 0.1, **more}
    return events.StepDone(step=number, loss=loss, **values)  # type: ignore[arg-type]


def test_a_run_from_start_to_end() -> None:
    snapshot = RunSnapshot()
    story = [
        events.Stage(name="cache_latents", done=1, total=2),
        events.Started(folder="x.run", step=0, total_steps=2, total_epochs=1, steps_per_epoch=2, resumed=False),
        step(1),
        step(2, 0.25),
        events.EpochDone(epoch=1, step=2, loss=0.4),
        events.Saved(kind="state", path="s", step=2, epoch=1, bytes=1),
        events.Saved(kind="lora", path="x.safetensors", step=2, epoch=1, bytes=1),
        events.Finished(step=2, epoch=1, path="x.safetensors", stopped=False, seconds=1.0),
    ]
    statuses = []
    for event in story:
        snapshot = fold(snapshot, event)
        statuses.append(snapshot.status)
    assert statuses == ["preparing", "preparing", *["training"] * 5, "finished"]
    assert (snapshot.step, snapshot.loss, snapshot.lr) == (2, 0.25, {"unet": 1e-4})
    assert [saved.path for saved in snapshot.saved] == ["x.safetensors"]
    assert snapshot.revision == len(story)


@pytest.mark.parametrize(("at", "epoch"), [(0, 0), (1, 1), (48, 1), (49, 2)])
def test_a_resumed_run_is_in_the_epoch_of_its_step(at: int, epoch: int) -> None:
    begun = events.Started(folder="x.run", step=at, total_steps=96, total_epochs=2, steps_per_epoch=48, resumed=True)
    assert fold(RunSnapshot(), begun).epoch == epoch


def test_a_stage_during_training_does_not_end_training() -> None:
    snapshot = fold(fold(RunSnapshot(), step(1)), events.Stage(name="drawing samples", done=1, total=20))
    assert (snapshot.status, snapshot.phase) == ("training", "drawing samples")


def test_failure_and_pause_show() -> None:
    failed = events.Failed(kind="RunError", message="m", remedy="r", step=3)
    assert fold(RunSnapshot(), failed).status == "failed"
    assert fold(RunSnapshot(), events.Paused(step=1)).status == "paused"
    assert fold(RunSnapshot(), events.Resumed(step=1)).status == "training"


def test_the_ring_is_bounded_and_numbered() -> None:
    board = Board()
    for number in range(RING_SIZE + 50):
        board.post(step(number + 1))
    kept = board.since(0)
    assert len(kept) == RING_SIZE
    assert [number for number, _ in board.since(RING_SIZE + 48)] == [RING_SIZE + 49, RING_SIZE + 50]


@pytest.mark.parametrize(
    "event", [step(3, grad_norm=1.0, step_size=2e-6), events.Stage(name="a"), events.Paused(step=2)]
)
def test_events_survive_the_log_and_pickling(event: events.Event) -> None:
    assert events.from_record(json.loads(json.dumps(events.to_record(event)))) == event
    assert pickle.loads(pickle.dumps(event)) == event
