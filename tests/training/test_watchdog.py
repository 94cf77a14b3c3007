"""Steps that become slow are told of once, with the reason that can be seen."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from trainer.ground.events import Event, Warned
from trainer.training import watchdog
from trainer.training.watchdog import EARLY, RECENT, Watchdog, share_of_others

CPU = torch.device("cpu")


@pytest.fixture
def told() -> list[Event]:
    return []


def machine(monkeypatch: pytest.MonkeyPatch, moved: int = 0, others: tuple[float, str] = (0.0, "")) -> None:
    """Let the machine look like this: bytes that are moved out more each time, and what other programs use."""
    swapped = itertools.count(0, moved)
    monkeypatch.setattr(watchdog, "swapped", lambda: next(swapped))
    monkeypatch.setattr(watchdog, "others", lambda: others)


def take(dog: Watchdog, count: int, seconds: float, waited: float = 0.0) -> None:
    for _ in range(count):
        dog.step(seconds, waited)


@pytest.mark.parametrize(
    ("waited", "seen", "words"),
    [
        (0.9, {}, "wait for pictures from the disk"),
        (0.0, {"moved": 1 << 30}, "main memory is full"),
        (0.0, {"others": (0.55, "game")}, "other programs use 55% of the processor, most of all 'game'"),
        (0.0, {"others": (0.1, "game")}, "nothing here says why"),
    ],
)
def test_the_reason_is_what_can_be_seen(
    told: list[Event], monkeypatch: pytest.MonkeyPatch, waited: float, seen: dict[str, Any], words: str
) -> None:
    machine(monkeypatch, **seen)
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


def test_what_was_used_long_ago_and_by_the_loaders_workers_is_not_what_others_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog.os, "cpu_count", lambda: 4)
    before = {1: ("trainer", 50.0), 2: ("worker", 9.0), 3: ("old server", 900.0), 4: ("game", 1.0), 5: ("gone", 7.0)}
    now = {1: ("trainer", 51.0), 2: ("worker", 10.0), 3: ("old server", 900.0), 4: ("game", 1.6), 6: ("new", 3.0)}
    assert share_of_others(before, now, {1, 2}, 0.3) == (pytest.approx(0.5), "game")
    share, busiest = watchdog.others()
    assert share >= 0 and isinstance(busiest, str)


def test_a_first_step_that_compiles_and_a_slow_one_now_and_then_are_nothing(
    told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
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
