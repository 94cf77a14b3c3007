"""Learning rates at each step: sd-scripts' numbers, the shapes' own rules, and an exact resume."""

from __future__ import annotations

import ast
import inspect
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from trainer.config import config_from_layers, schedule_of
from trainer.ground.errors import ConfigError
from trainer.schedules import SCHEDULES, TORCH_CLASSES, Schedule, class_name, steps_of, torch_classes


def rates(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """Train `steps` steps and return the rates of the last group that they used."""
    used = []
    for _ in range(steps):
        used.append(float(optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        scheduler.step()
    return used


def sgd(*learning_rates: float, momentum: float = 0.0) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in learning_rates]
    return torch.optim.SGD(groups, momentum=momentum)


DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "golden_math.json").read_text())["lr"]
ARGUMENTS = json.loads((DATA / "golden_schedules.json").read_text())["cases"]
TOTAL = 20
STEPS = 30
BASE = 1e-3
FIELDS = {
    "lr_warmup_steps": "warmup",
    "lr_decay_steps": "decay",
    "lr_scheduler_num_cycles": "num_cycles",
    "lr_scheduler_power": "power",
    "lr_scheduler_timescale": "timescale",
    "lr_scheduler_min_lr_ratio": "min_lr_ratio",
    "lr_scheduler_args": "arguments",
    "lr_scheduler_type": "torch_class",
}
TAKEN_ALL_THE_SAME = "does not require `num_warmup_steps`"
"""sd-scripts refuses a warm-up beside "constant" and torch's classes; here, where it is the default, it is not used."""


def schedule(name: str, options: dict[str, Any], total: int, rate: float) -> Schedule:
    """The schedule that sd-scripts' options ask for."""
    fields = {FIELDS[key]: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if "torch_class" in fields:
        fields["torch_class"] = class_name(fields["torch_class"])
    return Schedule(total, name=name, learning_rate=rate, **fields)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["scheduler"])
def test_rates_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    found = schedule(case["scheduler"], case["options"], case["max_train_steps"], 1.0)
    optimizer = sgd(1.0)
    assert rates(optimizer, found.build(optimizer), TOTAL) == pytest.approx(
        case["lr_used_at_each_step"], rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("case", ARGUMENTS, ids=lambda case: f"{case['lr_scheduler']}-{case['options']}")
def test_rates_and_refusals_are_those_of_sd_scripts_with_every_argument(case: dict[str, Any]) -> None:
    options = case["options"]
    if "error" in case and TAKEN_ALL_THE_SAME not in case["error"]:
        with pytest.raises(ConfigError, match=r"^lr_scheduler"):
            config_from_layers([{"lr_scheduler": case["lr_scheduler"], **options}])
        return
    found = schedule(case["lr_scheduler"], options, STEPS, BASE)
    assert found.problems() == []
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    used = rates(optimizer, found.build(optimizer), STEPS)
    assert found.rates(BASE, range(STEPS)) == pytest.approx(used, rel=1e-12)
    if "rates" in case:
        assert used == pytest.approx(case["rates"], rel=1e-6, abs=1e-15)


def test_classes_and_arguments_are_torchs() -> None:
    """Every class of torch.optim.lr_scheduler is either offered, with all that it takes, or refused with a reason."""
    package = torch.optim.lr_scheduler
    assert set(package.__all__) - {"LRScheduler"} == TORCH_CLASSES.keys() | torch_classes.OTHERS.keys()
    for name, kind in TORCH_CLASSES.items():
        real = inspect.signature(getattr(package, name).__init__).parameters
        ours = {"self", "optimizer", "last_epoch", "scale_fn", "scale_mode"}  # the last two need a function
        assert real.keys() - ours == kind.arguments.keys(), name
        for argument, spec in kind.arguments.items():
            needed = real[argument].default is inspect.Parameter.empty
            assert needed == (argument in kind.needs), (name, argument)
            assert needed or real[argument].default == spec.default, (name, argument)


CLASSES = {
    "StepLR": ["step_size=7", "gamma=0.5"],
    "MultiStepLR": ["milestones=4,9", "gamma=0.3"],
    "ConstantLR": ["factor=0.5", "total_iters=6"],
    "LinearLR": ["start_factor=0.2", "end_factor=0.9", "total_iters=9"],
    "ExponentialLR": ["gamma=0.9"],
    "PolynomialLR": ["total_iters=18", "power=2.0"],
    "CosineAnnealingLR": ["T_max=8", "eta_min=1e-6"],
    "CosineAnnealingWarmRestarts": ["T_0=5", "T_mult=2"],
    "CyclicLR": ["base_lr=1e-4", "max_lr=1e-2", "step_size_up=4", "mode=exp_range", "gamma=0.95"],
    "OneCycleLR": ["max_lr=0.01", "total_steps=40", "three_phase=True"],
}


@pytest.mark.parametrize("name", TORCH_CLASSES)
def test_rates_and_momenta_are_those_of_the_class_itself(name: str) -> None:
    def groups() -> list[dict[str, Any]]:
        return [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1e-3, 3e-4)]

    texts = [each.split("=") for each in CLASSES[name]]
    values = {key: text if key == "mode" else ast.literal_eval(text) for key, text in texts}
    theirs, ours = torch.optim.AdamW(groups()), torch.optim.AdamW(groups())
    expected = getattr(torch.optim.lr_scheduler, name)(theirs, **values)
    scheduler = Schedule(STEPS, torch_class=name, arguments=tuple(CLASSES[name])).build(ours)
    for _ in range(STEPS):
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12, abs=1e-18)
            assert mine["betas"] == pytest.approx(other["betas"], rel=1e-12)
        for optimizer, each in ((ours, scheduler), (theirs, expected)):
            optimizer.step()
            each.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler": "nonsense"}, "lr_scheduler: .*it must be one of"),
        ({"lr_scheduler_type": "NoSuch"}, "lr_scheduler_type: .*class of torch.optim.lr_scheduler"),
        ({"lr_scheduler_type": "CosineAnealingLR"}, "did you mean CosineAnnealingLR"),
        ({"lr_scheduler_type": "ReduceLROnPlateau"}, "it takes a measure of progress"),
        ({"lr_scheduler_type": "LambdaLR"}, "it takes a function"),
        ({"lr_scheduler_type": "StepLR"}, "StepLR needs step_size="),
        ({"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": ["max_lr=1e-3"]}, "OneCycleLR needs total_steps"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=0"]}, "step_size must be a whole number"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["stepsize=3"]}, "did you mean step_size"),
        (
            {"lr_scheduler": "cosine", "lr_scheduler_args": ["lr_end=1"]},
            "cosine has no argument 'lr_end'; it takes",
        ),
        ({"lr_scheduler": "linear", "lr_scheduler_args": ["x=1"]}, "linear has no argument 'x'; it takes none"),
        ({"lr_scheduler": "rex", "lr_scheduler_args": ["d=1"]}, "d must be a number at least 0 and below 1"),
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_args": ["decay_type=sin"]},
            "one of linear, cos",
        ),
        (
            {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules='1,2:3'"]},
            "must be such as",
        ),
        ({"lr_scheduler": "piecewise_constant"}, "piecewise_constant needs its levels"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "cosine_with_min_lr needs to know where it ends"),
        ({"lr_scheduler": "adafactor"}, "'adafactor' is for Adafactor where it takes its rate"),
        (
            {"lr_scheduler": "adafactor", "optimizer_type": "Adafactor", "optimizer_args": ["relative_step=False"]},
            "'adafactor' is for Adafactor where it takes its rate",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_layers([options])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["max_lr=0.01", "total_steps=20"], "over 30 steps"), (["max_lr=0.01", "total_steps=29"], "over 30 steps")],
)
def test_a_class_that_does_not_reach_the_end_of_the_run_is_refused(arguments: list[str], message: str) -> None:
    """torch would fail at the step after its last, in the middle of the run or at its very end."""
    found = Schedule(STEPS, torch_class="OneCycleLR", arguments=tuple(arguments))
    with pytest.raises(ConfigError, match=message):
        found.build(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))
    with pytest.raises(ConfigError, match=message):
        found.rates(1e-3, [0])


def test_a_class_that_moves_momenta_needs_some() -> None:
    found = Schedule(STEPS, torch_class="OneCycleLR", arguments=("max_lr=0.01", "total_steps=40"))
    with pytest.raises(ConfigError, match="momentum"):
        found.build(torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))]))


def test_rex_falls_slowly_and_then_fast() -> None:
    """Chen et al. 2021, table 1: (1 - p) / (1/2 + (1 - p) / 2) for the paper's bend of a half."""
    found = Schedule(100, name="rex", arguments=("d=0.5",))
    for step in range(100):
        left = 1 - step / 100
        assert found.multiplier(step) == pytest.approx(left / (0.5 + 0.5 * left))
    bent = Schedule(100, name="rex")
    assert bent.multiplier(50) == pytest.approx(0.5 / 0.55) and bent.multiplier(100) == 0.0


def test_adafactors_own_rates_are_left_alone_by_its_schedule() -> None:
    config = config_from_layers(
        [{"lr_scheduler": "adafactor", "optimizer_type": "Adafactor", "optimizer_args": ["relative_step=True"]}]
    )
    assert schedule_of(config, 9).rates(1e-3, range(9)) == [1e-3] * 9


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "ProdigyPlusScheduleFree", "some.package.OtherScheduleFree"])
def test_schedule_free_optimizers_have_no_schedule_and_no_warm_up(name: str) -> None:
    config = config_from_layers([{"optimizer_type": name, "lr_scheduler": "cosine", "lr_warmup_steps": 5}])
    assert schedule_of(config, 20).rates(1e-3, range(20)) == [1e-3] * 20


OTHERS = ("constant", "piecewise_constant", "rex", "adafactor", "warmup_stable_decay")


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("learning_rate", [1.0, 1e-4])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in OTHERS])
def test_rates_are_those_of_transformers_past_the_end_too(name: str, learning_rate: float, warmup: int) -> None:
    """Also for the shapes without recorded numbers, and for the steps that an epoch's remainder may add."""
    if name in ("constant_with_warmup", "inverse_sqrt"):
        extra: dict[str, Any] = {}
    else:
        extra = {"num_training_steps": TOTAL}
    specific = {
        "cosine_with_restarts": {"num_cycles": 3},
        "polynomial": {"power": 2.0},
        "cosine_with_min_lr": {"num_cycles": 1.5, "min_lr_rate": 0.2},
        "inverse_sqrt": {"timescale": 7},
    }.get(name, {})
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=learning_rate)
    expected = get_scheduler(name, theirs, num_warmup_steps=warmup, scheduler_specific_kwargs=specific, **extra)
    ours = sgd(learning_rate)
    least = 0.2 if name == "cosine_with_min_lr" else None
    found = Schedule(TOTAL, name=name, warmup=warmup, num_cycles=3, power=2.0, timescale=7, min_lr_ratio=least)
    scheduler = found.build(ours)
    assert rates(ours, scheduler, TOTAL + 5) == pytest.approx(rates(theirs, expected, TOTAL + 5), rel=1e-12, abs=1e-18)


def test_constant_has_no_warm_up() -> None:
    assert Schedule(9, name="constant", warmup=4).rates(1.0, range(9)) == [1.0] * 9


def test_polynomial_ends_at_the_same_rate_in_every_group() -> None:
    optimizer = sgd(1e-3, 1e-4)
    rates(optimizer, Schedule(TOTAL, name="polynomial").build(optimizer), TOTAL)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-7, 1e-7])


@pytest.mark.parametrize(
    ("value", "steps"), [(0, 0), (0.0, 0), (0.05, 5), (0.5, 50), (0.999, 99), (1, 1), (1.0, 1), (250, 250)]
)
def test_warm_up_below_one_is_a_share(value: float, steps: int) -> None:
    assert steps_of(value, 100) == steps


@pytest.mark.parametrize("name", [*SCHEDULES, *TORCH_CLASSES])
def test_a_resumed_schedule_goes_on_with_the_same_bits(name: str) -> None:
    def fresh() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = sgd(3e-4, 7e-5, momentum=0.5)
        arguments = CLASSES.get(name, {"piecewise_constant": ["step_rules=1:5,0.1"]}.get(name, []))
        kind = {"torch_class": name} if name in TORCH_CLASSES else {"name": name, "min_lr_ratio": 0.1}
        found = Schedule(TOTAL, warmup=0.15, decay=0.3, num_cycles=2, power=1.5, arguments=tuple(arguments), **kind)
        return optimizer, found.build(optimizer)

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
