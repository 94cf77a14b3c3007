"""A small problem to step optimizers on, and the recording of trajectories of the packages that ours are compared with.

`tests/data/golden_optimizers.json` was written by `python -m tests.helpers.optimizers` with prodigyopt 1.1.2,
dadaptation 3.2, lion-pytorch 0.2.5, came-pytorch 0.1.3, schedulefree 1.4.1 and prodigy-plus-schedule-free 2.0.1
installed; the tests themselves need none of them but what the program needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

RECORDED = Path(__file__).parent.parent / "data" / "golden_optimizers.json"
SHAPES = {"text_encoder": [(3, 5), (6,)], "unet": [(4, 6), (2, 3, 3, 3)]}
STEPS = 40
WATCHED = (0, 1, 2, 5, 10, 20, 30, 39)
"""The steps after which a trajectory is compared."""


def groups(learning_rate: float, dtype: torch.dtype = torch.float32, widen: int = 1) -> list[dict[str, Any]]:
    """Two groups of parameters with fixed values; the last of each is zero, as a LoRA's up matrices are."""
    made = []
    for name, shapes in SHAPES.items():
        parameters = []
        for place, shape in enumerate(shapes):
            wide = (*shape[:-1], shape[-1] * widen)
            size = torch.Size(wide).numel()
            values = torch.sin(torch.arange(size, dtype=torch.float64) * 0.7 + place).reshape(wide)
            parameters.append(torch.nn.Parameter((values * (place == 0)).to(dtype)))
        made.append({"params": parameters, "lr": learning_rate, "name": name})
    return made


def share(step: int) -> float:
    """A warm-up from 0 over four steps, then a slow fall: what the schedule makes of the learning rate."""
    return step / 4 if step < 4 else 1.0 - 0.5 * (step - 4) / STEPS


def set_gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Give each parameter the gradient of a badly scaled bowl, with a disturbance that changes from step to step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            scale = 0.1 + 2.0 * torch.cos(numbers * 0.3) ** 2
            target = torch.cos(numbers * 1.3)
            disturbance = 0.3 * torch.sin(numbers * 0.9 + step * 1.7)
            gradient = scale * (parameter.detach().double() - target) + disturbance
            parameter.grad = gradient.to(parameter.dtype)


def take_steps(optimizer: torch.optim.Optimizer, learning_rate: float, steps: Sequence[int]) -> None:
    """Step on the problem, each step at its share of the learning rate."""
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share(step)
        set_gradients(optimizer, step)
        optimizer.step()


def trajectory(optimizer: torch.optim.Optimizer, learning_rate: float) -> list[dict[str, Any]]:
    """Return, after each watched step, the sum and the first values of every parameter, and `d` where there is one.

    To be used in float64: d grows from the rounding of differences, so that float32 trajectories of the same method
    part by a thousandth.
    """
    points = []
    for step in range(STEPS):
        take_steps(optimizer, learning_rate, [step])
        if step in WATCHED:
            parameters = [p.detach().double().flatten() for group in optimizer.param_groups for p in group["params"]]
            point: dict[str, Any] = {
                "step": step,
                "sums": [float(f"{p.sum():.10g}") for p in parameters],
                "values": [[float(f"{value:.10g}") for value in p[:3]] for p in parameters],
            }
            if callable(getattr(optimizer, "eval", None)):
                point["used"] = used(optimizer)
            if "d" in optimizer.param_groups[0]:
                point["d"] = float(f"{float(optimizer.param_groups[0]['d']):.10g}")
            points.append(point)
    return points


def used(optimizer: Any) -> list[list[float]]:
    """Return the first values of every parameter as the package's own eval() makes them, and go back."""
    optimizer.eval()
    found = [
        [float(f"{value:.10g}") for value in p.detach().double().flatten()[:3]]
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    optimizer.train()
    return found


class RestingDAdaptSGD:
    """dadaptation's DAdaptSGD, which fails at a learning rate of 0, without its steps there."""

    def __new__(cls, params: Any, **options: Any) -> Any:
        from dadaptation import DAdaptSGD

        class Resting(DAdaptSGD):
            def step(self, closure: Any = None) -> Any:
                return super().step(closure) if self.param_groups[0]["lr"] else None

        return Resting(params, **options)


CASES: list[tuple[str, float, dict[str, Any]]] = [
    ("DAdaptAdam", 0.25, {}),
    ("DAdaptAdam", 1.0, {"decouple": True, "weight_decay": 0.05, "use_bias_correction": True, "betas": (0.9, 0.99)}),
    ("DAdaptAdam", 1.0, {"weight_decay": 0.05, "growth_rate": 1.3, "d0": 1e-3}),
    ("Prodigy", 0.25, {}),
    ("Prodigy", 1.0, {"weight_decay": 0.05, "use_bias_correction": True, "d_coef": 2.0, "betas": (0.9, 0.99)}),
    ("Prodigy", 1.0, {"safeguard_warmup": True, "use_bias_correction": True, "d0": 1e-4}),
    ("Prodigy", 0.5, {"decouple": False, "weight_decay": 0.05, "growth_rate": 1.5, "beta3": 0.9, "eps": 1e-6}),
    ("Lion", 1e-2, {}),
    ("Lion", 1e-2, {"weight_decay": 0.3, "betas": (0.95, 0.98)}),
    ("CAME", 1e-2, {}),
    ("CAME", 1e-2, {"weight_decay": 0.3, "betas": (0.95, 0.99, 0.995), "clip_threshold": 0.5, "eps": (1e-20, 1e-12)}),
    ("DAdaptAdaGrad", 1.0, {}),
    ("DAdaptAdaGrad", 0.5, {"momentum": 0.6, "weight_decay": 0.05, "growth_rate": 1.5, "eps": 1e-4, "d0": 1e-4}),
    ("DAdaptAdan", 1.0, {}),
    ("DAdaptAdan", 0.5, {"betas": (0.9, 0.8, 0.95), "no_prox": True, "weight_decay": 0.1, "growth_rate": 1.5}),
    ("DAdaptLion", 1.0, {}),
    ("DAdaptLion", 0.5, {"betas": (0.8, 0.95), "weight_decay": 0.05, "d0": 1e-4}),
    ("DAdaptSGD", 1.0, {}),
    ("DAdaptSGD", 0.5, {"momentum": 0.6, "weight_decay": 0.05, "growth_rate": 1.5, "d0": 1e-4}),
    ("AdamWScheduleFree", 1e-2, {}),
    ("AdamWScheduleFree", 1e-2, {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "warmup_steps": 6, "r": 1.0}),
    ("RAdamScheduleFree", 1e-2, {}),
    ("RAdamScheduleFree", 1e-2, {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "weight_lr_power": 1.0}),
    ("SGDScheduleFree", 1e-1, {}),
    ("SGDScheduleFree", 1e-1, {"momentum": 0.7, "weight_decay": 0.1, "warmup_steps": 6, "weight_lr_power": 0.0}),
    ("ProdigyPlusScheduleFree", 1.0, {}),
    ("ProdigyPlusScheduleFree", 0.5, {"split_groups": False, "use_bias_correction": True, "weight_decay": 0.05}),
]


def begun(optimizer: Any) -> Any:
    """Return the optimizer in its mode for training, where it has one."""
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    return optimizer


def record() -> None:
    """Write the trajectories of the original packages."""
    from came_pytorch import CAME
    from dadaptation import DAdaptAdaGrad, DAdaptAdam, DAdaptAdan, DAdaptLion
    from lion_pytorch import Lion
    from prodigyopt import Prodigy
    from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree
    from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree

    originals: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "DAdaptAdam": DAdaptAdam,
        "Prodigy": Prodigy,
        "Lion": Lion,
        "CAME": CAME,
        "DAdaptAdaGrad": DAdaptAdaGrad,
        "DAdaptAdan": DAdaptAdan,
        "DAdaptLion": DAdaptLion,
        "DAdaptSGD": RestingDAdaptSGD,
        "AdamWScheduleFree": AdamWScheduleFree,
        "RAdamScheduleFree": RAdamScheduleFree,
        "SGDScheduleFree": SGDScheduleFree,
        "ProdigyPlusScheduleFree": ProdigyPlusScheduleFree,
    }
    cases = [
        {
            "optimizer": name,
            "learning_rate": rate,
            "arguments": [f"{key}={value}" for key, value in options.items()],
            "points": trajectory(begun(originals[name](groups(rate, torch.float64), lr=rate, **options)), rate),
        }
        for name, rate, options in CASES
    ]
    note = (
        "prodigyopt 1.1.2, dadaptation 3.2, lion-pytorch 0.2.5, came-pytorch 0.1.3, schedulefree 1.4.1, "
        "prodigy-plus-schedule-free 2.0.1; torch 2.13.0 on a CPU, float64"
    )
    lines = ",\n  ".join(
        "{"
        + ", ".join(f'"{key}": {json.dumps(value)}' for key, value in case.items() if key != "points")
        + ', "points": [\n    '
        + ",\n    ".join(json.dumps(point) for point in case["points"])
        + "\n  ]}"
        for case in cases
    )
    RECORDED.write_text(f'{{"note": {json.dumps(note)},\n "cases": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    record()
