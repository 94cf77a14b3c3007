"""Steps that become slow are told of once, with the reason that can be seen."""

from __future__ import annotations

import pytest
import torch

from trainer.ground.events import Event, Warned
from trainer.training import watchdog
from trainer.training.watchdog import EARLY, RECENT, Surroundings, Watchdog

CPU = torch.device("cpu")


@pytest.fixture
def told() -> list[Event]:
    return []


def machine(monkeypatch: pytest.MonkeyPatch, *moments: Surroundings) -> None:
    """Let the machine look like this, one moment after another; the last stays."""
    left = list(moments)
    monkeypatch.setattr(Surroundings, "now", lambda: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(watchdog.os, "cpu_count", lambda: 4)


def take(dog: Watchdog, count: int, seconds: float, waited: float = 0.0) -> None:
    for _ in range(count):
        dog.step(seconds, waited)


@pytest.mark.parametrize(
    ("waited", "later", "words"),
    [
        (0.9, Surroundings(10, 8, 8, 0), "wait for pictures from the disk"),
        (0.0, Surroundings(10, 8, 8, 1 << 30), "main memory is full"),
        (0.0, Surroundings(10, 30, 8, 0), "other programs use 55% of the processor"),
        (0.0, Surroundings(10, 8, 8, 0), "nothing here says why"),
    ],
)
def test_the_reason_is_what_can_be_seen(
    told: list[Event], monkeypatch: pytest.MonkeyPatch, waited: float, later: Surroundings, words: str
) -> None:
    machine(monkeypatch, Surroundings(0, 0, 0, 0), later)
    dog = Watchdog(told.append, CPU)
    take(dog, EARLY + 10, 0.5)
    assert not told
    take(dog, 3 * RECENT, 1.5 - waited, waited)
    assert [event for event in told if isinstance(event, Warned)] == told
    assert len(told) == 1
    assert words in str(told[0])
    take(dog, 3 * RECENT, 0.5)
    take(dog, 3 * RECENT, 1.5)
    assert len(told) == 2, "it was quick in between"


def test_a_first_step_that_compiles_and_a_slow_one_now_and_then_are_nothing(
    told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, Surroundings(0, 0, 0, 0))
    dog = Watchdog(told.append, CPU)
    take(dog, 1, 60.0)
    for _ in range(30):
        take(dog, 9, 0.5)
        take(dog, 1, 3.0)
    assert not told


def test_samples_that_take_much_of_the_time_are_told_of_once(
    told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = Watchdog(told.append, CPU)
    dog.sampled(300.0)
    assert not told, "too early to say"
    monkeypatch.setattr(watchdog, "_WATCHING", -1.0)
    for _ in range(2):
        dog.sampled(300.0)
    assert len(told) == 1
    assert "Drawing samples takes" in str(told[0])
