"""The samplers by their common names: which of diffusers' schedulers each is, with which options. A table, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.process import DDPM, FLOW


@dataclass(frozen=True, slots=True)
class Sampler:
    """The name of a scheduler class of diffusers, and what it is given beside what the process says."""

    scheduler: str
    options: Mapping[str, object] = field(default_factory=dict)


# SD 1.x was trained with timesteps counted from 1, and its first alpha is not 1.
_TIMESTEPS = {"steps_offset": 1, "set_alpha_to_one": False}

_LMS = Sampler("LMSDiscreteScheduler")
_EULER = Sampler("EulerDiscreteScheduler")
_EULER_ANCESTRAL = Sampler("EulerAncestralDiscreteScheduler")
_DPM_2 = Sampler("KDPM2DiscreteScheduler")
_DPM_2_ANCESTRAL = Sampler("KDPM2AncestralDiscreteScheduler")

_OF_DDPM: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", {**_TIMESTEPS, "clip_sample": False}),
    "pndm": Sampler("PNDMScheduler", {**_TIMESTEPS, "skip_prk_steps": True}),
    "lms": _LMS,
    "euler": _EULER,
    "euler_a": _EULER_ANCESTRAL,
    "heun": Sampler("HeunDiscreteScheduler"),
    "dpm_2": _DPM_2,
    "dpm_2_a": _DPM_2_ANCESTRAL,
    "dpmsolver": Sampler(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    ),
    "dpmsolver++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": Sampler("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "k_lms": _LMS,
    "k_euler": _EULER,
    "k_euler_a": _EULER_ANCESTRAL,
    "k_dpm_2": _DPM_2,
    "k_dpm_2_a": _DPM_2_ANCESTRAL,
}

SAMPLERS: Mapping[str, Mapping[str, Sampler]] = {
    DDPM.name: _OF_DDPM,
    FLOW.name: {"euler": Sampler("FlowMatchEulerDiscreteScheduler")},
}
"""By kind of process, under sd-scripts' names (library/train_util.py). Where a kind has none of the name that the
setting `sample_sampler` says, its first is taken."""
