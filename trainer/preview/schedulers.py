"""From the table of samplers to diffusers' schedulers."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler as _LMSDiscreteScheduler
from numpy.polynomial import Polynomial

from trainer.preview.samplers import SAMPLERS


class LMSDiscreteScheduler(_LMSDiscreteScheduler):
    """Linear multistep without scipy: the coefficients are integrals of polynomials, and are computed as such."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Integrate the Lagrange polynomial of one earlier step over the step that comes next."""
        sigmas = np.asarray(self.sigmas, dtype=np.float64)
        others = [sigmas[t - k] for k in range(order) if k != current_order]
        scale = np.prod([sigmas[t - current_order] - other for other in others])
        integral = math.prod((Polynomial([-other, 1.0]) for other in others), start=Polynomial([1.0])).integ()
        return float((integral(sigmas[t + 1]) - integral(sigmas[t])) / scale)


_OURS = {"LMSDiscreteScheduler": LMSDiscreteScheduler}


def make_scheduler(name: str, noise: dict[str, Any], prediction_type: str) -> Any:
    """Make the scheduler of a sampler for a model's noise schedule.

    Args:
        name: a key of `SAMPLERS`.
        noise: the model's scheduler configuration; its betas are taken, and where it says that the model begins from
            pure noise (zero terminal SNR), so does every sampler that can.
        prediction_type: "epsilon" or "v_prediction".
    """
    sampler = SAMPLERS[name]
    betas = {key: noise[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    scheduler = _OURS.get(sampler.scheduler) or getattr(diffusers, sampler.scheduler)
    options = dict(sampler.options)
    if noise.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" in inspect.signature(scheduler).parameters:
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler(**betas, prediction_type=prediction_type, **options)
