"""From the table of samplers to diffusers' schedulers."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler as _FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler as _LMSDiscreteScheduler
from numpy.polynomial import Polynomial
from torch import Tensor

from trainer.preview.samplers import SAMPLERS
from trainer.process.process import Process


class LMSDiscreteScheduler(_LMSDiscreteScheduler):
    """Linear multistep without scipy: the coefficients are integrals of polynomials, and are computed as such."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Integrate the Lagrange polynomial of one earlier step over the step that comes next."""
        sigmas = np.asarray(self.sigmas, dtype=np.float64)
        others = [sigmas[t - k] for k in range(order) if k != current_order]
        scale = np.prod([sigmas[t - current_order] - other for other in others])
        integral = math.prod((Polynomial([-other, 1.0]) for other in others), start=Polynomial([1.0])).integ()
        return float((integral(sigmas[t + 1]) - integral(sigmas[t])) / scale)


class FlowMatchEulerDiscreteScheduler(_FlowMatchEulerDiscreteScheduler):
    """Euler along the straight line, with what diffusers' other schedulers offer besides."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the sample: its size doesn't depend on the noise in it."""
        return sample


_OURS = {each.__name__: each for each in (LMSDiscreteScheduler, FlowMatchEulerDiscreteScheduler)}


def make_scheduler(name: str, process: Process) -> Any:
    """Make the scheduler of a sampler, which goes down the noise levels that training goes up.

    Args:
        name: a key of `SAMPLERS[process.name]`.
        process: the model's, as it is trained.
    """
    sampler = SAMPLERS[process.name][name]
    scheduler = _OURS.get(sampler.scheduler) or getattr(diffusers, sampler.scheduler)
    return scheduler(**sampler.options, **process.sampling(inspect.signature(scheduler).parameters))
