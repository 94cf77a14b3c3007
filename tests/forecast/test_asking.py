"""Asking for a forecast: in a process of its own, once, and said after the plan."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, main
from trainer.config import known_settings, load_config, save_config
from trainer.forecast import asking, pace, tracing
from trainer.forecast.forecast import Forecast, Phase
from trainer.ground import events
from trainer.planning.plan import Plan, plan
from trainer.results.event_log import read_events
from trainer.results.run_folder import RunFolder
from trainer.run import train
from trainer.training import precision


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and a tiny model."""
    folder = write_dataset(tmp_path_factory.mktemp("asking"))
    tiny_sd15(folder)
    return folder


def planned(ground: Path, **changed: object) -> Plan:
    """Return the plan of a small run."""
    settings = tiny_settings(ground / "tiny_sd15.safetensors", ground, ground / "out", **changed)
    return plan(load_config(overrides=settings))


def test_check_says_the_memory_after_the_plan_and_the_second_time_at_once(
    ground: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = planned(ground)
    run = ground / "RUN.toml"
    save_config(seen.config, run)
    monkeypatch.delenv(asking.SWITCH)
    assert main(["train", str(run), "--check", "--no-forecast"]) == COMPLETED
    assert "Memory:" not in capsys.readouterr().out
    assert asking.known(asking.key_of(seen)) is None
    assert main(["train", str(run), "--check"]) == COMPLETED
    printed = capsys.readouterr().out
    assert printed.index("Steps:") < printed.index("Memory: about")
    assert "weights of UNet" in printed
    found = asking.known(asking.key_of(seen))
    assert found is not None and found.peak > 0

    def refuse(*_given: object, **_named: object) -> None:
        raise AssertionError("no second process")

    monkeypatch.setattr(asking.subprocess, "Popen", refuse)
    began = time.process_time()
    assert asking.forecast(seen) == found
    assert time.process_time() - began < 0.2


def test_a_forecast_rests_on_what_changes_shapes_alone(ground: Path) -> None:
    first = asking.key_of(planned(ground))
    assert asking.key_of(planned(ground, output_name="other", learning_rate=2e-3, seed=8)) == first
    for changed in ({"network_dim": 8}, {"train_batch_size": 1}, {"gradient_checkpointing": True}):
        assert asking.key_of(planned(ground, **changed)) != first, changed
    assert asking.key_of(planned(ground, text_encoder_lr=0.0)) != first, "another part is trained"


def test_a_process_that_fails_is_told_and_kept_from_nothing(
    ground: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = planned(ground, train_batch_size=3)
    monkeypatch.delenv(asking.SWITCH)
    monkeypatch.setattr(asking.sys, "executable", "/bin/false")
    assert asking.lines(seen) == ["Memory: The memory could not be forecast: it ended without a word"]


def test_what_is_kept_is_read_back_and_what_is_damaged_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path))
    forecast = Forecast("cuda", (Phase("in a step", 5_700_000_000, {"adapter": 10, "weights": 5_000_000_000}),), host=7)
    asking.keep("0" * 32, forecast)
    assert asking.known("0" * 32) == forecast
    (tmp_path / asking.FOLDER / f"{'0' * 32}.json").write_text('{"phases": []}')
    assert asking.known("0" * 32) is None
    assert forecast.lines()[0] == "Memory: about 5.7 GB of the graphics card's memory at most, in a step"


EVERY = {
    "output_name": "other",
    "save_every_n_epochs": 2,
    "save_every_n_steps": 3,
    "save_last_n_epochs": 1,
    "save_last_n_steps": 5,
    "save_state": True,
    "save_last_n_epochs_state": 1,
    "save_last_n_steps_state": 5,
    "save_precision": "bf16",
    "save_copy_for": "diffusers",
    "log_with": "tensorboard",
    "metadata_title": "t",
    "metadata_author": "a",
    "metadata_description": "d",
    "metadata_license": "l",
    "metadata_tags": "x, y",
    "training_comment": "c",
    "no_metadata": True,
    "seed": 8,
    "max_train_epochs": 7,
    "max_train_steps": None,
    "network_alpha": 3.0,
    "min_snr_gamma": 5.0,
    "max_grad_norm": 0.0,
    "learning_rate": 2e-3,
    "unet_lr": 3e-3,
    "text_encoder_lr": 4e-3,
    "lr_scheduler": "cosine_with_restarts",
    "lr_warmup_steps": 0.2,
    "lr_scheduler_num_cycles": 2,
    "lr_scheduler_power": 2.0,
    "lr_decay_steps": 2,
    "lr_scheduler_min_lr_ratio": 0.1,
    "lr_scheduler_timescale": 9,
}
"""Other values of settings that are declared to change no memory."""
ELSEWHERE = {"output_dir", "logging_dir", "save_n_epoch_ratio", "conv_alpha", "lr_scheduler_type", "lr_scheduler_args"}
"""The rest of them: those that are set here anyway, or go with no other."""


def test_what_is_declared_to_change_no_memory_changes_none(ground: Path) -> None:
    declared = {key for key, setting in known_settings().items() if not setting.changes_memory}
    assert EVERY.keys() | ELSEWHERE == declared
    one, other = planned(ground), planned(ground, **EVERY)
    assert asking.key_of(one) == asking.key_of(other)
    assert tracing.trace(one) == tracing.trace(other)


def test_the_time_is_that_of_an_earlier_run_of_the_same_steps(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"output_dir": str(tmp_path), "train_batch_size": 2, "save_every_n_epochs": 0}
    past = planned(ground, **made, max_train_steps=5, output_name="past")
    assert pace.earlier(past, "a card") is None
    train(past.config, emit=lambda event: None)
    name = precision.name_of(precision.own_device())
    other = {"max_train_epochs": 9, "max_train_steps": None, "output_name": "next", "seed": 9, "caption_prefix": "a "}
    seen = planned(ground, **made, **other)
    found = pace.earlier(seen, name)
    assert found is not None and found.run == "past"
    folder = RunFolder(tmp_path, "past")
    took = [each.seconds for each in read_events(folder.events) if isinstance(each, events.StepDone)]
    assert len(took) == 5 and found.seconds == statistics.median(took)
    assert pace.earlier(seen, "another card") is None
    for changed in ({"train_batch_size": 1}, {"network_dim": 8}, {"text_encoder_lr": 0.0}, {"resolution": "128,128"}):
        assert pace.earlier(planned(ground, **{**made, **changed}), name) is None, changed

    asking.keep(asking.key_of(seen), Forecast("cpu", (Phase("in a step", 10**9, {}),), name=name))
    monkeypatch.delenv(asking.SWITCH)
    last = asking.lines(seen)[-1]
    assert last.startswith("Time: about ") and f"for {seen.timetable.total_steps} steps" in last
    assert "as in the run 'past' of 20" in last and "on this device" in last
    assert [pace.in_time(each) for each in (0.2, 59, 90, 3600, 8000)] == [
        "1 s",
        "59 s",
        "2 min",
        "1 h 00 min",
        "2 h 13 min",
    ]
