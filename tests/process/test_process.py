"""The objective: sd-scripts' numbers, draws that depend on (seed, step, slot) alone, and the formulas' own rules."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.process.ddpm import Ddpm
from trainer.process.diffusion import (
    NoiseSchedule,
    add_noise,
    alphas_cumprod,
    noise_schedule,
    rescale_to_zero_terminal_snr,
    velocity,
)
from trainer.process.draws import Drawing, Draws, NoiseOptions, UniformTimesteps
from trainer.process.inputs import posterior_sample, training_noise
from trainer.process.loss import TIMESTEP_WEIGHTS, LossOptions, elementwise_loss, huber_threshold, timestep_weights
from trainer.process.noise import adaptive_strength, pyramid_noise, pyramid_sizes, shape_noise
from trainer.process.process import Noised

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_math.json").read_text())
WEIGHTS = GOLDEN["loss_weight"]
TIMESTEPS = torch.tensor(WEIGHTS["timesteps"])
SHAPE = (2, 4, 8, 12)
EVERYTHING = NoiseOptions(
    noise_offset=0.1,
    noise_offset_random_strength=True,
    adaptive_noise_scale=0.2,
    multires_noise_iterations=4,
    ip_noise_gamma=0.1,
    ip_noise_gamma_random_strength=True,
)


PLAIN, SQUARED = NoiseOptions(), LossOptions()


def ddpm(schedule: NoiseSchedule, loss: LossOptions = SQUARED, noise: NoiseOptions = PLAIN) -> Ddpm:
    drawing = Drawing(noise, UniformTimesteps())
    return Ddpm(loss.prediction_type, schedule, loss, drawing, {}, bool(schedule.alphas_cumprod[-1] == 0))


def draw(shape: Sequence[int], step: int, slots: Sequence[int], *, seed: int, options: NoiseOptions = PLAIN) -> Draws:
    return Drawing(options, UniformTimesteps())(shape, step, slots, seed=seed)


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    options: LossOptions,
    weights: Tensor | None = None,
) -> Tensor:
    return ddpm(schedule, options).losses(prediction, Noised(target, timesteps, target), weights)


def close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-5, atol=1e-7)


# --- against sd-scripts ----------------------------------------------------------------------------------------------


def golden_latents() -> Tensor:
    waves = torch.linspace(-1, 1, 768).view(SHAPE).sin()
    return waves * torch.tensor([1, -0.5, 2, 0.25]).view(1, 4, 1, 1) + 0.1


def draws_in_the_order_of_sd_scripts(options: NoiseOptions, low: int = 0, high: int = 1000) -> Draws:
    """Draw from torch's and Python's global generators as sd-scripts does, one strength and one ratio per batch."""
    torch.manual_seed(0)
    random.seed(0)
    noise = torch.randn(SHAPE)
    offset, strength, pyramid, perturbation = None, None, None, None
    if options.noise_offset:
        strength = options.noise_offset * (torch.rand(1) if options.noise_offset_random_strength else torch.ones(1))
        offset = torch.randn(2, 4, 1, 1)
    if options.multires_noise_iterations:
        ratios = (random.random() * 2 + 2 for _ in range(options.multires_noise_iterations))
        levels = [torch.randn(2, 4, *size) for size in pyramid_sizes(8, 12, ratios)]
        pyramid = pyramid_noise(levels, options.multires_noise_discount)
    noise = whole_batch_as_one_sample(noise, offset, strength, pyramid)
    timesteps = torch.randint(low, high, (2,)) if low < high else torch.full((2,), low)
    if options.ip_noise_gamma:
        share = torch.rand(1) if options.ip_noise_gamma_random_strength else 1.0
        perturbation = options.ip_noise_gamma * share * torch.randn(SHAPE)
    return Draws(noise, torch.zeros(SHAPE), timesteps, perturbation)


def whole_batch_as_one_sample(
    noise: Tensor, offset: Tensor | None, strength: Tensor | None, pyramid: Tensor | None
) -> Tensor:
    """Shape noise with the batch folded into the channels: sd-scripts measures one variance over the whole batch."""

    def fold(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.reshape(1, 8, *tensor.shape[2:])

    return shape_noise(noise.reshape(1, 8, 8, 12), fold(offset), strength, fold(pyramid)).view(SHAPE)


@pytest.mark.parametrize("case", GOLDEN["noise"]["cases"], ids=lambda case: "+".join(case["options"]) or "plain")
def test_noise_timesteps_and_noisy_latents_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    given = dict(case["options"])
    low, high = given.pop("min_timestep", 0), given.pop("max_timestep", 1000)
    options = NoiseOptions(**given)
    draws = draws_in_the_order_of_sd_scripts(options, low, high)
    noised = ddpm(noise_schedule(alphas_cumprod()), noise=options).corrupt(golden_latents(), draws)
    noisy, target = noised.latents, noised.target
    assert draws.timesteps.tolist() == case["timesteps"]
    close(target.flatten()[:8], case["noise_first8"])
    close(noisy.flatten()[:8], case["noisy_first8"])
    assert target.double().sum().item() == pytest.approx(case["noise_sum"], rel=1e-5)
    assert noisy.double().sum().item() == pytest.approx(case["noisy_sum"], rel=1e-5)
    assert target.std().item() == pytest.approx(case["noise_std"], rel=1e-5)


def test_the_schedule_is_that_of_sd_scripts() -> None:
    original = alphas_cumprod()
    schedule = noise_schedule(original)
    rescaled = noise_schedule(original, zero_terminal_snr=True)
    close(schedule.alphas_cumprod[TIMESTEPS], WEIGHTS["alphas_cumprod"])
    close(schedule.snr[TIMESTEPS], WEIGHTS["snr"])
    close(rescaled.alphas_cumprod[TIMESTEPS], WEIGHTS["alphas_cumprod_zero_terminal"])
    close(rescaled.snr[TIMESTEPS], WEIGHTS["snr_with_zero_terminal_flag"])
    assert rescaled.alphas_cumprod[-1] == 0.0


WEIGHT_CASES = {
    "min_snr_5 eps": LossOptions(weights={"min_snr_gamma": 5.0}),
    "min_snr_5 v": LossOptions("v_prediction", weights={"min_snr_gamma": 5.0}),
    "scale_v_pred_loss_like_noise_pred": LossOptions(
        "v_prediction", weights={"scale_v_pred_loss_like_noise_pred": True}
    ),
    "v_pred_like_loss 0.1": LossOptions(weights={"v_pred_like_loss": 0.1}),
    "debiased eps": LossOptions(weights={"debiased_estimation_loss": True}),
    "debiased v": LossOptions("v_prediction", weights={"debiased_estimation_loss": True}),
}


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", WEIGHT_CASES)
def test_timestep_weights_are_those_of_sd_scripts(name: str, zero_terminal_snr: bool) -> None:
    schedule = noise_schedule(alphas_cumprod(), zero_terminal_snr=zero_terminal_snr)
    expected = WEIGHTS[f"ztsnr {name}" if zero_terminal_snr else name]
    close(timestep_weights(schedule.snr[TIMESTEPS], WEIGHT_CASES[name]), expected)
    # And through the front door: a difference of 1 everywhere has the loss 1, so the weight is what is left.
    ones = torch.ones(len(TIMESTEPS), 4, 2, 2)
    close(sample_losses(ones, 0 * ones, TIMESTEPS, schedule, WEIGHT_CASES[name]), expected)


def test_velocity_is_that_of_sd_scripts() -> None:
    latents, noise = torch.full((8, 1, 1, 1), 0.5), torch.full((8, 1, 1, 1), -1.0)
    close(velocity(latents, noise, TIMESTEPS, alphas_cumprod()).flatten(), WEIGHTS["velocity_example"])


@pytest.mark.parametrize("case", GOLDEN["huber"]["cases"])
def test_elementwise_losses_are_those_of_sd_scripts(case: dict[str, Any]) -> None:
    options = LossOptions(
        loss_type=case["loss_type"],
        huber_schedule=case["schedule"],
        huber_c=case["huber_c"],
        huber_scale=case["huber_scale"],
    )
    difference = torch.tensor(GOLDEN["huber"]["diff"]).view(1, 1, 1, 6)
    timesteps = torch.tensor([case["timestep"]])
    threshold = huber_threshold(timesteps, alphas_cumprod()[timesteps], options)
    losses = elementwise_loss(difference, 0 * difference, options, lambda: threshold)
    close(losses.flatten(), case["loss"])
    if case["c_t"] is not None:
        close(threshold, [case["c_t"]])


# --- draws -----------------------------------------------------------------------------------------------------------


def fields_of(draws: Draws) -> dict[str, Tensor]:
    return {name: value for name in Draws.__slots__ if (value := getattr(draws, name)) is not None}


def same(first: Draws, second: Draws) -> bool:
    ours, theirs = fields_of(first), fields_of(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("options", [NoiseOptions(), EVERYTHING], ids=["plain", "everything"])
def test_a_sample_draws_the_same_numbers_alone_and_in_any_company(options: NoiseOptions) -> None:
    torch.manual_seed(1)
    together = draw((3, 4, 8, 12), 7, (5, 0, 9), seed=42, options=options)
    state = torch.random.get_rng_state()
    for place, slot in enumerate((5, 0, 9)):
        alone = draw((1, 4, 8, 12), 7, (slot,), seed=42, options=options)
        assert same(alone, Draws(*(None if t is None else t[place : place + 1] for t in tensors(together))))
    assert torch.equal(state, torch.random.get_rng_state())


def tensors(draws: Draws) -> list[Tensor | None]:
    return [getattr(draws, name) for name in Draws.__slots__]


def test_seed_step_and_slot_each_change_every_number() -> None:
    reference = fields_of(draw((1, 4, 8, 12), 7, (3,), seed=42, options=EVERYTHING))
    for seed, step, slot in ((43, 7, 3), (42, 8, 3), (42, 7, 4)):
        other = fields_of(draw((1, 4, 8, 12), step, (slot,), seed=seed, options=EVERYTHING))
        assert not [name for name in reference if torch.equal(reference[name], other[name])]


def test_turning_an_option_on_leaves_the_other_numbers_as_they_were() -> None:
    plain = draw(SHAPE, 3, (0, 1), seed=1, options=NoiseOptions())
    perturbed = draw(SHAPE, 3, (0, 1), seed=1, options=NoiseOptions(ip_noise_gamma=0.1, noise_offset=0.1))
    assert torch.equal(plain.posterior, perturbed.posterior)
    assert torch.equal(plain.timesteps, perturbed.timesteps)
    assert perturbed.noise.sub(plain.noise).std(dim=(2, 3)).max() < 1e-6  # one offset for each channel


def test_purposes_have_streams_of_their_own() -> None:
    draws = draw(SHAPE, 3, (0, 1), seed=1, options=NoiseOptions(ip_noise_gamma=1.0))
    assert draws.perturbation is not None
    assert not torch.equal(draws.noise, draws.posterior)
    assert not torch.equal(draws.noise, draws.perturbation)


def test_draws_go_through_a_worker_and_onto_a_device() -> None:
    draws = draw(SHAPE, 3, (0, 1), seed=1, options=EVERYTHING)
    assert same(pickle.loads(pickle.dumps(draws)), draws)
    assert same(draws.to("cpu", non_blocking=True), draws)
    assert {tensor.device.type for tensor in fields_of(draws.to("meta")).values()} == {"meta"}
    dtypes = {name: tensor.dtype for name, tensor in fields_of(draws).items()}
    assert dtypes.pop("timesteps") == torch.int64
    assert set(dtypes.values()) == {torch.float32}


def test_slots_must_be_as_many_as_samples() -> None:
    with pytest.raises(ValueError):
        draw(SHAPE, 0, (0, 1, 2), seed=1)


def test_timesteps_cover_their_range_evenly() -> None:
    drawing = Drawing(NoiseOptions(), UniformTimesteps(10, 14))
    drawn = [drawing((1, 1, 1, 1), step, (0,), seed=0).timesteps.item() for step in range(2000)]
    counts = [drawn.count(timestep) for timestep in (10, 11, 12, 13)]
    assert sum(counts) == len(drawn)
    assert min(counts) > 400  # 500 +- 5 standard deviations


def test_equal_bounds_give_that_timestep() -> None:
    drawing = Drawing(NoiseOptions(), UniformTimesteps(300, 300))
    assert drawing(SHAPE, 0, (0, 1), seed=0).timesteps.tolist() == [300, 300]


@pytest.mark.parametrize("options", [NoiseOptions(), NoiseOptions(multires_noise_iterations=6)])
def test_noise_has_mean_zero_and_unit_variance(options: NoiseOptions) -> None:
    noise = draw((64, 4, 16, 16), 0, tuple(range(64)), seed=3, options=options).noise
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1.0) < 0.01


def test_multires_noise_has_unit_variance_in_each_sample() -> None:
    options = NoiseOptions(noise_offset=0.5, multires_noise_iterations=6)
    noise = draw((8, 4, 16, 16), 0, tuple(range(8)), seed=3, options=options).noise
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(8))


def test_offset_noise_moves_whole_channels_by_its_strength() -> None:
    plain = draw((256, 4, 2, 2), 0, tuple(range(256)), seed=5, options=NoiseOptions())
    fixed = draw((256, 4, 2, 2), 0, tuple(range(256)), seed=5, options=NoiseOptions(noise_offset=0.2))
    options = NoiseOptions(noise_offset=0.2, noise_offset_random_strength=True)
    varied = draw((256, 4, 2, 2), 0, tuple(range(256)), seed=5, options=options)
    shift, part = fixed.noise - plain.noise, varied.noise - plain.noise
    assert shift.std().item() == pytest.approx(0.2, rel=0.1)
    shares = (part / shift)[:, 0, 0, 0]
    assert shares.min() >= 0.0 and shares.max() <= 1.0
    assert shares.mean().item() == pytest.approx(0.5, abs=0.1)


def test_zero_turns_an_option_off_as_in_sd_scripts() -> None:
    off = NoiseOptions(noise_offset=0.0, adaptive_noise_scale=0.5, multires_noise_iterations=0, ip_noise_gamma=0.0)
    assert same(draw(SHAPE, 0, (0, 1), seed=0, options=off), draw(SHAPE, 0, (0, 1), seed=0))


def test_adaptive_offset_follows_the_latents_mean() -> None:
    options = NoiseOptions(noise_offset=0.1, adaptive_noise_scale=0.5)
    draws = draw(SHAPE, 0, (0, 1), seed=0, options=options)
    latents = golden_latents()
    strength = 0.1 + 0.5 * latents.mean(dim=(2, 3), keepdim=True).abs()
    plain = draw(SHAPE, 0, (0, 1), seed=0).noise
    assert draws.offset is not None
    torch.testing.assert_close(training_noise(draws, latents, options), plain + strength * draws.offset)
    # A scale of almost nothing is the plain offset, drawn before the latents are known.
    nearly = NoiseOptions(noise_offset=0.1, adaptive_noise_scale=1e-12)
    late = training_noise(draw(SHAPE, 0, (0, 1), seed=0, options=nearly), latents, nearly)
    torch.testing.assert_close(late, draw(SHAPE, 0, (0, 1), seed=0, options=NoiseOptions(noise_offset=0.1)).noise)


def test_noise_that_waits_for_the_latents_has_unit_variance_in_each_sample() -> None:
    draws = draw((3, 4, 8, 12), 0, (0, 1, 2), seed=0, options=EVERYTHING)
    latents = torch.linspace(-1, 9, 3).view(3, 1, 1, 1).expand(3, 4, 8, 12)
    noise = training_noise(draws, latents, EVERYTHING)
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(3))


def test_input_perturbation_has_its_strength() -> None:
    fixed = NoiseOptions(ip_noise_gamma=0.2)
    varied = NoiseOptions(ip_noise_gamma=0.2, ip_noise_gamma_random_strength=True)
    full, part = (draw((256, 4, 2, 2), 0, tuple(range(256)), seed=5, options=o).perturbation for o in (fixed, varied))
    assert full is not None and part is not None
    assert full.std().item() == pytest.approx(0.2, rel=0.1)
    shares = (part / full).flatten(1)
    torch.testing.assert_close(shares.min(dim=1).values, shares.max(dim=1).values)  # one strength for each sample
    assert shares.min() >= 0.0 and shares.max() <= 1.0
    assert shares.mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_negative_adaptive_scale_stops_at_zero() -> None:
    assert adaptive_strength(torch.full((1, 1, 1, 1), 0.1), torch.ones(1, 2, 3, 3), -5.0).tolist() == [
        [[[0.0]], [[0.0]]]
    ]


def test_pyramid_ends_at_one_pixel() -> None:
    assert list(pyramid_sizes(9, 16, iter([2.0, 3.0, 2.5, 2.0]))) == [(9, 16), (3, 5), (1, 2)]


# --- inputs, targets, losses -----------------------------------------------------------------------------------------


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_level() -> None:
    torch.manual_seed(0)
    original = alphas_cumprod()
    rescaled = rescale_to_zero_terminal_snr(original)
    latents, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    last = torch.tensor([999])
    assert torch.equal(add_noise(latents, noise, last, rescaled), noise)
    torch.testing.assert_close(velocity(latents, noise, last, rescaled), -latents)
    torch.testing.assert_close(rescaled[0], original[0])


def test_latents_come_back_from_noisy_latents_and_velocity() -> None:
    """x_0 = sqrt(alpha-bar) x_t - sqrt(1 - alpha-bar) v, Salimans & Ho 2022, appendix D."""
    torch.manual_seed(0)
    schedule = noise_schedule(alphas_cumprod())
    latents = torch.randn(8, 4, 3, 3)
    draws = Draws(torch.randn_like(latents), torch.zeros_like(latents), TIMESTEPS)
    noised = ddpm(schedule, LossOptions("v_prediction")).corrupt(latents, draws)
    alpha_bar = schedule.alphas_cumprod[TIMESTEPS].view(8, 1, 1, 1)
    found = alpha_bar.sqrt() * noised.latents - (1 - alpha_bar).sqrt() * noised.target
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


def test_low_precision_latents_are_noised_in_float32() -> None:
    latents = golden_latents().bfloat16()
    draws = draw(SHAPE, 0, (0, 1), seed=0, options=EVERYTHING)
    process = ddpm(noise_schedule(alphas_cumprod()), LossOptions("v_prediction"), EVERYTHING)
    low, high = process.corrupt(latents, draws), process.corrupt(latents.float(), draws)
    for ours, exact in ((low.latents, high.latents), (low.target, high.target)):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact)


def test_posterior_sample_scales_and_shifts() -> None:
    assert posterior_sample(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([-1.0])).item() == 1.5


def test_losses_are_means_over_each_sample_times_its_weights() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    timesteps = torch.tensor([10, 500, 999])
    options = LossOptions(weights={"min_snr_gamma": 5.0, "debiased_estimation_loss": True})
    schedule = noise_schedule(alphas_cumprod())
    weights = torch.tensor([1.0, 0.25, 1.0])
    losses = sample_losses(prediction.bfloat16(), target, timesteps, schedule, options, weights)
    assert losses.dtype == torch.float32
    for index, timestep in enumerate(timesteps.tolist()):
        snr = schedule.snr[timestep].item()
        mean = (prediction[index].bfloat16().float() - target[index]).pow(2).mean().item()
        expected = mean * weights[index].item() * min(snr, 5.0) / snr / math.sqrt(min(snr, 1000.0))
        assert losses[index].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_every_loss_is_zero_at_the_target_with_a_finite_gradient(loss_type: str) -> None:
    prediction = torch.zeros(2, 1, 2, 2, requires_grad=True)
    schedule = noise_schedule(alphas_cumprod(), zero_terminal_snr=True)
    options = LossOptions(loss_type=loss_type)
    losses = sample_losses(prediction, torch.zeros(2, 1, 2, 2), torch.tensor([0, 999]), schedule, options)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert prediction.grad is not None
    assert torch.count_nonzero(prediction.grad) == 0


def test_huber_at_zero_terminal_snr_uses_the_rescaled_schedule() -> None:
    rescaled = noise_schedule(alphas_cumprod(), zero_terminal_snr=True)
    options = LossOptions(loss_type="huber", huber_c=0.1)
    last = torch.tensor([999])
    assert huber_threshold(last, rescaled.alphas_cumprod[last], options).item() == pytest.approx(0.1)


def test_options_are_read_from_sections_by_name() -> None:
    noise = SimpleNamespace(
        **{name: getattr(EVERYTHING, name) for name in NoiseOptions.__slots__}, zero_terminal_snr=True
    )
    assert NoiseOptions.from_section(noise) == EVERYTHING
    weights = {**dict.fromkeys(TIMESTEP_WEIGHTS, None), "min_snr_gamma": 5.0}
    expected = LossOptions(prediction_type="v_prediction", loss_type="l1", weights=weights)
    own = [name for name in LossOptions.__slots__ if name not in ("prediction_type", "weights")]
    loss = SimpleNamespace(**{name: getattr(expected, name) for name in own}, **weights)
    assert LossOptions.from_section(loss, prediction_type="v_prediction") == expected
