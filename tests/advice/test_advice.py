"""Advice: each rule speaks where it should, is silent where it should, and its remedy silences it."""

from __future__ import annotations

import pytest

from trainer.advice import AIM_STEPS, RULES, Advice, Situation, advise, best_epochs, formula_steps, is_anime, strength
from trainer.advice.leftovers import demo_settings
from trainer.config import config_from_layers, load_config, to_flat

COUNTS = Situation(images=20, samples=100, reg_images=50, reg_samples=100, most_repeats=5)
"""2,000 steps in 10 epochs: nothing to say about them."""


def found(values: dict[str, object], counts: Situation = COUNTS) -> dict[str, Advice]:
    """Return {rule: advice}."""
    return {advice.rule: advice for advice in advise(load_config(None, values), counts)}


def after_remedy(values: dict[str, object], advice: Advice, counts: Situation = COUNTS) -> set[str]:
    """Return the rules that still speak when the remedy of one is followed."""
    assert advice.remedy is not None
    config = config_from_layers([to_flat(load_config(None, values)), advice.remedy])
    return {other.rule for other in advise(config, counts)}


@pytest.mark.parametrize(
    ("values", "counts", "steps"),
    [
        ({}, COUNTS, 2000),
        ({"train_batch_size": 4}, COUNTS, 500),
        ({"train_batch_size": 3, "max_train_epochs": 1}, COUNTS, 200 / 3),
        ({"max_train_epochs": 7}, Situation(images=12, samples=48, reg_images=6, reg_samples=6), 378),
        ({"max_train_steps": 700}, COUNTS, 700),
        ({}, Situation(), 0),
    ],
)
def test_formula_steps(values: dict[str, object], counts: Situation, steps: float) -> None:
    assert formula_steps(counts, load_config(None, values)) == steps


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs"),
    [(200, 12), (250, 10), (1, 2500), (2500, 1), (5000, 1), (1900, 1), (1700, 1), (1400, 2), (0.5, 5000)],
)
def test_best_epochs_lands_in_the_aim_or_nearest_to_it(steps_per_epoch: float, epochs: int) -> None:
    assert best_epochs(steps_per_epoch) == epochs


def test_the_defaults_with_good_pictures_need_only_the_word_on_strength() -> None:
    assert set(found({})) == {"strength"}


def test_names_of_rules_are_their_own() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)


# --- the number of steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 9, 16, 100])
def test_steps_outside_the_aim_name_the_epochs_that_land_there(epochs: int) -> None:
    advice = found({"max_train_epochs": epochs})["total-steps"]
    assert f"{200 * epochs:,} steps in all" in advice.message
    assert advice.remedy == {"max_train_epochs": 12}
    assert "12 epochs make 2,400" in advice.reason
    assert "total-steps" not in after_remedy({"max_train_epochs": epochs}, advice)


@pytest.mark.parametrize("epochs", [10, 15])
def test_steps_within_the_aim_are_left_alone(epochs: int) -> None:
    assert "total-steps" not in found({"max_train_epochs": epochs})


def test_the_exact_number_goes_before_the_formula() -> None:
    counts = Situation(images=20, samples=100, reg_images=50, reg_samples=100, exact_steps=1000)
    assert "1,000 steps" in found({}, counts)["total-steps"].message


def test_a_length_in_steps_is_answered_in_steps() -> None:
    advice = found({"max_train_steps": 9000})["total-steps"]
    assert (advice.key, advice.remedy) == ("max_train_steps", {"max_train_steps": AIM_STEPS})


def test_a_single_epoch_that_is_too_long_asks_for_fewer_repeats() -> None:
    advice = found({"max_train_epochs": 1}, Situation(images=100, samples=9000, reg_images=1, most_repeats=90))
    assert "lower the repeats" in advice["total-steps"].reason
    assert advice["total-steps"].remedy is None


def test_nothing_is_said_where_no_number_of_epochs_is_better_or_no_pictures_are_known() -> None:
    assert "total-steps" not in found({"max_train_epochs": 1}, Situation(images=19, samples=1900, reg_images=1))
    assert "total-steps" not in found({}, Situation())


@pytest.mark.parametrize(
    "values", [{}, {"network_dim": 8, "network_alpha": 4.0}, {"max_train_steps": 12}, {"resolution": 64}]
)
def test_only_a_toy_model_makes_a_trial(values: dict[str, object]) -> None:
    counts = Situation(images=4, samples=4)
    assert {"total-steps", "no-regularisation"} <= set(found(values, counts))
    toy = Situation(images=4, samples=4, model_side=64)
    assert not {"total-steps", "no-regularisation"} & set(found(values, toy))


@pytest.mark.parametrize("side", [0, 64, 512, 1024])
@pytest.mark.parametrize("values", [{"max_train_steps": 84_000_000}, {"max_train_epochs": 420_000}])
def test_absurd_lengths_are_serious_on_any_model(values: dict[str, object], side: int) -> None:
    advice = found(values, Situation(images=20, samples=200, model_side=side))["total-steps"]
    assert advice.serious
    assert "84,000,000 steps" in advice.message


# --- pictures -------------------------------------------------------------------------------------------------------


def test_repeats_without_regularisation_pictures_should_be_one() -> None:
    advice = found({}, Situation(images=20, samples=200, most_repeats=10))["repeats-without-regularisation"]
    assert advice.message.startswith("10 repeats")
    assert "repeats-without-regularisation" not in found({}, Situation(images=200, samples=200, most_repeats=1))
    assert "repeats-without-regularisation" not in found({})


def test_no_regularisation_pictures_are_mentioned() -> None:
    assert "overfitting" in found({}, Situation(images=200, samples=200))["no-regularisation"].reason
    assert "no-regularisation" not in found({})
    assert "no-regularisation" not in found({}, Situation())


# --- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e-3},
        {"learning_rate": 2e-6},
        {"unet_lr": 1e-3},
        {"optimizer_type": "AdamW8bit", "learning_rate": 2e-4},
        {"optimizer_type": "Lion"},
        {"optimizer_type": "Prodigy"},
        {"optimizer_type": "DAdaptAdam", "learning_rate": 0.5},
        {"optimizer_type": "Prodigy", "unet_lr": 2.0, "text_encoder_lr": 2.0},
        {"optimizer_type": "Prodigy", "resolution": 64},
        {"learning_rate": 1e-3, "resolution": 64},
        {"learning_rate": 1.0},
        {"optimizer_type": "Adafactor", "learning_rate": 1e-2},
        {"optimizer_type": "Adafactor", "optimizer_args": ["scale_parameter=True"]},
        {"optimizer_type": "Prodigy", "text_encoder_lr": 0},
    ],
)
def test_unusual_learning_rates(values: dict[str, object]) -> None:
    advice = found(values)["learning-rate"]
    assert advice.key in values or advice.key == "learning_rate"
    assert "learning-rate" not in after_remedy(values, advice)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 5e-5},
        {"learning_rate": 1e-3, "network_alpha": 1.0},
        {"optimizer_type": "Adafactor", "optimizer_args": ["scale_parameter=True"], "learning_rate": 0.1},
        {"optimizer_type": "Adafactor", "optimizer_args": ["relative_step=True"], "learning_rate": 7.0},
        {"optimizer_type": "Prodigy", "learning_rate": 1.0},
        {"optimizer_type": "Lion", "learning_rate": 1e-5},
        {"optimizer_type": "Adafactor", "learning_rate": 1e-3},
        {"learning_rate": 1.0, "unet_lr": 0},
    ],
)
def test_usual_learning_rates(values: dict[str, object]) -> None:
    assert "learning-rate" not in found(values)


@pytest.mark.parametrize(("rate", "speaks"), [(8e-4, False), (1.0, True), (1e-7, True)])
def test_a_toy_model_bears_higher_rates_but_not_any(rate: float, speaks: bool) -> None:
    toy = Situation(images=12, samples=144, reg_images=1, model_side=64)
    assert ("learning-rate" in found({"learning_rate": rate}, toy)) is speaks


@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_a_rate_of_another_order_is_serious(rate: float) -> None:
    assert found({"learning_rate": rate})["learning-rate"].serious
    assert next(iter(advise(load_config(None, {"learning_rate": rate}), COUNTS))).rule == "learning-rate"


def test_what_an_optimizer_learns_nothing_without_is_a_click_away() -> None:
    values: dict[str, object] = {
        "optimizer_type": "DAdaptAdaGrad",
        "learning_rate": 1.0,
        "optimizer_args": ["eps=1e-5"],
    }
    advice = found(values)["optimizer-arguments"]
    assert "without d0=" in advice.message
    assert "optimizer-arguments" not in after_remedy(values, advice)
    assert "optimizer-arguments" not in found({**values, "optimizer_args": ["d0 = 1e-6"]}), "the person has chosen"
    assert "optimizer-arguments" not in found({**values, "optimizer_type": "DAdaptAdam"})
    assert (
        "growth_rate=1.1" in found({"optimizer_type": "DAdaptSGD", "learning_rate": 1.0})["optimizer-arguments"].message
    )


def test_a_rate_that_does_nothing_is_named_and_not_judged() -> None:
    values: dict[str, object] = {"optimizer_type": "Adafactor", "optimizer_args": ["relative_step=True"]}
    told = found(values)
    assert "no effect" in told["rate-without-effect"].message
    assert "learning-rate" not in told
    assert "acts like" not in told["strength"].message
    assert "rate-without-effect" not in found({"optimizer_type": "Adafactor"})


def test_what_adafactors_scale_makes_of_the_rate_is_said() -> None:
    values: dict[str, object] = {"optimizer_type": "Adafactor", "optimizer_args": ["scale_parameter=True"]}
    assert "0.0001, which acts like 1e-07 at first" in found(values)["learning-rate"].message
    assert "acts like 1e-07 at first, acts like 5e-08" in found(values)["strength"].message


def test_a_denoiser_that_is_not_trained_is_serious() -> None:
    assert found({"unet_lr": 0})["denoiser-untrained"].key == "unet_lr"
    assert found({"learning_rate": 0})["denoiser-untrained"].key == "learning_rate"
    assert "denoiser-untrained" not in found({"unet_lr": 0, "network_train_text_encoder_only": True})
    assert "denoiser-untrained" not in after_remedy({"unet_lr": 0}, found({"unet_lr": 0})["denoiser-untrained"])


def test_the_text_encoder_learns_slower() -> None:
    advice = found({"text_encoder_lr": 1e-4})["text-encoder-rate"]
    assert advice.remedy == {"text_encoder_lr": 5e-5}
    assert "text-encoder-rate" not in found({"learning_rate": 5e-5})
    assert "text-encoder-rate" not in found({"optimizer_type": "Prodigy", "learning_rate": 1.0})
    assert "text-encoder-rate" not in found({"text_encoder_lr": 1e-4, "unet_lr": 0})


# --- rank and alpha -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [9, 15, 129, 256])
def test_unusual_ranks(rank: int) -> None:
    values: dict[str, object] = {"network_dim": rank, "network_alpha": 8.0}
    advice = found(values)["rank"]
    assert "32 is often enough" in advice.message
    assert not {"rank", "alpha"} & after_remedy(values, advice)


@pytest.mark.parametrize("rank", [2, 8, 16, 32, 128])
def test_usual_ranks(rank: int) -> None:
    assert "rank" not in found({"network_dim": rank, "network_alpha": 2.0})


@pytest.mark.parametrize(
    "values",
    [
        {"network_alpha": 64.0},
        {"network_alpha": 1.0},
        {"network_dim": 512, "network_alpha": 256.0},
        {"network_dim": 4, "network_alpha": 8.0},
    ],
)
def test_unusual_alphas(values: dict[str, object]) -> None:
    advice = found(values)["alpha"]
    assert "alpha" not in after_remedy(values, advice)


@pytest.mark.parametrize(
    "values", [{"network_alpha": 8.0}, {"network_alpha": 32.0}, {"network_dim": 4, "network_alpha": 1.0}]
)
def test_usual_alphas(values: dict[str, object]) -> None:
    assert "alpha" not in found(values)


def test_strength_says_what_alpha_makes_of_the_rate() -> None:
    assert strength(load_config()) == 0.5
    assert "16 / 32 = 0.5, so a learning rate of 0.0001 acts like 5e-05" in found({})["strength"].message
    assert "Prodigy" in found({"optimizer_type": "Prodigy", "learning_rate": 1.0})["strength"].message
    assert "strength" not in found({"network_alpha": 32.0})
    assert "strength" not in found({"unet_lr": 0})


# --- the rest -------------------------------------------------------------------------------------------------------


def test_the_step_of_buckets_is_a_matter_of_unets() -> None:
    """A transformer takes its latents in pieces of its own; whether the step fits them is a rule, not advice."""
    values = {"bucket_reso_steps": 32}
    assert "bucket-step" in found(values, Situation(model_family="sdxl"))
    assert "bucket-step" not in found(values, Situation(model_family="flux"))


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("warm-up", {"lr_warmup_steps": 0.6}),
        ("warm-up", {"lr_warmup_steps": 5000}),
        ("resolution", {"resolution": 448}),
        ("resolution", {"resolution": 64}),
        ("resolution", {"resolution": "2048,2048"}),
        ("enlarging", {"bucket_no_upscale": False}),
        ("bucket-step", {"bucket_reso_steps": 32}),
        ("keep-tokens", {"shuffle_caption": True}),
        ("keep-tokens", {"caption_tag_dropout_rate": 0.1}),
        ("clip-skip", {"pretrained_model_name_or_path": "models/anything-v4.5-pruned.safetensors"}),
        ("caption-dropout", {"caption_dropout_rate": 0.5}),
        ("two-loss-weightings", {"min_snr_gamma": 5.0, "debiased_estimation_loss": True}),
        ("noise-offset", {"noise_offset": 0.5}),
        ("noise-offset", {"noise_offset": 0.1, "multires_noise_iterations": 6}),
        ("double-clipping", {"optimizer_type": "Adafactor"}),
        ("double-clipping", {"optimizer_type": "CAME"}),
        ("first-steps", {"optimizer_type": "CAME", "lr_scheduler": "constant"}),
        ("first-steps", {"optimizer_type": "CAME", "lr_warmup_steps": 0}),
        ("schedule-without-effect", {"optimizer_type": "AdamWScheduleFree"}),
        ("samples", {"sample_prompts": "a sks dog"}),
        ("zero-terminal-snr", {"zero_terminal_snr": True}),
    ],
)
def test_rules_that_speak_and_whose_remedy_silences_them(rule: str, values: dict[str, object]) -> None:
    advice = found(values)[rule]
    assert advice.message.endswith(".")
    assert advice.reason.endswith(".")
    assert rule not in after_remedy(values, advice)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("warm-up", {"lr_warmup_steps": 200}),
        ("warm-up", {"lr_warmup_steps": 5000, "lr_scheduler": "constant"}),
        ("resolution", {"resolution": "512,768"}),
        ("enlarging", {"enable_bucket": False, "bucket_no_upscale": False}),
        ("keep-tokens", {"shuffle_caption": True, "keep_tokens": 1}),
        ("keep-tokens", {"shuffle_caption": True, "keep_tokens_separator": "|||"}),
        ("clip-skip", {"pretrained_model_name_or_path": "anything-v4.5.safetensors", "clip_skip": 2}),
        ("caption-dropout", {"caption_dropout_rate": 0.1}),
        ("two-loss-weightings", {"min_snr_gamma": 5.0}),
        ("noise-offset", {"noise_offset": 0.1}),
        ("double-clipping", {"optimizer_type": "Adafactor", "max_grad_norm": 0.0}),
        ("first-steps", {"optimizer_type": "CAME"}),
        ("schedule-without-effect", {"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "constant"}),
        ("schedule-without-effect", {}),
        ("samples", {"sample_prompts": "a sks dog", "sample_every_n_steps": 100}),
        ("zero-terminal-snr", {"zero_terminal_snr": True, "v_parameterization": True}),
    ],
)
def test_rules_that_are_silent(rule: str, values: dict[str, object]) -> None:
    assert rule not in found(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shuffle_caption": True}, "captions are shuffled, and"),
        ({"caption_tag_dropout_rate": 0.1}, "captions lose tags, and"),
        ({"shuffle_caption": True, "caption_tag_dropout_rate": 0.1}, "captions are shuffled and lose tags, and"),
    ],
)
def test_it_is_said_what_is_done_to_captions(values: dict[str, object], words: str) -> None:
    assert found(values)["keep-tokens"].message.startswith(words)


def test_a_model_that_says_that_it_predicts_v_is_believed() -> None:
    says = Situation(images=20, samples=100, model_family="sdxl", model_variant="v-prediction, zero terminal SNR")
    assert "zero-terminal-snr" not in found({"zero_terminal_snr": True}, says)


def test_samples_without_prompts() -> None:
    assert "no prompts" in found({"sample_every_n_epochs": 1})["samples"].message


@pytest.mark.parametrize(
    "model",
    [
        "animefull-final-pruned.ckpt",
        "C:\\models\\nai.safetensors",
        "/m/AOM3A1B_orangemixs.safetensors",
        "/m/AbyssOrangeMix2.safetensors",
        "Counterfeit-V3.0.safetensors",
        "Illustrious-XL-v0.1.safetensors",
        "NoobAI-XL-Vpred-v1.0.safetensors",
        "ponyDiffusionV6XL.safetensors",
        "hakurei/waifu-diffusion-v1-4",
    ],
)
def test_names_of_anime_models(model: str) -> None:
    assert is_anime(model)


@pytest.mark.parametrize(
    "model",
    [
        "v1-5-pruned-emaonly.safetensors",
        "realisticVision.safetensors",
        "",
        "/anime/dreamshaper_8.safetensors",
        "snail.ckpt",
    ],
)
def test_names_of_other_models(model: str) -> None:
    assert not is_anime(model)


def test_advice_reads_as_one_line() -> None:
    assert str(Advice("x", "network_dim", "rank 9.", "It is odd.")) == "network_dim: rank 9. It is odd."


@pytest.mark.parametrize(
    ("side", "resolution", "speaks"),
    [
        (512, "512,512", False),
        (512, "768,768", False),
        (512, "1024,1024", True),
        (768, "768,768", False),
        (1024, "1024,1024", False),
        (1024, "768,768", False),
        (1024, "512,512", True),
        (64, "512,512", False),
    ],
)
def test_resolution_is_judged_by_what_the_model_was_made_for(side: int, resolution: str, speaks: bool) -> None:
    config = load_config(overrides={"resolution": resolution})
    told = {each.rule: each for each in advise(config, Situation(model_side=side))}
    assert ("resolution" in told) == speaks
    if speaks:
        assert told["resolution"].remedy == {"resolution": f"{side},{side}"}


@pytest.mark.parametrize(("family", "spoken"), [("", True), ("sd15", True), ("sd2", False), ("sdxl", False)])
def test_clip_skip_is_no_matter_where_a_family_has_a_layer_of_its_own(family: str, spoken: bool) -> None:
    values: dict[str, object] = {"pretrained_model_name_or_path": "ponyDiffusionV6XL.safetensors"}
    assert ("clip-skip" in found(values, Situation(model_family=family))) is spoken


# --- what is left of the demo ---------------------------------------------------------------------------------------

REAL = Situation(images=12, samples=144, reg_images=100, reg_samples=100, model_side=1024, model_family="sdxl")
LEFT = {"demo-folders", "demo-prompts", "sample-size", "resolution", "learning-rate"}


def demo_with(**changed: object) -> dict[str, object]:
    return {**demo_settings(), "pretrained_model_name_or_path": "sdxl.safetensors", **changed}


def test_the_demos_leftovers_on_a_real_model_are_all_named_and_serious() -> None:
    told = found(demo_with())
    assert not LEFT & set(told) - {"learning-rate", "resolution"}, "no model is known yet"
    told = found(demo_with(), REAL)
    assert set(told) >= LEFT
    assert all(told[rule].serious for rule in ("demo-folders", "demo-prompts", "resolution"))
    keys = {each.key for each in advise(load_config(None, demo_with()), REAL) if each.rule == "demo-folders"}
    assert keys == {"train_data_dir", "reg_data_dir"}


def test_the_demo_itself_is_left_alone() -> None:
    toy = Situation(images=12, samples=144, reg_images=48, reg_samples=48, model_side=64, model_family="sd15")
    assert not LEFT & set(found(dict(demo_settings()), toy))


@pytest.mark.parametrize(
    ("changed", "silent"),
    [
        ({"train_data_dir": "pictures", "reg_data_dir": "demonstrations"}, "demo-folders"),
        ({"sample_prompts": "a sks dog --w 1024 --h 768"}, "demo-prompts"),
        ({"sample_prompts": "a sks dog --w 512 --h 1024"}, "sample-size"),
        ({"sample_prompts": ""}, "sample-size"),
    ],
)
def test_what_is_ones_own_is_no_leftover(changed: dict[str, object], silent: str) -> None:
    assert silent not in found(demo_with(**changed), REAL)


def test_samples_far_below_the_models_size_are_named() -> None:
    prompts: dict[str, object] = {"sample_prompts": "a sks dog --w 256 --h 256"}
    assert "side of 256 pixels" in found(prompts, REAL)["sample-size"].message
    assert "sample-size" not in found(prompts, Situation(model_side=512))
