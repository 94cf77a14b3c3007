"""Resume states: whole or not there, the newest kept, damage noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.checkpoints import KEPT, Position, State, load_state, newest_state, save_state
from trainer.errors import RunError, StateError


def state_at(step: int) -> State:
    position = Position(
        step=step, losses=(0.1, 0.2), epoch_losses=(), settings={"network_dim": 4}, environment={"torch": "x"}
    )
    optimizer = {"state": {0: {"exp_avg": torch.full((3,), step / 3)}}}
    trained = {"optimizer": optimizer, "schedule": {}, "scaler": None}
    return State(position, {"a.lora_up.weight": torch.full((2, 2), step / 7)}, trained)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written = state_at(5)
    read = load_state(save_state(tmp_path, written))
    assert read.position == written.position
    assert torch.equal(read.adapter["a.lora_up.weight"], written.adapter["a.lora_up.weight"])
    assert torch.equal(
        read.trained["optimizer"]["state"][0]["exp_avg"], written.trained["optimizer"]["state"][0]["exp_avg"]
    )


def test_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_state(tmp_path, state_at(step))
    assert len(list(tmp_path.iterdir())) == KEPT
    newest = newest_state(tmp_path, pytest.fail)
    assert newest is not None
    assert load_state(newest).position.step == 10


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.pt", "state.json"])
def test_damage_is_noticed_and_the_older_state_used(tmp_path: Path, name: str) -> None:
    save_state(tmp_path, state_at(1))
    damaged = save_state(tmp_path, state_at(2)) / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    told: list[str] = []
    newest = newest_state(tmp_path, told.append)
    assert newest is not None
    assert newest.name == "step-00000001"
    assert len(told) == 1
    with pytest.raises(StateError, match="resume"):
        load_state(damaged.parent)


def test_a_state_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_state(tmp_path, state_at(3))
    path = save_state(tmp_path, state_at(3))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_half_a_state_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.new").mkdir()
    assert newest_state(tmp_path, pytest.fail) is None


def test_a_folder_that_cannot_be_written_keeps_nothing_half(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file")
    with pytest.raises(RunError, match="resume state"):
        save_state(blocked, state_at(1))
