"""Settings that belong to another kind of model are refused by name, once the model is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from trainer.config import known_settings, load_config
from trainer.ground.errors import ConfigError
from trainer.planning.fitting import check_process
from trainer.planning.plan import plan
from trainer.process import DDPM, FLOW, PROCESSES
from trainer.settings.section import PROCESS
from trainer.settings.walk import visible

OTHERS = {
    "timestep_sampling": "shift",
    "sigmoid_scale": 2.0,
    "discrete_flow_shift": 1.0,
    "weighting_scheme": "cosmap",
    "logit_mean": 0.5,
    "logit_std": 0.8,
    "mode_scale": 0.5,
    "model_prediction_type": "additive",
}
NOISE = {
    "v_parameterization": True,
    "noise_offset": 0.1,
    "noise_offset_random_strength": True,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.8,
    "min_timestep": 10,
    "max_timestep": 900,
    "zero_terminal_snr": True,
    "min_snr_gamma": 5.0,
    "debiased_estimation_loss": True,
}


def test_each_kind_of_process_refuses_what_is_the_others() -> None:
    for process, theirs in ((DDPM, OTHERS), (FLOW, NOISE)):
        with pytest.raises(ConfigError) as caught:
            check_process(load_config(overrides=theirs), process)
        assert {problem.key for problem in caught.value.problems} == set(theirs)
        for problem in caught.value.problems:
            assert problem.remedy == {problem.key: known_settings()[problem.key].default}
    check_process(load_config(overrides=OTHERS), FLOW)
    check_process(load_config(overrides=NOISE), DDPM)


def test_every_marked_setting_is_seen_by_its_own_kind_alone() -> None:
    marked = {key: setting for key, setting in known_settings().items() if PROCESS in setting.show.when}
    assert marked.keys() >= OTHERS.keys() | NOISE.keys()
    for setting in marked.values():
        kinds = setting.show.when[PROCESS]
        others = {key: wanted[0] if wanted != "*" else 1 for key, wanted in setting.show.when.items()}
        assert {name for name in PROCESSES if visible(setting, {**others, PROCESS: name})} == set(kinds)
        assert visible(setting, {key: value for key, value in others.items() if key != PROCESS})


def test_a_plan_for_stable_diffusion_refuses_settings_of_rectified_flow(tmp_path: Path) -> None:
    model, dataset = tiny_sd15(tmp_path), write_dataset(tmp_path)
    with pytest.raises(ConfigError, match=r"discrete_flow_shift: 1\.5 is for rectified flow models, and this is a n"):
        plan(tiny_config(model, dataset, tmp_path, discrete_flow_shift=1.5))
