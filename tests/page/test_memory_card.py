"""The card of the memory: what it shows of a forecast, and what is found out in the background."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kohya_gui.form.memory_card import Forecaster, Memory, memory_card
from kohya_gui.panels.plan import bytes_of
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.config import load_config
from trainer.forecast import asking
from trainer.forecast.forecast import Fit, Forecast, Phase
from trainer.planning.plan import Plan, plan

FORECAST = Forecast(
    "cuda",
    (
        Phase("in a step at 1024x1024", 5_700_000_000, {"weights of UNet": 5_100_000_000, "adapter": 1_000}),
        Phase("while validating", 5_300_000_000, {}),
    ),
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan."""
    ground: Path = write_dataset(tmp_path_factory.mktemp("memory"))
    return plan(load_config(overrides=tiny_settings(tiny_sd15(ground), ground, ground / "out")))


def test_card_says_the_peak_and_what_holds_it_and_offers_what_fits() -> None:
    assert memory_card(Memory()) == ""
    card = memory_card(Memory(FORECAST))
    assert "5.7 GB</b> of the graphics card" in card and "weights of UNet" in card and "while validating 5.3 GB" in card
    assert "adapter" not in card, "next to nothing"
    assert 'data-act="fit"' in card and "take-fit" not in card
    fit = Fit({"gradient_checkpointing": True, "train_batch_size": 1}, FORECAST, 6_000_000_000)
    found = memory_card(Memory(FORECAST, "", fit))
    assert 'value="6"' in found and 'data-act="take-fit"' in found and "It fits with 5.7 GB" in found
    assert "It does not fit" in memory_card(Memory(FORECAST, "", Fit({}, FORECAST, 5_000_000_000)))
    assert "It fits as it is." in memory_card(Memory(FORECAST, "", Fit({}, FORECAST, 6_000_000_000)))


def wait_for(forecaster: Forecaster, words: str) -> None:
    """Wait until the card says something."""
    for _ in range(200):
        if words in memory_card(forecaster.shown):
            return
        time.sleep(0.05)
    raise AssertionError(memory_card(forecaster.shown))


def test_what_was_found_before_is_shown_at_once_and_the_rest_in_the_background(
    seen: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path))
    forecaster = Forecaster(seconds=0.01)
    forecaster.of(seen)
    assert "off" in memory_card(forecaster.shown), "the switch is off in tests"
    monkeypatch.delenv(asking.SWITCH)
    monkeypatch.setattr(asking.sys, "executable", "/bin/false")
    forecaster.of(seen)
    assert "being worked out" in memory_card(forecaster.shown)
    wait_for(forecaster, "could not be forecast")
    asking.keep(asking.key_of(seen), FORECAST)
    forecaster.of(None)
    assert memory_card(forecaster.shown) == ""
    forecaster.of(seen)
    assert "5.7 GB" in memory_card(forecaster.shown)
    forecaster.fit(6_000_000_000)
    wait_for(forecaster, "could not be forecast")


def test_only_a_number_of_gigabytes_is_a_card() -> None:
    assert [bytes_of(card) for card in ("8", "7.5", "", "much", "nan", "inf")] == [8 * 10**9, 7_500_000_000, 0, 0, 0, 0]
