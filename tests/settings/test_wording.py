"""What a message says with keys at the terminal it says with labels in the page."""

from __future__ import annotations

import re

import pytest

from tests.corpus.settings import WRONG_VALUES
from trainer.config import in_labels, known_settings, load_layers, parse_set
from trainer.settings.problems import unknown


@pytest.mark.parametrize(
    ("text", "about", "said"),
    [
        ("set network_weights to its path.", "", "set “Go on from a LoRA” to its path."),
        ("round it, or set enable_bucket to true.", "", "round it, or turn on “Buckets”."),
        (
            "Set no_half_vae = true, or choose another vae.",
            "",
            "Turn on “VAE in full precision”, or choose another vae.",
        ),
        ("set this to false.", "", "turn this off."),
        ("both are true; set both to false.", "", "both are on; turn both off."),
        ("true is only possible with noise_offset.", "", "this is only possible with “Noise offset”."),
        ("leave this out.", "noise_offset", "leave this empty."),
        ("leave this out.", "dim_from_weights", "turn this off."),
        ("leave unet_lr out, or set it to 0.", "text_encoder_lr", "leave “UNet learning rate” empty, or set it to 0."),
        ("Lower save_every_n_steps.", "", "Lower “Save every (steps)”."),
        ('set quantize_base to "fp8".', "", 'set “Smaller base model” to "fp8".'),
        ('"unet_lr is true" cannot be used', "", '"unet_lr is true" cannot be used'),
        ("'/home/me/unet_lr' is gone; the picture's folder, not unet_lr", "", None),
        ("/data/unet_lr/a.png and ./unet_lr and unet_lr.png and unet_lr=5 and my_unet_lr", "", "same"),
        ("no such thing as not_a_setting or seed", "", "same"),
    ],
)
def test_labels_stand_for_keys(text: str, about: str, said: str | None) -> None:
    expected = text if said == "same" else said
    if said is None:
        expected = "'/home/me/unet_lr' is gone; the picture's folder, not “UNet learning rate”"
    assert in_labels(text, about) == expected


UNFIT: list[dict[str, object]] = [
    {"max_train_epochs": 0},
    {"train_data_dir": "p", "reg_data_dir": "./p/"},
    {"resolution": "500,512", "enable_bucket": False},
    {"resolution": 64, "bucket_reso_steps": 128},
    {"resolution": 128, "bucket_no_upscale": False},
    {"resolution": "1024,1280", "bucket_no_upscale": False},
    {"network_train_unet_only": True, "network_train_text_encoder_only": True},
    {"learning_rate": 0, "text_encoder_lr": 0},
    {"optimizer_type": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 0.5},
    {"optimizer_args": ["weigth_decay=0.1"]},
    {"adaptive_noise_scale": 0.01},
    {"min_timestep": 600, "max_timestep": 500},
    {"full_bf16": True, "full_fp16": True},
    {"full_fp16": True},
    {"full_bf16": True, "mixed_precision": "fp16"},
    {"scale_v_pred_loss_like_noise_pred": True},
    {"v_parameterization": True, "v_pred_like_loss": 1.0},
    {"dim_from_weights": True},
    {"cache_text_encoder_outputs": True},
    {"cache_text_encoder_outputs": True, "network_train_unet_only": True, "token_warmup_step": 10},
    *({key: parse_set(f"{key}={value}")[1]} for key, values in WRONG_VALUES.items() for value in values),
]


@pytest.mark.parametrize("values", UNFIT)
def test_no_problem_speaks_of_keys_in_the_page(values: dict[str, object]) -> None:
    for problem in load_layers(None, values).problems:
        said = re.sub(r'"[^"]*"|\'[^\']*\'', "", in_labels(problem.message, problem.key))
        keys = [key for key in known_settings() if "_" in key]
        assert not re.search(rf"(?<![\w=])({'|'.join(keys)})\b", said), said
        assert not re.search(r"\b(true|false)\b", said), said


def test_a_suggestion_is_made_in_the_word_of_the_field() -> None:
    problem = unknown("epochs", known_settings())
    assert problem.message == "there is no such setting; did you mean max_train_epochs?"
    assert in_labels(problem.message) == "there is no such setting; did you mean “Epochs”?"
