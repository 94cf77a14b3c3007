"""Resume states: whole or not there, the newest kept, damage noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.ground.errors import RunError, StateError
from trainer.training.states import KEPT, Position, State, load_newest, load_state, remove_after, save_state


def state_at(step: int) -> State:
    position = Position(
        step=step, losses=(0.1, 0.2), epoch_losses=(), settings={"network_dim": 4}, environment={"torch": "x"}
    )
    optimizer = {"state": {0: {"exp_avg": torch.full((3,), step / 3)}}}
    trained = {"optimizer": optimizer, "schedule": {"last_epoch": step}, "scaler": None}
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
    newest = load_newest(tmp_path, pytest.fail)
    assert newest is not None
    assert newest.position.step == 10


def test_states_that_are_to_stay_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save_state(tmp_path, state_at(step), keep={2, 9})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]
    save_state(tmp_path, state_at(6), keep=())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.pt", "state.json"])
def test_damage_is_noticed_and_the_older_state_used(tmp_path: Path, name: str) -> None:
    save_state(tmp_path, state_at(1))
    damaged = save_state(tmp_path, state_at(2)) / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    told: list[str] = []
    newest = load_newest(tmp_path, told.append)
    assert newest is not None
    assert newest.position.step == 1
    assert len(told) == 1
    with pytest.raises(StateError, match="resume"):
        load_state(damaged.parent)


def test_when_none_is_whole_it_is_said_and_not_begun_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        (save_state(tmp_path, state_at(step)) / "optimizer.pt").write_bytes(b"")
    with pytest.raises(StateError, match="none of the 2 states"):
        load_newest(tmp_path, lambda text: None)


def test_a_step_that_is_not_the_schedules_is_refused(tmp_path: Path) -> None:
    """As where someone has edited the number."""
    record = save_state(tmp_path, state_at(3)) / "state.json"
    record.write_text(record.read_text().replace('"step": 3', '"step": 30'))
    with pytest.raises(StateError, match="of step 30, and its schedule of 3"):
        load_state(record.parent)


def test_states_of_later_steps_go_when_a_run_goes_on_before_them(tmp_path: Path) -> None:
    for step in (3, 8):
        save_state(tmp_path, state_at(step))
    remove_after(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_state_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_state(tmp_path, state_at(3))
    path = save_state(tmp_path, state_at(3))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_half_a_state_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.new").mkdir()
    assert load_newest(tmp_path, pytest.fail) is None


def test_a_folder_that_cannot_be_written_keeps_nothing_half(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file")
    with pytest.raises(RunError, match="resume state"):
        save_state(blocked, state_at(1))
