"""The samplers by their common names: which of diffusers' schedulers each is, with which options. A table, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.process import DDPM, FLOW

MOST_STEPS = 1000
"""Models have no more noise levels than this."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """The name of a scheduler class of diffusers, what it is given beside what the process says, and its range.

    `steps` are the numbers of steps that it draws with. Outside them it begins pure noise as if it held a picture,
    stays noise, or gives numbers that are not finite.
    """

    scheduler: str
    options: Mapping[str, object] = field(default_factory=dict)
    steps: tuple[range, ...] = (range(1, MOST_STEPS + 1),)

    def takes(self, steps: int) -> bool:
        """Say whether it draws with so many steps."""
        return any(steps in each for each in self.steps)

    @property
    def steps_in_words(self) -> str:
        """The numbers of steps in words, such as "2 to 250 or 400 to 500"."""
        *others, last = [f"{each[0]} to {each[-1]}" for each in self.steps]
        return f"{', '.join(others)} or {last}" if others else last


def _from(fewest: int, most: int = MOST_STEPS) -> tuple[range, ...]:
    return (range(fewest, most + 1),)


def _in_whole_strides(fewest: int) -> tuple[range, ...]:
    """Return the ranges of samplers that go by one whole number of timesteps, where that skips a fifth at most."""
    able = [steps for steps in range(fewest, MOST_STEPS // 2 + 1) if steps * (MOST_STEPS // steps) >= 0.8 * MOST_STEPS]
    starts = [steps for steps in able if steps - 1 not in able]
    ends = [steps for steps in able if steps + 1 not in able]
    return tuple(range(start, end + 1) for start, end in zip(starts, ends, strict=True))


# SD 1.x was trained with timesteps counted from 1, and its first alpha is not 1.
_TIMESTEPS = {"steps_offset": 1, "set_alpha_to_one": False}

_LMS = Sampler("LMSDiscreteScheduler", steps=_from(2))
_EULER = Sampler("EulerDiscreteScheduler", steps=_from(2))
_EULER_ANCESTRAL = Sampler("EulerAncestralDiscreteScheduler", steps=_from(2))
_DPM_2 = Sampler("KDPM2DiscreteScheduler", steps=_from(5))
_DPM_2_ANCESTRAL = Sampler("KDPM2AncestralDiscreteScheduler", steps=_from(5))

_OF_DDPM: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", {**_TIMESTEPS, "clip_sample": False}, _in_whole_strides(2)),
    "pndm": Sampler("PNDMScheduler", {**_TIMESTEPS, "skip_prk_steps": True}, _in_whole_strides(3)),
    "lms": _LMS,
    "euler": _EULER,
    "euler_a": _EULER_ANCESTRAL,
    "heun": Sampler("HeunDiscreteScheduler", steps=_from(5)),
    "dpm_2": _DPM_2,
    "dpm_2_a": _DPM_2_ANCESTRAL,
    "dpmsolver": Sampler(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        _from(1, MOST_STEPS - 1),
    ),
    "dpmsolver++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, _from(1, MOST_STEPS - 1)),
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
