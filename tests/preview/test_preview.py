"""Sample prompts are read as sd-scripts reads them, and pictures are a function of weights and request."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from tests.helpers.adapters import fill
from tests.helpers.checkpoints import tiny_sd15
from trainer import families
from trainer.adapters import LoraSpec
from trainer.config import load_config
from trainer.config.results import SamplingSection
from trainer.families.sd15.bundle import Bundle
from trainer.ground.errors import ConfigError, Stopped
from trainer.preview.prompts import (
    SamplePrompt,
    SampleRequest,
    parse_prompt,
    picture_name,
    prompt_notices,
    read_prompts,
    settle,
)
from trainer.preview.samplers import SAMPLERS
from trainer.preview.sampling import sample, save_picture, to_picture
from trainer.preview.schedulers import LMSDiscreteScheduler, make_scheduler
from trainer.process import DDPM, FLOW
from trainer.process.ddpm import Ddpm

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "sample_prompts.json").read_text())
DDPM_SAMPLERS = SAMPLERS[DDPM.name]
REQUEST = SampleRequest("a cat", "ugly", 64, 64, steps=3, scale=7.5, sampler="ddim", seed=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_sd15(tmp_path_factory.mktemp("model")))


def load_bundle(path: Path, dtype: torch.dtype = torch.float32, **overrides: object) -> Bundle:
    config = load_config(overrides={"pretrained_model_name_or_path": str(path), **overrides})
    made = families.load(config, device=torch.device("cpu"), dtype=dtype)
    assert isinstance(made, Bundle)
    return made


# Prompts


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["line"])
def test_prompts_are_read_as_sd_scripts_does(case: dict) -> None:
    made = parse_prompt(case["line"])
    said = {
        name: getattr(made, name)
        for name in SamplePrompt.__dataclass_fields__
        if name not in ("others", "ignored") and getattr(made, name) not in (None, "")
    }
    assert said | dict(made.others) == case["parsed"]


@pytest.mark.parametrize("text", ["n girl", "w 3 towers", "s 5", "d 1 dice", "l 7.5 lens"])
def test_a_prompt_is_no_option(text: str) -> None:
    """sd-scripts takes these for options as well."""
    assert parse_prompt(text) == SamplePrompt(text)
    assert parse_prompt(f"{text} --w 128") == SamplePrompt(text, width=128)


def test_what_has_no_effect_is_kept_and_told() -> None:
    made = parse_prompt("cat --x 3 --w wide --d -1 --g 3.5 --n")
    assert made == SamplePrompt(
        "cat", others=(("guidance_scale", 3.5),), ignored=("--x 3", "--w wide", "--d -1", "--n")
    )
    (notice,) = prompt_notices([made, SamplePrompt("dog")])
    assert "'cat': --x 3, --w wide, --d -1, --n, guidance_scale" in notice


def test_prompts_come_from_lines_or_a_file(tmp_path: Path) -> None:
    text = "# animals\na cat --w 64\n\n  a dog  \n"
    expected = (SamplePrompt("a cat", width=64), SamplePrompt("a dog"))
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prompts(load_config(overrides={"sample_prompts": text})) == expected
    assert read_prompts(load_config(overrides={"sample_prompts": str(path)})) == expected
    assert read_prompts(load_config()) == ()


def test_a_missing_file_and_an_unknown_sampler_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sample_prompts: there is no file"):
        read_prompts(load_config(overrides={"sample_prompts": str(tmp_path / "missing.txt")}))
    with pytest.raises(ConfigError, match="sample_prompts: 'best' is no sampler.*euler_a"):
        read_prompts(load_config(overrides={"sample_prompts": "cat --ss best"}))


def test_what_a_prompt_leaves_open_comes_from_the_settings() -> None:
    config = load_config(overrides={"resolution": "512,768", "sample_sampler": "heun", "seed": 7})
    made = settle(SamplePrompt("cat"), config, 2)
    assert made == SampleRequest("cat", "", 512, 768, 30, 7.5, "heun", made.seed, 2)
    assert settle(SamplePrompt("dog"), config, 2).seed == made.seed
    assert settle(SamplePrompt("cat"), config, 3).seed != made.seed
    other = load_config(overrides={"seed": 8})
    assert settle(SamplePrompt("cat"), other, 2).seed != made.seed
    said = SamplePrompt("cat", "ugly", 127, 10, 0, 0.0, 0, "ddim")
    assert settle(said, config, 0) == SampleRequest("cat", "ugly", 120, 64, 1, 0.0, "ddim", 0)
    assert settle(replace(said, sample_steps=5000), config, 0).steps == 1000


def test_names_of_pictures_are_kohyas() -> None:
    moment = datetime(2026, 2, 3, 4, 5, 6)
    request = replace(REQUEST, index=3, seed=42)
    assert picture_name("cat", request, step=500, epoch=None, moment=moment) == "cat_000500_03_20260203040506_42.png"
    assert picture_name("cat", request, step=500, epoch=4, moment=moment) == "cat_e000004_03_20260203040506_42.png"


def test_reading_prompts_does_not_import_torch() -> None:
    code = "import sys, trainer.preview; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# Pictures


def test_the_samplers_are_those_of_the_setting() -> None:
    assert set(get_args(get_type_hints(SamplingSection)["sample_sampler"])) == set(DDPM_SAMPLERS)


@pytest.mark.parametrize("name", [name for name in DDPM_SAMPLERS if not name.startswith("k_")])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_sampler_recovers_a_known_picture(bundle: Bundle, name: str, prediction_type: str) -> None:
    """Told at every step where a picture lies, a sampler must arrive there."""
    scheduler = make_scheduler(name, replace(bundle.process, prediction_type=prediction_type))
    scheduler.set_timesteps(25)
    goal = torch.full((1, 4, 4, 4), 0.7)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(goal.shape, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        alpha = torch.as_tensor(
            np.interp(float(timestep), np.arange(1000), bundle.process.schedule.alphas_cumprod.numpy()),
            dtype=torch.float32,
        )
        noise = (seen - alpha.sqrt() * goal) / (1 - alpha).sqrt()
        told = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * goal
        latents = scheduler.step(told, timestep, latents, return_dict=False)[0]
    assert (latents - goal).abs().mean() < 0.1


def test_linear_multistep_integrates_exactly() -> None:
    """The first coefficient of order 1 is the step itself; those of any order add up to it."""
    scheduler = LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(10)
    for order in (1, 2, 3, 4):
        step = float(scheduler.sigmas[6] - scheduler.sigmas[5])
        assert sum(scheduler.get_lms_coefficient(order, 5, k) for k in range(order)) == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_pictures_equal_those_of_diffusers_pipeline(bundle: Bundle, sampler: str) -> None:
    request = replace(REQUEST, sampler=sampler, width=96)
    scheduler = make_scheduler(sampler, bundle.process)
    pipeline = StableDiffusionPipeline(
        vae=bundle.vae,
        text_encoder=bundle.text_encoders["text_encoder"],
        tokenizer=bundle.tokenizer,
        unet=bundle.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    ).images[0]
    made = np.asarray(sample(bundle, request), dtype=np.float32) / 255
    assert made.shape == (64, 96, 3)
    assert np.abs(made - expected).max() < 1 / 255


def test_a_picture_is_a_function_of_its_request(bundle: Bundle) -> None:
    first = sample(bundle, REQUEST).tobytes()
    torch.manual_seed(99)
    assert sample(bundle, REQUEST).tobytes() == first
    for change in ({"seed": 2}, {"prompt": "a dog"}, {"negative_prompt": ""}, {"scale": 2.0}, {"steps": 4}):
        assert sample(bundle, replace(REQUEST, **change)).tobytes() != first, change
    without_guidance = replace(REQUEST, scale=1.0)
    other_negative = replace(without_guidance, negative_prompt="x")
    assert sample(bundle, without_guidance).tobytes() == sample(bundle, other_negative).tobytes()


def test_clip_skip_and_long_prompts_reach_the_picture(tmp_path: Path, bundle: Bundle) -> None:
    path = tiny_sd15(tmp_path)
    assert sample(load_bundle(path, clip_skip=2), REQUEST).tobytes() != sample(bundle, REQUEST).tobytes()
    long = replace(REQUEST, prompt="cat " * 75 + "dog")
    cut = replace(REQUEST, prompt="cat " * 75)
    assert sample(bundle, long).tobytes() == sample(bundle, cut).tobytes()
    wide = load_bundle(path, max_token_length=150)
    assert sample(wide, long).tobytes() != sample(wide, cut).tobytes()


def test_half_precision_with_an_adapter_in_float32_draws(tmp_path: Path) -> None:
    made = load_bundle(tiny_sd15(tmp_path), torch.bfloat16)
    before = sample(made, REQUEST)
    adapter = LoraSpec(4, 4, conv_dim=2).build(made.components, made.targets(conv=True), seed=1)
    assert sample(made, REQUEST).tobytes() == before.tobytes()
    fill(adapter.tensors())
    assert sample(made, REQUEST).tobytes() != before.tobytes()


def test_modes_and_random_numbers_stay_as_they_were(bundle: Bundle) -> None:
    layer = bundle.text_encoders["text_encoder"].encoder.layers[0]
    seen: list[bool] = []
    hook = layer.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    layer.train()
    before = torch.get_rng_state()
    sample(bundle, replace(REQUEST, sampler="euler_a"))
    assert seen and not any(seen)
    assert layer.training and not bundle.unet.training
    assert torch.equal(torch.get_rng_state(), before)
    hook.remove()
    layer.eval()


def test_stopping_ends_it_at_the_next_step(bundle: Bundle) -> None:
    layer = bundle.text_encoders["text_encoder"].train()
    seen: list[tuple[str, int, int]] = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append((phase, done, total))
        if done == 2:
            raise Stopped("stop")

    with pytest.raises(Stopped):
        sample(bundle, REQUEST, progress=progress)
    assert seen == [("drawing samples", 0, 3), ("drawing samples", 1, 3), ("drawing samples", 2, 3)]
    assert layer.training
    layer.eval()


def test_a_png_carries_its_prompt_and_parameters(tmp_path: Path) -> None:
    pixels = torch.stack([torch.full((2, 3), value) for value in (-1.0, 0.0, 1.5)])
    path = tmp_path / "picture.png"
    save_picture(to_picture(pixels), replace(REQUEST, prompt="a café"), path)
    with Image.open(path) as picture:
        assert picture.size == (3, 2)
        assert picture.getpixel((0, 0)) == (0, 128, 255)
        assert picture.text["parameters"] == (
            "a café\nNegative prompt: ugly\nSteps: 3, Sampler: ddim, CFG scale: 7.5, Seed: 1, Size: 64x64"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


OWN_NAMES = [name for name in DDPM_SAMPLERS if not name.startswith("k_")]


def drawn(process: Ddpm, name: str, steps: int) -> torch.Tensor:
    """Draw with a model that knows its pictures: each value normal around 0.7, spread by 0.5."""
    levels, shape = process.schedule.alphas_cumprod.double().numpy(), (1, 4, 32, 32)
    made = make_scheduler(name, process)
    made.set_timesteps(**process.sampling_steps(steps, shape[1:]))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * made.init_noise_sigma
    for timestep in made.timesteps:
        seen = made.scale_model_input(latents, timestep)
        alpha = float(np.interp(float(timestep), np.arange(1000), levels))
        found = 0.7 + alpha**0.5 * 0.25 / (alpha * 0.25 + 1 - alpha) * (seen - alpha**0.5 * 0.7)
        noise = (seen - alpha**0.5 * found) / max(1 - alpha, 1e-12) ** 0.5
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * found
        told = noise if process.prediction_type == "epsilon" else velocity
        latents = made.step(told, timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("name", OWN_NAMES)
def test_the_setting_zero_terminal_snr_reaches_the_brightness_of_samples(tmp_path: Path, name: str) -> None:
    """The model's picture is 0.7 bright. Begun in pure noise but told that there is signal, it comes out darker."""
    path = tiny_sd15(tmp_path)
    plain = load_bundle(path, v_parameterization=True).process
    zero = load_bundle(path, v_parameterization=True, zero_terminal_snr=True).process
    for process in (plain, zero):
        made = make_scheduler(name, process)
        assert float(made.alphas_cumprod[-1]) == pytest.approx(float(process.schedule.alphas_cumprod[-1]), abs=1e-5)
        made.set_timesteps(**process.sampling_steps(20, (4, 8, 8)))
        assert int(made.timesteps[0]) == (999 if process is zero or name not in ("ddim", "pndm") else 951)
    darker, right = (abs(float(drawn(process, name, 20).mean()) - 0.7) for process in (plain, zero))
    assert right < (0.04 if name == "pndm" else 0.015)
    assert right < darker or darker < 0.01


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_sampler_keeps_brightness_and_contrast_with_any_steps_that_it_takes(bundle: Bundle, name: str) -> None:
    sampler = DDPM_SAMPLERS[name]
    ends = {end for each in sampler.steps for end in (each[0], each[-1])}
    for steps in sorted(ends - {1000} | {10, 30}):
        picture = drawn(bundle.process, name, steps)
        assert abs(float(picture.mean()) - 0.7) < 0.12, steps
        assert float(picture.std()) < 0.95, steps
        # A few steps smooth, none of them may flatten or roughen once there are ten.
        assert steps < 10 or 0.3 < float(picture.std()) < 0.7, steps


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("ddim", steps) for steps in (1, 255, 350, 501, 999, 1000, 5000)),
        *(("pndm", steps) for steps in (1, 2, 700, 1000)),
        *(("dpmsolver", 1000), ("dpmsolver++", 1000), ("heun", 2), ("k_dpm_2", 3), ("dpm_2_a", 1)),
        *(("euler", 1), ("euler", 0), ("k_euler_a", 1), ("lms", 1)),
    ],
)
def test_steps_that_a_sampler_cannot_draw_with_are_refused_by_name(name: str, steps: int) -> None:
    prompt = f"a cat --s {steps}"
    for given in ({"sample_prompts": f"{prompt} --ss {name}"}, {"sample_prompts": prompt, "sample_sampler": name}):
        with pytest.raises(ConfigError) as caught:
            read_prompts(load_config(overrides=given))
        assert f"the sampler {name} draws with {DDPM_SAMPLERS[name].steps_in_words} steps" in str(caught.value)
        assert f"--s {steps}" in str(caught.value)


def test_ranges_are_told_in_words_and_hold_their_ends() -> None:
    ddim = DDPM_SAMPLERS["ddim"]
    assert ddim.steps_in_words == "2 to 250, 267 to 333 or 400 to 500"
    assert [steps for steps in (1, 2, 250, 251, 266, 267, 333, 334, 399, 400, 500, 501) if ddim.takes(steps)] == [
        2, 250, 267, 333, 400, 500,
    ]  # fmt: skip
    assert DDPM_SAMPLERS["euler"].steps_in_words == "2 to 1000"


def test_models_of_rectified_flow_are_drawn_with_their_own_sampler() -> None:
    config = load_config(overrides={"sample_prompts": "a cat\na dog --ss euler --s 4", "sample_sampler": "ddim"})
    made = read_prompts(config, FLOW)
    assert [settle(prompt, config, 0).sampler for prompt in made] == ["euler", "euler"]
    with pytest.raises(ConfigError, match="'ddim' is no sampler; choose from euler"):
        read_prompts(load_config(overrides={"sample_prompts": "a cat --ss ddim"}), FLOW)
