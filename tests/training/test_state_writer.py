"""States that are written while the training goes on: whole, of the step they were begun at, and errors are told."""

from __future__ import annotations

import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from trainer import train
from trainer.ground import events
from trainer.ground.errors import RunError
from trainer.training import states
from trainer.training.state_writer import StateWriter
from trainer.training.states import Position, State, load_state

POSITION = Position(step=3, losses=(), epoch_losses=(), settings={}, environment={})


def state() -> State:
    trained = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0], "lr": 0.1}]},
        "schedule": {"last_epoch": 3},
        "scaler": None,
    }
    return State(POSITION, {"down": torch.ones(2, 2)}, trained)


def test_what_changes_afterwards_is_not_in_the_state(tmp_path: Path) -> None:
    writer, given = StateWriter(tmp_path), state()
    writer.begin(given, epoch=1)
    given.adapter["down"].zero_()
    given.trained["optimizer"]["state"][0]["exp_avg"].zero_()
    written = writer.take(wait=True)
    assert written is not None
    assert (written.step, written.epoch) == (3, 1)
    read = load_state(written.path)
    assert torch.equal(read.adapter["down"], torch.ones(2, 2))
    assert torch.equal(read.trained["optimizer"]["state"][0]["exp_avg"], torch.ones(3))
    assert read.trained["optimizer"]["param_groups"] == [{"params": [0], "lr": 0.1}]
    assert writer.take(wait=True) is None


def test_an_error_comes_out_where_the_state_is_asked_for(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path / "missing")
    writer.begin(state(), epoch=1)
    with pytest.raises(RunError, match="could not be written"):
        writer.take(wait=True)
    assert writer.take(wait=True) is None


def test_the_training_goes_on_while_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes a second: steps are made meanwhile, and the state is of its own step all the same."""
    save, told, found = states.save_state, [], {}

    def slowly(folder: Path, given: State, keep: Container[int]) -> Path:
        time.sleep(1)
        path = save(folder, given, keep)
        found[given.position.step] = load_state(path)
        return path

    monkeypatch.setattr(states, "save_state", slowly)
    config = tiny_config(
        tiny_sd15(tmp_path), write_dataset(tmp_path), tmp_path / "out", max_train_epochs=2, max_train_steps=None
    )
    train(config, emit=told.append)
    order = [_name(event) for event in told if _name(event)]
    first = order.index("state")
    begun = next(event.step for event in told if isinstance(event, events.Saved) and event.kind == "state")
    assert order[:first].count("step") > begun, "no step was made while the state was written"
    assert sorted(found) == sorted(
        event.step for event in told if isinstance(event, events.Saved) and event.kind == "state"
    )
    for step, each in found.items():
        assert each.position.step == step == each.trained["schedule"]["last_epoch"]
        assert len(each.position.losses) <= step


def _name(event: Any) -> str:
    if isinstance(event, events.StepDone):
        return "step"
    return "state" if isinstance(event, events.Saved) and event.kind == "state" else ""
