"""Rectified flow: sd-scripts' numbers, and the formulas' own rules for any other input."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.config import load_config
from trainer.preview.samplers import SAMPLERS
from trainer.preview.schedulers import make_scheduler
from trainer.process import FLOW
from trainer.process.draws import Draws, Numbers
from trainer.process.flow import (
    PREDICTIONS,
    SAMPLINGS,
    SHIFT_OF_FLUX,
    Flow,
    FlowOptions,
    Sigmas,
    flow_weights,
    shifted,
    takes_normal,
    tokens_of,
)
from trainer.process.process import Noised

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_flow.json").read_text())
SCHEDULER_OF_FLUX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
PATCH = 2


def flow(scheduler: dict[str, Any] = SCHEDULER_OF_FLUX, **settings: object) -> Flow:
    made = FLOW.build(scheduler, load_config(overrides=settings), patch=PATCH)
    assert isinstance(made, Flow)
    return made


def close(actual: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-5, atol=1e-7)


# --- against sd-scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["timesteps"]["cases"], ids=lambda case: str(case["settings"]))
def test_sigmas_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    process = flow(**case["settings"])
    assert takes_normal(process.options) == (case["random"] == "normal")
    random = torch.tensor(GOLDEN["timesteps"][case["random"]])
    latents = torch.zeros(len(random), 16, case.get("height", 512) // 8, case.get("width", 512) // 8)
    sigmas = SAMPLINGS[process.options.timestep_sampling](random, process.options, tokens_of(latents.shape, PATCH))
    close(sigmas, case["sigmas"])
    close(sigmas * 1000, case["timesteps_given_to_the_model_times_1000"])
    noised = process.corrupt(latents, Draws(torch.ones_like(latents), latents, sigmas))
    close(noised.latents[:, 0, 0, 0], case.get("noisy_value_where_latent_0_noise_1", case["sigmas"]))


@pytest.mark.parametrize("case", GOLDEN["mu"], ids=lambda case: str(case["tokens"]))
def test_the_shift_by_size_is_that_of_sd_scripts(case: dict[str, Any]) -> None:
    tokens = tokens_of((16, case["height"] // 8, case["width"] // 8), PATCH)
    assert tokens == case["tokens"]
    assert SHIFT_OF_FLUX.mu(tokens) == pytest.approx(case["mu"], rel=1e-8)
    assert math.exp(SHIFT_OF_FLUX.mu(tokens)) == pytest.approx(case["shift_exp_mu"], rel=1e-8)


@pytest.mark.parametrize("scheme", GOLDEN["loss_weights"]["by_scheme"])
def test_weights_are_those_of_sd_scripts(scheme: str) -> None:
    sigmas = torch.tensor(GOLDEN["loss_weights"]["sigmas"])
    options = FlowOptions(weighting_scheme=scheme, model_prediction_type="sigma_scaled")
    close(flow_weights(sigmas, options), GOLDEN["loss_weights"]["by_scheme"][scheme])
    assert flow_weights(sigmas, replace(options, model_prediction_type="raw")).tolist() == [1.0] * len(sigmas)


@pytest.mark.parametrize("case", GOLDEN["prediction"]["cases"], ids=lambda case: case["model_prediction_type"])
def test_predictions_targets_and_losses_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    given = GOLDEN["prediction"]
    latents, noise, output = (torch.tensor(given[name]) for name in ("latents", "noise", "model_output_unpacked"))
    sigmas = torch.tensor(given["sigmas"])
    process = flow(**{key: case[key] for key in ("model_prediction_type", "weighting_scheme")})
    noised = process.corrupt(latents, Draws(noise, latents, sigmas))
    close(noised.latents, given["noisy"])
    close(noised.target, given["target"])
    read = PREDICTIONS[case["model_prediction_type"]]
    close(read(output, noised.latents, sigmas.view(-1, 1, 1, 1)), case["prediction"])
    close(process.losses(output, noised), case["loss_of_each_sample"])


@pytest.mark.parametrize("case", GOLDEN["preview_schedule"], ids=lambda case: f"{case['steps']} steps")
def test_previews_go_down_sd_scripts_levels(case: dict[str, Any]) -> None:
    process = flow()
    scheduler = make_scheduler("euler", process)
    side = int(case["tokens"] ** 0.5) * PATCH
    scheduler.set_timesteps(**process.sampling_steps(case["steps"], (16, side, side)))
    close(scheduler.sigmas, case["sigmas"])
    assert scheduler.timesteps.dtype == torch.float32
    close(process.told(scheduler.timesteps), case["sigmas"][:-1])


# --- for any other input ---------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(4, 8, 8), (5, 2, 6), (16, 1, 8, 12), (3, 7)])
SETTINGS = st.fixed_dictionaries(
    {
        "timestep_sampling": st.sampled_from(list(SAMPLINGS)),
        "sigmoid_scale": st.floats(0.01, 100),
        "discrete_flow_shift": st.floats(0.01, 100),
        "weighting_scheme": st.sampled_from(["none", "uniform", "sigma_sqrt", "cosmap", "logit_normal", "mode"]),
        "logit_mean": st.floats(-100, 100),
        "logit_std": st.floats(0.01, 100),
        "mode_scale": st.floats(-1, 1.75),
    }
)


@given(SETTINGS, SHAPES, st.integers(0, 2**31), st.integers(0, 100))
def test_any_settings_draw_a_sigma_for_each_slot_alone(
    settings: dict[str, Any], shape: tuple[int, ...], seed: int, step: int
) -> None:
    drawing = flow(**settings).drawing
    both = drawing((2, *shape), step, (3, 5), seed=seed).timesteps
    assert both.dtype == torch.float32 and both.shape == (2,)
    assert bool(((both >= 0) & (both <= 1)).all())
    assert torch.equal(pickle.loads(pickle.dumps(drawing))((1, *shape), step, (5,), seed=seed).timesteps, both[1:])


def test_seed_step_and_slot_each_change_the_sigma() -> None:
    rule = Sigmas(FlowOptions(), PATCH)
    drawn = {float(rule(Numbers(*place), (16, 8, 8))) for place in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}
    assert len(drawn) == 4


@given(st.floats(0, 1), st.floats(0.01, 100), st.floats(0.01, 100))
def test_shifts_keep_both_ends_and_follow_one_another(sigma: float, first: float, second: float) -> None:
    ends, middle = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    assert torch.allclose(shifted(ends, first), ends)
    assert torch.allclose(shifted(shifted(middle, first), second), shifted(middle, first * second))
    assert torch.allclose(shifted(middle, 1.0), middle)


@given(SHAPES, st.floats(0.001, 1))
def test_a_perfect_model_has_no_loss_and_leads_back_to_the_picture(shape: tuple[int, ...], sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 2, *shape), generator=generator)
    process = flow()
    noised = process.corrupt(latents, Draws(noise, latents, torch.full((2,), sigma)))
    assert process.losses(noised.target, noised).tolist() == [0.0, 0.0]
    torch.testing.assert_close(noised.latents - sigma * noised.target, latents)
    assert noised.latents.shape == latents.shape


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_losses_are_means_with_weights_and_finite_at_both_ends(loss_type: str, schedule: str) -> None:
    process = flow(loss_type=loss_type, huber_schedule=schedule)
    noised = Noised(torch.zeros(3, 5, 2, 2), torch.tensor([0.0, 0.5, 1.0]), torch.zeros(3, 5, 2, 2))
    output = torch.linspace(-1, 1, 60).view(3, 5, 2, 2).requires_grad_()
    losses = process.losses(output, noised)
    weighted = process.losses(output, noised, torch.tensor([1.0, 0.5, 0.0]))
    assert weighted.tolist() == pytest.approx([losses[0].item(), losses[1].item() / 2, 0.0])
    weighted.sum().backward()
    assert output.grad is not None and bool(output.grad.isfinite().all()) and bool(losses.isfinite().all())
    if loss_type == "l2":
        assert losses[1].item() == pytest.approx(output[1].square().mean().item())


def test_the_input_is_perturbed_and_the_target_is_not_and_no_other_noise_acts() -> None:
    shape = (2, 4, 4, 4)
    plain = flow().drawing(shape, 0, (0, 1), seed=1)
    # What a plan refuses for these models does nothing if it comes through.
    loud = flow(ip_noise_gamma=0.1, noise_offset=0.5, multires_noise_iterations=4)
    perturbed = loud.drawing(shape, 0, (0, 1), seed=1)
    assert torch.equal(plain.noise, perturbed.noise) and perturbed.perturbation is not None
    clean, dirty = (each.corrupt(torch.zeros(shape), perturbed) for each in (flow(), loud))
    assert torch.equal(clean.target, dirty.target)
    sigmas = perturbed.timesteps.view(2, 1, 1, 1)
    torch.testing.assert_close(dirty.latents, sigmas * (perturbed.noise + perturbed.perturbation))


@pytest.mark.parametrize("scheduler", [SCHEDULER_OF_FLUX, {"shift": 3.0}, {}])
@pytest.mark.parametrize("steps", [1, 4, 20, 1000])
def test_previews_go_from_pure_noise_to_the_picture(scheduler: dict[str, Any], steps: int) -> None:
    """Told the direction of a known picture, each sampler of the kind arrives there."""
    process = flow(scheduler)
    goal = torch.full((1, 16, 8, 8), 0.7)
    noise = torch.randn(goal.shape, generator=torch.Generator().manual_seed(0))
    for name in SAMPLERS[FLOW.name]:
        made = make_scheduler(name, process)
        made.set_timesteps(**process.sampling_steps(steps, goal.shape[1:]))
        assert float(process.told(made.timesteps[0])) == 1.0 and float(made.sigmas[-1]) == 0.0
        latents = noise * made.init_noise_sigma
        for timestep in made.timesteps:
            seen = made.scale_model_input(latents, timestep)
            latents = made.step(noise - goal, timestep, seen, return_dict=False)[0]
        torch.testing.assert_close(latents, goal, rtol=1e-4, atol=1e-4)
