"""Steps, epochs, file names and what is due when, by hand-made and by sd-scripts' numbers."""

from __future__ import annotations

import pytest

from trainer.config import config_from_layers
from trainer.planning.timetable import Timetable, make_timetable


def plan_of(micro_batches: int = 8, **settings: object) -> Timetable:
    return make_timetable(config_from_layers([settings]), micro_batches=micro_batches)


def test_epochs_times_batches() -> None:
    timetable = plan_of(max_train_epochs=10, train_batch_size=1)
    assert (timetable.steps_per_epoch, timetable.total_steps, timetable.total_epochs) == (8, 80, 10)


def test_accumulation_rounds_each_epoch_up() -> None:
    """8 batches, accumulation 3 -> 3 updates per epoch, as measured with sd-scripts."""
    timetable = plan_of(max_train_epochs=2, gradient_accumulation_steps=3)
    assert (timetable.steps_per_epoch, timetable.total_steps) == (3, 6)


def test_steps_give_epochs_and_may_cut_the_last() -> None:
    timetable = plan_of(max_train_steps=20)
    assert (timetable.total_steps, timetable.total_epochs) == (20, 3)
    assert [step for step in range(1, 21) if timetable.ends_epoch(step)] == [8, 16, 20]
    assert [timetable.epoch(step) for step in (0, 1, 8, 9, 16, 17, 20)] == [0, 1, 1, 2, 2, 3, 3]


def test_names_of_epoch_saves_leave_out_the_last_epoch() -> None:
    timetable = plan_of(max_train_epochs=4, save_every_n_epochs=2, output_name="cat")
    named = {step: timetable.lora_names(step) for step in range(1, 33) if timetable.lora_names(step)}
    assert named == {16: ("cat-000002.safetensors",)}


@pytest.mark.parametrize(("ratio", "saved"), [(5, [4, 8, 12, 16]), (3, [6, 12, 18]), (30, list(range(1, 20))), (1, [])])
def test_a_ratio_spreads_the_saves_over_the_epochs(ratio: int, saved: list[int]) -> None:
    """floor(epochs / ratio) epochs between saves, as sd-scripts counts; it wins over the number of epochs."""
    timetable = plan_of(max_train_epochs=20, save_every_n_epochs=3, save_n_epoch_ratio=ratio)
    assert [timetable.epoch(step) for step in range(1, 161) if timetable.lora_names(step)] == saved


BY_STEPS = {"save_state": True, "save_every_n_epochs": 0}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, []),
        ({"save_state": True}, [8, 16, 24]),
        ({"save_state": True, "save_last_n_epochs": 2}, [16, 24]),
        ({"save_state": True, "save_last_n_epochs": 2, "save_last_n_epochs_state": 1}, [24]),
        ({"save_state": True, "save_every_n_epochs": 2}, [16]),
        ({"save_state": True, "save_every_n_epochs": 0, "save_every_n_steps": 5}, [5, 10, 15, 20, 25, 30]),
        (
            {"save_state": True, "save_every_n_epochs": 0, "save_every_n_steps": 5, "save_last_n_steps_state": 10},
            [20, 25, 30],
        ),
        ({"save_state": True, "save_every_n_epochs": 2, "save_every_n_steps": 10, "save_last_n_steps": 5}, [16, 30]),
    ],
)
def test_states_are_kept_apart_from_files(settings: dict[str, object], kept: list[int]) -> None:
    """What is kept once 32 steps, 4 epochs, are done; by sd-scripts' rules, `save_last_n_steps_state` counts steps."""
    timetable = plan_of(max_train_epochs=4, **settings)
    assert sorted(timetable.kept_states(32)) == kept
    standing: set[int] = set()
    for step in range(1, 33):
        if timetable.keeps_state(step):
            standing.add(step)
        standing &= timetable.kept_states(step)
    assert sorted(standing) == kept


def test_names_of_step_saves_include_the_last_step() -> None:
    timetable = plan_of(max_train_steps=10, save_every_n_epochs=0, save_every_n_steps=5, output_name="cat")
    named = {step: timetable.lora_names(step) for step in range(1, 11) if timetable.lora_names(step)}
    assert named == {5: ("cat-step00000005.safetensors",), 10: ("cat-step00000010.safetensors",)}


def test_keeping_the_last_steps_counts_steps() -> None:
    """Every 5 steps, the last 10 kept: three files remain, as measured with sd-scripts."""
    timetable = plan_of(max_train_steps=40, save_every_n_epochs=0, save_every_n_steps=5, save_last_n_steps=10)
    kept: set[str] = set()
    for step in range(1, 41):
        kept |= set(timetable.lora_names(step))
        kept -= set(timetable.expired_names(step))
    assert sorted(kept) == [f"lora-step{step:08d}.safetensors" for step in (30, 35, 40)]


def test_keeping_the_last_epochs_counts_files() -> None:
    timetable = plan_of(micro_batches=1, max_train_epochs=9, save_every_n_epochs=1, save_last_n_epochs=2)
    kept: set[str] = set()
    for step in range(1, 10):
        kept |= set(timetable.lora_names(step))
        kept -= set(timetable.expired_names(step))
    assert sorted(kept) == ["lora-000007.safetensors", "lora-000008.safetensors"]


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"sample_every_n_epochs": 2}, [16, 32]),
        ({"sample_every_n_steps": 10}, [10, 20, 30]),
        ({"sample_at_first": True}, [0]),
        ({}, []),
    ],
)
def test_when_samples_are_due(settings: dict[str, object], due: list[int]) -> None:
    timetable = plan_of(max_train_epochs=4, **settings)
    assert [step for step in range(33) if timetable.sample_due(step)] == due
