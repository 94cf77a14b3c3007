"""Learning rates at each step: sd-scripts' numbers, the shapes' own rules, and an exact resume."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from trainer.schedules import SCHEDULES, build, multiplier, warmup_steps

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_math.json").read_text())
TOTAL = 20


def rates(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """Train `steps` steps and return the rates of the last group that they used."""
    used = []
    for _ in range(steps):
        used.append(float(optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        scheduler.step()
    return used


def sgd(*learning_rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in learning_rates])


def golden_cases() -> Iterator[Any]:
    for case in GOLDEN["lr"]:
        yield pytest.param(case, id=case["scheduler"])


@pytest.mark.parametrize("case", golden_cases())
def test_rates_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    options = case["options"]
    optimizer = sgd(1.0)
    scheduler = build(
        optimizer,
        name=case["scheduler"],
        total_steps=case["max_train_steps"],
        warmup=options.get("lr_warmup_steps", 0),
        power=options.get("lr_scheduler_power", 1.0),
    )
    assert rates(optimizer, scheduler, TOTAL) == pytest.approx(case["lr_used_at_each_step"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("learning_rate", [1.0, 1e-4])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
def test_rates_are_those_of_transformers_past_the_end_too(name: str, learning_rate: float, warmup: int) -> None:
    """Also for the shapes without recorded numbers, and for the steps that an epoch's remainder may add."""
    if name == "constant_with_warmup":
        extra: dict[str, Any] = {}
    else:
        extra = {"num_training_steps": TOTAL}
    specific = {"cosine_with_restarts": {"num_cycles": 3}, "polynomial": {"power": 2.0}}.get(name, {})
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=learning_rate)
    expected = get_scheduler(name, theirs, num_warmup_steps=warmup, scheduler_specific_kwargs=specific, **extra)
    ours = sgd(learning_rate)
    scheduler = build(ours, name=name, total_steps=TOTAL, warmup=warmup, num_cycles=3, power=2.0)
    assert rates(ours, scheduler, TOTAL + 5) == pytest.approx(rates(theirs, expected, TOTAL + 5), rel=1e-12, abs=1e-18)


def test_constant_has_no_warm_up() -> None:
    assert [multiplier(step, name="constant", total_steps=9, warmup_steps=4) for step in range(9)] == [1.0] * 9


def test_polynomial_ends_at_the_same_rate_in_every_group() -> None:
    optimizer = sgd(1e-3, 1e-4)
    rates(optimizer, build(optimizer, name="polynomial", total_steps=TOTAL), TOTAL)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-7, 1e-7])


@pytest.mark.parametrize(
    ("value", "steps"), [(0, 0), (0.0, 0), (0.05, 5), (0.5, 50), (0.999, 99), (1, 1), (1.0, 1), (250, 250)]
)
def test_warm_up_below_one_is_a_share(value: float, steps: int) -> None:
    assert warmup_steps(value, 100) == steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_schedule_goes_on_with_the_same_bits(name: str) -> None:
    def fresh() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = sgd(3e-4, 7e-5)
        return optimizer, build(optimizer, name=name, total_steps=TOTAL, warmup=0.15, num_cycles=2, power=1.5)

    whole = rates(*fresh(), TOTAL)
    first, scheduler = fresh()
    head = rates(first, scheduler, 8)
    file = io.BytesIO()
    torch.save({"optimizer": first.state_dict(), "schedule": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, scheduler = fresh()
    second.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["schedule"])
    assert head + rates(second, scheduler, TOTAL - 8) == whole


def test_importing_the_schedules_imports_no_torch() -> None:
    code = "import sys, trainer.schedules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
