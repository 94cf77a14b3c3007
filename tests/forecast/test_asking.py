"""Asking for a forecast: in a process of its own, once, and said after the plan."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, main
from trainer.config import known_settings, load_config, save_config
from trainer.forecast import asking
from trainer.forecast.forecast import Forecast, Phase
from trainer.planning.plan import Plan, plan


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


def test_what_changes_no_shape_is_named_by_its_setting() -> None:
    assert known_settings().keys() >= asking._IDLE
