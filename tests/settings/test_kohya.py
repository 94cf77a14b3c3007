"""Recipes of sd-scripts mean here what they mean there, and go back the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import toml

from trainer.config import (
    TrainingConfig,
    config_from_layers,
    known_settings,
    load_config,
    load_layers,
    to_flat,
    to_kohya,
)
from trainer.ground.errors import ConfigError
from trainer.settings.processes import PROCESS_THERE
from trainer.settings.sd_scripts import ARGUMENTS, NETWORK_ARGUMENTS, defaults, has_default
from trainer.settings.section import Follows

ARGUMENTS_THERE = json.loads((Path(__file__).parents[1] / "data" / "sd_scripts_arguments.json").read_text())
"""Every argument of sd-scripts' LoRA trainer with its default."""

ARGUMENTS_THERE |= {"cache_text_encoder_outputs": False, "cache_text_encoder_outputs_to_disk": False}  # SDXL's trainer

STANDS_FOR = {
    "datasets": (),
    "clip_skip": 1,
    "max_token_length": 75,
    "max_timestep": 1000,
    "min_timestep": 0,
    "network_dim": 4,
    "optimizer_args": (),
    "optimizer_type": "AdamW",
    "output_name": "last",
    "save_precision": "float",
}
"""What None, or nothing, stands for in its code."""


def written(folder: Path, **values: object) -> Path:
    """Write a flat TOML file and return its path."""
    path = folder / "recipe.toml"
    path.write_text(toml.dumps(values), encoding="utf-8")
    return path


def imported(folder: Path, **values: object) -> dict[str, object]:
    """Return all settings that a flat file with network_module leads to."""
    return to_flat(load_config(written(folder, network_module="networks.lora", **values)))


def arguments_of_settings() -> set[str]:
    """Return the arguments of sd-scripts that settings declare, by any of their names."""
    found: set[str] = set()
    for setting in known_settings().values():
        if setting.sd_scripts is not None and setting.belongs_to(PROCESS_THERE):
            there = setting.sd_scripts
            names = set() if there.inside else {*there.once}
            found |= {setting.argument, there.inside, *names, *there.switches} - {""}
    return found


def test_every_argument_of_sd_scripts_is_known_once() -> None:
    ours = arguments_of_settings()
    assert set(ARGUMENTS_THERE) - ours - set(ARGUMENTS) == set()
    assert not (ours | set(known_settings())) & set(ARGUMENTS)
    assert not set(ARGUMENTS) & set(NETWORK_ARGUMENTS)
    assert not set(known_settings()) & set(NETWORK_ARGUMENTS)


def test_what_settings_say_of_sd_scripts_is_what_its_parser_says() -> None:
    assert arguments_of_settings() <= set(ARGUMENTS_THERE)
    for setting in known_settings().values():
        if setting.argument not in ("", "network_module") and setting.belongs_to(PROCESS_THERE):
            assert setting.sd_scripts is not None
            default, meant = ARGUMENTS_THERE[setting.argument], setting.sd_scripts.default
            if isinstance(meant, Follows):
                assert default is None
            elif has_default(setting):
                assert meant == STANDS_FOR.get(setting.key, meant if default is None and meant in ("", ()) else default)
            else:
                assert default is None, setting.key


def test_settings_of_rectified_flow_do_nothing_in_a_recipe_for_another_kind_of_model(tmp_path: Path) -> None:
    path = written(tmp_path, network_module="networks.lora", discrete_flow_shift=1.5)
    assembled = load_layers(path)
    assert assembled.notices == ("Not used by this program, and not needed: discrete_flow_shift.",)
    assert assembled.config is not None
    assert assembled.config.flow.discrete_flow_shift == 3.0
    assert "discrete_flow_shift" not in to_kohya(TrainingConfig())


def test_what_is_off_there_does_nothing() -> None:
    for name, default in ARGUMENTS_THERE.items():
        if name in ARGUMENTS:
            assert ARGUMENTS[name].does_nothing(default), name


def test_keys_left_out_take_sd_scripts_defaults(tmp_path: Path) -> None:
    found = imported(tmp_path)
    for key, default in defaults(known_settings(), PROCESS_THERE).items():
        if not isinstance(default, Follows):
            assert found[key] == (list(default) if isinstance(default, tuple) else default), key
    assert found["text_encoder_lr"] == 2e-6
    assert (found["conv_dim"], found["conv_alpha"], found["network_type"]) == (None, None, "lora")
    assert (found["max_data_loader_n_workers"], found["seed"]) == (0, 42), "these change nothing, or have no default"


def test_stable_diffusion_2_is_a_family_here(tmp_path: Path) -> None:
    assert imported(tmp_path, v2=True)["model_family"] == "sd2"
    assert to_kohya(load_config(None, {"model_family": "sd2"}))["v2"] is True
    assert "v2" not in to_kohya(TrainingConfig())


@pytest.mark.parametrize("key", ["fp8_base", "fp8_base_unet"])
def test_a_base_in_fp8_is_one_here_too(tmp_path: Path, key: str) -> None:
    assert imported(tmp_path, **{key: True})["quantize_base"] == "fp8"
    assert imported(tmp_path, **{key: False})["quantize_base"] == "none"
    assert to_kohya(load_config(None, {"quantize_base": "fp8"}))["fp8_base_unet"] is True
    assert "fp8_base_unet" not in to_kohya(TrainingConfig())


def test_a_file_without_network_module_keeps_our_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, network_dim=8))
    assert (config.network.network_dim, config.optimizer.lr_scheduler) == (8, "cosine")


def test_sd_scripts_defaults_replace_a_preset_below(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text("min_snr_gamma = 5.0\nconv_dim = 8\nseed = 7\n")
    config = load_config(written(tmp_path, network_module="networks.lora"), preset=preset)
    assert (config.loss.min_snr_gamma, config.network.conv_dim, config.training.seed) == (None, None, 7)


def test_network_args_are_unpacked(tmp_path: Path) -> None:
    found = imported(tmp_path, network_dim=16, network_args=["conv_dim=8", "conv_alpha=4.0", "rank_dropout=0"])
    assert (found["network_dim"], found["conv_dim"], found["conv_alpha"]) == (16, 8, 4.0)


def test_alpha_zero_means_the_rank_there(tmp_path: Path) -> None:
    found = imported(tmp_path, network_dim=16, network_alpha=0, network_args=["conv_dim=8", "conv_alpha=0"])
    assert (found["network_alpha"], found["conv_alpha"]) == (16.0, 8.0)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "AdamW"),
        ({"optimizer_type": ""}, "AdamW"),
        ({"optimizer_type": "adamw8bit"}, "AdamW8bit"),
        ({"optimizer_type": "PRODIGY", "learning_rate": 1.0}, "Prodigy"),
        ({"use_8bit_adam": True}, "AdamW8bit"),
        ({"use_lion_optimizer": True}, "Lion"),
    ],
)
def test_optimizers_are_recognised_as_there(given: dict[str, object], name: str, tmp_path: Path) -> None:
    assert imported(tmp_path, **given)["optimizer_type"] == name


def test_adafactor_finds_its_rate_itself_unless_told_otherwise(tmp_path: Path) -> None:
    found = imported(tmp_path, optimizer_type="AdaFactor", lr_scheduler="adafactor")
    assert found["optimizer_args"] == ["relative_step=True", "scale_parameter=True"]
    assert found["lr_scheduler"] == "adafactor"
    found = imported(tmp_path, optimizer_type="AdaFactor", optimizer_args=["relative_step=False"])
    assert found["optimizer_args"] == ["relative_step=False", "scale_parameter=True"]


def test_text_encoder_follows_the_learning_rate(tmp_path: Path) -> None:
    assert imported(tmp_path, learning_rate=3e-4)["text_encoder_lr"] == 3e-4
    assert imported(tmp_path, learning_rate=3e-4, text_encoder_lr=0)["text_encoder_lr"] == 0
    assert imported(tmp_path, text_encoder_lr=[1e-5, 1e-5])["text_encoder_lr"] == [1e-5, 1e-5]


def test_epochs_beat_the_default_number_of_steps_without_a_notice(tmp_path: Path) -> None:
    assembled = load_layers(written(tmp_path, network_module="networks.lora", max_train_epochs=4))
    assert assembled.config is not None
    training = assembled.config.training
    assert (training.max_train_epochs, training.max_train_steps, assembled.notices) == (4, None, ())
    found = imported(tmp_path)
    assert (found["max_train_epochs"], found["max_train_steps"]) == (None, 1600)


def test_loosely_written_numbers_are_read_as_sd_scripts_reads_them(tmp_path: Path) -> None:
    found = imported(
        tmp_path, seed=42.0, learning_rate="1e-4", max_token_length="150", lr_warmup_steps="10%", lr_scheduler="linear"
    )
    assert found["seed"] == 42
    assert found["learning_rate"] == 1e-4
    assert found["max_token_length"] == 150
    assert found["lr_warmup_steps"] == 0.1


def test_a_log_folder_means_tensorboard_and_wandb_is_left_out(tmp_path: Path) -> None:
    assert imported(tmp_path, logging_dir="logs")["log_with"] == "tensorboard"
    assert imported(tmp_path, log_with="all")["log_with"] == "tensorboard"
    assert imported(tmp_path, log_with="wandb", logging_dir="logs")["log_with"] == ""


def test_harmless_and_neutral_keys_are_named_and_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, network_module="networks.lora", xformers=True, epoch=3, enable_ema=False, v2=False)
    assembled = load_layers(path)
    assert assembled.problems == ()
    (notice,) = assembled.notices
    assert all(key in notice for key in ("xformers", "epoch", "enable_ema", "v2"))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"enable_ema": True}, "enable_ema"),
        ({"face_crop_aug_range": "2,4"}, "face_crop_aug_range"),
        ({"in_json": "d.json"}, "in_json"),
        ({"network_args": ["train_norm=True"]}, "network_args"),
        ({"network_module": "networks.oft"}, "network_module"),
    ],
)
def test_keys_that_would_change_the_result_are_problems_unless_told_to_go_on(
    given: dict[str, object], key: str, tmp_path: Path
) -> None:
    path = written(tmp_path, **{"network_module": "networks.lora", **given})
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert [problem.key for problem in refused.value.problems] == [key]
    assembled = load_layers(path, ignore_unsupported=True)
    assert assembled.problems == ()
    assert any(key in notice for notice in assembled.notices)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shufle_caption": True}, "shufle_caption (did you mean shuffle_caption?)"),
        ({"network_train_text_encoder": False}, "network_train_text_encoder (did you mean"),
        ({"bucket_resolution_steps": 64}, "bucket_resolution_steps"),
        ({"my_own_note": "x"}, "my_own_note"),
        ({"network_args": ["no_such_argument=1"]}, "network_args no_such_argument"),
    ],
)
def test_what_is_not_known_is_ignored_in_a_recipe_and_never_called_needless(
    given: dict[str, object], said: str, tmp_path: Path
) -> None:
    assembled = load_layers(written(tmp_path, network_module="networks.lora", **given))
    assert assembled.problems == ()
    (notice,) = assembled.notices
    assert notice.startswith("Not known here, and ignored: ")
    assert said in notice


@pytest.mark.parametrize(
    "given",
    [
        {"num_repeats": 10},
        {"class_tokens": "sks dog"},
        {"train_norm": True},
        {"train_inpainting": True},
        {"fp16_master_weights_and_gradients": True},
        {"network_args": ["train_norm=True"]},
    ],
)
@pytest.mark.parametrize("module", [{}, {"network_module": "networks.lora"}])
def test_what_changes_the_result_is_never_called_needless(
    given: dict[str, object], module: dict[str, object], tmp_path: Path
) -> None:
    assembled = load_layers(written(tmp_path, **module, **given))
    assert [problem.key for problem in assembled.problems] == list(given)
    assert assembled.notices == ()
    assert "would change the result" in assembled.problems[0].message
    assert "conv_dim" not in assembled.problems[0].message or "block" in str(given)


@pytest.mark.parametrize(
    "given", [{"num_repeats": 1}, {"loraplus_lr_ratio": 1.0}, {"network_args": ["loraplus_lr_ratio=1.0"]}]
)
def test_a_neutral_value_changes_nothing(given: dict[str, object], tmp_path: Path) -> None:
    assert load_layers(written(tmp_path, **given)).problems == ()


def test_a_recipe_means_what_it_meant(tmp_path: Path) -> None:
    """sd-scripts' trainer of LoRAs never stops the text encoder, and LyCORIS has no dropout of single numbers."""
    lycoris = {"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "dropout=0.1", "rank_dropout=0.2"]}
    assembled = load_layers(written(tmp_path, **lycoris, network_dropout=0.1, stop_text_encoder_training=500))
    assert assembled.config is not None
    assert assembled.config.rates.stop_text_encoder_training == 0
    assert (assembled.config.limits.network_dropout, assembled.config.limits.rank_dropout) == (None, 0.2)
    said = " ".join(assembled.notices)
    assert all(word in said for word in ("stop_text_encoder_training", "network_dropout", "network_args dropout"))


def test_a_slip_of_the_pen_in_a_file_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean shuffle_caption"):
        load_config(written(tmp_path, shufle_caption=True), ignore_unsupported=True)


def test_network_args_of_a_file_of_ours_are_unpacked(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, network_args=["conv_dim=8", "conv_alpha=4"]))
    assert (config.network.conv_dim, config.network.conv_alpha) == (8, 4.0)


def test_a_table_in_place_of_a_value_is_that_settings_problem(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("network_dim = {value = 8}\n[optimizer_args]\nlearning_rate = 1e-3\n")
    assembled = load_layers(path)
    assert [problem.key for problem in assembled.problems] == ["network_dim"]
    assert "must be a whole number" in assembled.problems[0].message


def test_a_file_of_ours_with_an_argument_of_sd_scripts_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='set optimizer_type to "AdamW8bit"'):
        load_config(written(tmp_path, use_8bit_adam=True))


RECIPES: list[dict[str, object]] = [
    {},
    {"network_dim": 8, "network_alpha": 4.0, "conv_dim": 4, "conv_alpha": 2.0, "max_train_steps": 700},
    {"optimizer_type": "Prodigy", "learning_rate": 1.0, "optimizer_args": ["weight_decay=0.1"]},
    {"optimizer_type": "Adafactor", "optimizer_args": ["relative_step=False", "scale_parameter=True"]},
    {"unet_lr": 0, "text_encoder_lr": [1e-5, 2e-5], "prior_loss_weight": 0.0, "min_snr_gamma": 5.0},
    {"max_token_length": 225, "mixed_precision": "bf16", "sample_prompts": "prompts.txt", "sample_every_n_epochs": 2},
    {"save_every_n_epochs": 0, "save_every_n_steps": 100, "keep_tokens_separator": "|||", "shuffle_caption": True},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_exported_comes_back_the_same(recipe: dict[str, object], tmp_path: Path) -> None:
    config = load_config(None, {"mixed_precision": "no", **recipe})
    back = load_config(written(tmp_path, **to_kohya(config)))
    assert to_flat(back) == to_flat(config)


def test_exported_adafactor_keeps_our_rate() -> None:
    exported = to_kohya(load_config(None, {"optimizer_type": "Adafactor", "lr_scheduler": "constant"}))
    assert exported["optimizer_args"] == ["relative_step=False", "scale_parameter=False"]
    assert exported["lr_warmup_steps"] == 0


def test_export_has_no_key_that_sd_scripts_would_not_know() -> None:
    exported = to_kohya(TrainingConfig())
    assert set(exported) <= set(ARGUMENTS_THERE)
    assert exported["network_module"] == "networks.lora"
    assert exported["mixed_precision"] == "fp16"
    assert not any(value is None or value == "" for value in exported.values())


def test_prompts_that_are_text_go_into_a_file_named_by_the_caller() -> None:
    config = load_config(None, {"sample_prompts": "a sks dog --w 512"})
    assert "sample_prompts" not in to_kohya(config)
    assert to_kohya(config, "out/prompts.txt")["sample_prompts"] == "out/prompts.txt"


def flat_of(folder: Path, **values: object) -> dict[str, object]:
    return to_flat(load_config(written(folder, **values)))


LOKR = {
    "network_module": "lycoris.kohya",
    "network_dim": 100000,
    "network_alpha": 100000,
    "network_args": ["algo=lokr", "preset=attn-mlp", "factor=8", "decompose_both=False", "dora_wd=False", "conv_dim=4"],
}


def test_a_recipe_of_lycoris_means_what_it_meant(tmp_path: Path) -> None:
    found = flat_of(tmp_path, **LOKR)
    wanted = {
        "network_type": "lokr", "lycoris_preset": "attn-mlp", "factor": 8, "decompose_both": False, "dora_wd": False,
        "full_matrix": True, "network_dim": 4096, "network_alpha": 4096, "conv_dim": 4, "conv_alpha": 4096,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted


def test_what_a_recipe_of_lycoris_leaves_out_is_as_lycoris_has_it(tmp_path: Path) -> None:
    found = flat_of(
        tmp_path, network_module="lycoris.kohya", network_dim=8, network_alpha=2, network_args=["dora_wd=True"]
    )
    wanted = {
        "network_type": "locon", "lycoris_preset": "full", "conv_dim": 8, "conv_alpha": 2, "dora_wd": True,
        "wd_on_output": True,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    off = flat_of(tmp_path, network_module="lycoris.kohya", network_args=["algo=loha", "conv_dim=0", "use_cp=True"])
    assert (off["network_type"], off["conv_dim"], off["use_tucker"]) == ("loha", None, True)
    own = flat_of(tmp_path, network_module="lycoris.kohya", network_args=["preset=my.toml"])
    assert (own["lycoris_preset_file"], own["lycoris_preset"]) == ("my.toml", "full")


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"network_module": "lycoris.kohya", "network_args": ["algo=boft"]}, "network_args", "boft.* is not trained"),
        ({"network_module": "networks.lora", "network_args": ["dora_wd=True"]}, "dora_wd", "set network_type to locon"),
        ({"network_module": "lycoris.kohya", "network_args": ["preset=mine"]}, "lycoris_preset", "one of"),
        ({"network_type": "loha", "factor": 4}, "factor", "set network_type to lokr"),
    ],
)
def test_what_a_kind_does_not_have_is_refused_by_name(
    given: dict[str, object], key: str, words: str, tmp_path: Path
) -> None:
    problems = load_layers(written(tmp_path, **given)).problems
    assert [problem.key for problem in problems] == [key]
    assert re.search(words, problems[0].message)


def test_settings_of_lycoris_survive_the_way_to_a_recipe_and_back(tmp_path: Path) -> None:
    ours = {"network_type": "lokr", "network_dim": 8, "factor": 4, "dora_wd": True, "lycoris_preset": "attn-only"}
    config = config_from_layers([ours])
    exported = to_kohya(config)
    assert exported["network_module"] == "lycoris.kohya"
    assert {"algo=lokr", "preset=attn-only", "factor=4", "dora_wd=True", "wd_on_output=False", "conv_dim=0"} == set(
        exported["network_args"]
    )
    again = load_config(written(tmp_path, **exported))
    assert (again.network, again.lycoris) == (config.network, config.lycoris)


@pytest.mark.parametrize(
    ("arguments", "tucker"),
    [
        (["use_tucker=True", "use_cp=False"], True),
        (["use_cp=False", "use_tucker=True"], True),
        (["use_tucker=False", "use_cp=True"], True),
        (["use_conv_cp=True"], True),
        (["disable_conv_cp=False"], True),
        (["disable_conv_cp=True"], False),
        (["disable_conv_cp=True", "use_tucker=True"], True),
        (["use_tucker=False", "use_cp=False"], False),
    ],
)
def test_tuckers_form_holds_where_one_of_its_names_says_so(arguments: list[str], tucker: bool, tmp_path: Path) -> None:
    for algo in ("lokr", "loha"):
        given = {"network_module": "lycoris.kohya", "network_args": [f"algo={algo}", *arguments]}
        assert flat_of(tmp_path, **given)["use_tucker"] is tucker
