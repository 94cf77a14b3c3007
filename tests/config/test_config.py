"""The configuration: defaults, layers, rules, files, the command line's way of setting."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import toml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.config import (
    TrainingConfig,
    config_from_layers,
    known_settings,
    load_config,
    load_layers,
    parse_set,
    problems_of,
    rates,
    read_layer,
    resolution_size,
    save_config,
    to_flat,
)
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError
from trainer.process import PROCESSES
from trainer.settings.section import PROCESS
from trainer.settings.walk import sections_of
from trainer.targets import DENOISER, TEXT, Part

UNHURRIED = settings(deadline=None)
"""A busy machine is no failure."""


def refused(**values: object) -> dict[str, str]:
    """Return {key: message} of the problems that these values make."""
    with pytest.raises(ConfigError) as error:
        load_config(None, values)
    return {problem.key: problem.message for problem in error.value.problems}


# --- declarations ---------------------------------------------------------------------------------------------------


def test_every_setting_has_a_label_a_group_and_a_help_line() -> None:
    for setting in known_settings().values():
        assert setting.help.endswith("."), setting.key
        assert 20 <= len(setting.help) <= 130, f"{setting.key}: {len(setting.help)} characters of help"
        assert setting.show.label, setting.key
        assert setting.show.group, setting.key


def test_visibility_is_told_of_settings_that_exist() -> None:
    known = known_settings()
    for setting in known.values():
        for key, wanted in setting.show.when.items():
            if key == PROCESS:
                assert set(wanted) <= set(PROCESSES), setting.key
                continue
            assert key in known, f"{setting.key}: {key}"
            if isinstance(wanted, tuple) and known[key].choices:
                assert set(wanted) <= set(known[key].choices), setting.key


def test_a_setting_may_be_none_only_if_that_is_its_default_or_zero_says_it() -> None:
    for setting in known_settings().values():
        if setting.optional:
            assert setting.default is None or setting.zero_is_off, setting.key


def test_other_names_of_settings_belong_to_one_setting_each() -> None:
    names = [name for setting in known_settings().values() for name in setting.show.also]
    assert len(set(names)) == len(names)
    assert not set(names) & set(known_settings())


@pytest.mark.parametrize(
    ("key", "meant"),
    [("epoch", "max_train_epochs"), ("lr", "learning_rate"), ("optimizer", "optimizer_type"), ("Rank", "network_dim")],
)
def test_a_setting_by_another_name_is_refused_with_its_own(key: str, meant: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"{key} = 5\n")
    with pytest.raises(ConfigError, match=f"{key}: there is no such setting; did you mean {meant}"):
        load_config(path)


def test_sections_are_small() -> None:
    for name, section in sections_of(TrainingConfig).items():
        assert len(section.model_fields) <= 15, name


def test_the_basic_tab_has_the_places_of_a_first_lora() -> None:
    basic = sorted((s for s in known_settings().values() if s.show.tab == "basic"), key=lambda s: s.show.place)
    assert [setting.key for setting in basic] == [
        "pretrained_model_name_or_path",
        "train_data_dir",
        "reg_data_dir",
        "output_name",
        "output_dir",
        "optimizer_type",
        "learning_rate",
        "network_dim",
        "network_alpha",
        "resolution",
        "max_train_epochs",
        "train_batch_size",
        "sample_prompts",
    ]


def test_every_default_is_a_value_that_its_own_setting_allows() -> None:
    defaults = {key: value for key, value in to_flat(TrainingConfig()).items() if value is not None}
    assert config_from_layers([defaults]) == TrainingConfig() == load_config()


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_value", "size"),
    [
        ("512,768", (512, 768)),
        (" 512 , 768 ", (512, 768)),
        ("512x768", (512, 768)),
        ("640", (640, 640)),
        (640, (640, 640)),
        ([512, 650], (512, 650)),
        ([768], (768, 768)),
        (64, (64, 64)),
    ],
)
def test_resolution_in_every_spelling(given_value: object, size: tuple[int, int]) -> None:
    assert resolution_size(load_config(None, {"resolution": given_value})) == size


@pytest.mark.parametrize(
    "value", ["banana", "", "512,", "1,2,3", 0, -512, 63, 5000, True, 512.0, [512, True], [], "٥١٢"]
)
def test_resolution_that_is_none(value: object) -> None:
    assert "each side from 64 to 4096" in refused(resolution=value)["resolution"]


@pytest.mark.parametrize(
    ("given_value", "kept"), [(0, 0), (100, 100), (100.0, 100), (0.05, 0.05), (0.0, 0), (1, 1), (1.0, 1), ("10%", 0.1)]
)
def test_warmup_is_steps_or_a_share(given_value: object, kept: object) -> None:
    warmup = load_config(None, {"lr_warmup_steps": given_value}).optimizer.lr_warmup_steps
    assert warmup == kept
    assert type(warmup) is type(kept)


@pytest.mark.parametrize("value", [1.5, -1, -0.1, "five", "150%", True, float("nan"), float("inf")])
def test_warmup_that_is_neither(value: object) -> None:
    assert "share of all steps" in refused(lr_warmup_steps=value)["lr_warmup_steps"]


@pytest.mark.parametrize("value", [5e-5, 0, 0.0, [1e-5], [1e-5, 2e-5], [1e-5, 2e-5, 3e-5]])
def test_text_encoder_rate_is_a_number_or_one_for_each(value: object) -> None:
    assert to_flat(load_config(None, {"text_encoder_lr": value}))["text_encoder_lr"] == value


@pytest.mark.parametrize("value", [[], "5e-5", -1, [1e-5, -1.0], [True], True, None, [[1.0]], float("nan")])
def test_text_encoder_rate_that_is_none(value: object) -> None:
    assert "text_encoder_lr" in refused(text_encoder_lr=value)


@pytest.mark.parametrize(
    "name",
    ["a/b", "a\\b", "..", ".", "", " a", "a.", "CON", "nul.txt", "com1", "a:b", "a*", "a\nb", "x" * 200, "é" * 100],
)
def test_output_name_must_be_a_plain_file_name(name: str) -> None:
    assert "output_name" in refused(output_name=name)


@pytest.mark.parametrize("name", ["lora", "my lora-v1.5", "コン", "console", "a_000004"])
def test_output_name_that_is_one(name: str) -> None:
    assert load_config(None, {"output_name": name}).saving.output_name == name


def test_output_name_with_its_ending_says_to_leave_it_out() -> None:
    assert "leave out .safetensors" in refused(output_name="lora.safetensors")["output_name"]


@pytest.mark.parametrize("key", [key for key, setting in known_settings().items() if setting.kind == "number"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_everywhere(key: str, value: float) -> None:
    assert key in refused(**{key: value})


@pytest.mark.parametrize("key", [key for key, setting in known_settings().items() if setting.zero_is_off])
def test_zero_for_off_is_written_and_comes_back(key: str, tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text("min_snr_gamma = 5.0\nnoise_offset = 0.1\nsave_every_n_epochs = 2\n")
    off = {"max_train_epochs": 3} if key == "max_train_steps" else {"max_train_steps": 9} if "epochs" in key else {}
    config = load_config(None, {**off, key: 0})
    assert to_flat(config)[key] is None
    save_config(config, tmp_path / "run.toml")
    assert load_config(tmp_path / "run.toml", preset=preset) == config


def test_zero_is_a_value_elsewhere() -> None:
    config = load_config(None, {"max_grad_norm": 0.0, "prior_loss_weight": 0.0, "unet_lr": 0, "seed": 0})
    assert (config.optimizer.max_grad_norm, config.dataset.prior_loss_weight) == (0.0, 0.0)
    assert (config.optimizer.unet_lr, config.training.seed) == (0.0, 0)


# --- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"unet": 1e-4, "text_encoder": 5e-5}),
        ({"learning_rate": 3e-4}, {"unet": 3e-4, "text_encoder": 5e-5}),
        ({"unet_lr": 2e-4}, {"unet": 2e-4, "text_encoder": 5e-5}),
        ({"unet_lr": 0}, {"text_encoder": 5e-5}),
        ({"text_encoder_lr": 0}, {"unet": 1e-4}),
        ({"text_encoder_lr": [1e-5, 2e-5]}, {"unet": 1e-4, "text_encoder": 1e-5}),
        ({"learning_rate": 0}, {"text_encoder": 5e-5}),
        ({"network_train_unet_only": True}, {"unet": 1e-4}),
        ({"network_train_text_encoder_only": True}, {"text_encoder": 5e-5}),
        ({"optimizer_type": "Prodigy", "learning_rate": 1.0}, {"unet": 1.0, "text_encoder": 1.0}),
        ({"optimizer_type": "DAdaptAdam", "learning_rate": 1.0, "text_encoder_lr": 0}, {"unet": 1.0}),
        ({"optimizer_type": "Prodigy", "unet_lr": 1.0, "text_encoder_lr": 1.0}, {"unet": 1.0, "text_encoder": 1.0}),
        ({"optimizer_type": "Prodigy", "learning_rate": 1.0, "unet_lr": 0}, {"text_encoder": 1.0}),
    ],
)
def test_rates(values: dict[str, object], expected: dict[str, float]) -> None:
    assert rates(load_config(None, values), FAMILIES["sd15"].parts) == expected


def test_as_many_rates_as_the_model_has_text_encoders() -> None:
    parts = [Part("transformer", DENOISER, "Transformer"), *(Part(name, TEXT, name) for name in ("clip", "t5", "qwen"))]
    for rate, expected in (
        ([1e-5, 2e-5, 3e-5], {"clip": 1e-5, "t5": 2e-5, "qwen": 3e-5}),
        ([1e-5, 0, 3e-5, 4e-5], {"clip": 1e-5, "qwen": 3e-5}),
        ([1e-5, 2e-5], {"clip": 1e-5, "t5": 2e-5, "qwen": 2e-5}),
        (1e-5, {"clip": 1e-5, "t5": 1e-5, "qwen": 1e-5}),
        ([0, 0, 0], {}),
    ):
        config = load_config(None, {"text_encoder_lr": rate})
        assert rates(config, parts) == {"transformer": 1e-4, **expected}


def test_one_rate_optimizers_refuse_another_rate() -> None:
    for name in ("DAdaptAdam", "Prodigy"):
        found = refused(optimizer_type=name, learning_rate=1.0, text_encoder_lr=0.5)
        assert name in found["text_encoder_lr"]
        assert "unet_lr" in refused(optimizer_type=name, learning_rate=1.0, unet_lr=0.5)


@pytest.mark.parametrize(
    "given",
    [
        {"unet_lr": 8e-4, "text_encoder_lr": 2e-3},
        {"text_encoder_lr": [5e-5, 0]},
        {"unet_lr": 1e-4, "text_encoder_lr": [5e-5, 1e-5]},
        {"learning_rate": 1e-3, "unet_lr": 0, "text_encoder_lr": [5e-5, 1e-5]},
    ],
)
def test_several_rates_with_a_one_rate_optimizer_have_a_way_out(given: dict[str, object]) -> None:
    form = {**to_flat(TrainingConfig()), "optimizer_type": "Prodigy", **given}
    trained = rates(load_config(None, given), FAMILIES["sdxl"].parts)
    remedy = problems_of(form)[1][0].remedy
    assert remedy is not None
    config, problems = problems_of({**form, **remedy})
    assert config is not None, problems
    assert rates(config, FAMILIES["sdxl"].parts) == dict.fromkeys(trained, 1.0)


def test_one_rate_follows_in_a_form_that_shows_every_default() -> None:
    form = {**to_flat(TrainingConfig()), "optimizer_type": "Prodigy", "learning_rate": 1.0}
    config, problems = problems_of(form)
    assert problems == ()
    assert config is not None
    assert rates(config, FAMILIES["sd15"].parts) == {"unet": 1.0, "text_encoder": 1.0}


# --- rules that cross settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"max_train_epochs": 0}, "max_train_epochs", "length of training is not set"),
        ({"train_data_dir": "p", "reg_data_dir": "./p/"}, "reg_data_dir", "is train_data_dir too"),
        ({"resolution": "500,512", "enable_bucket": False}, "resolution", "divisible by 8"),
        ({"resolution": 64, "bucket_reso_steps": 128}, "bucket_reso_steps", "no bucket would be left"),
        ({"resolution": 128, "bucket_no_upscale": False}, "min_bucket_reso", "choose 128 or less"),
        ({"resolution": "1024,1280", "bucket_no_upscale": False}, "max_bucket_reso", "choose 1280 or more"),
        (
            {"network_train_unet_only": True, "network_train_text_encoder_only": True},
            "network_train_text_encoder_only",
            "set both to false",
        ),
        ({"learning_rate": 0, "text_encoder_lr": 0}, "learning_rate", "no part is trained"),
        ({"network_train_unet_only": True, "unet_lr": 0}, "learning_rate", "no part is trained"),
        ({"optimizer_args": ["weight_decay"]}, "optimizer_args", "write it as name=value"),
        ({"optimizer_args": ["weigth_decay=0.1"]}, "optimizer_args", "weight_decay"),
        ({"adaptive_noise_scale": 0.01}, "adaptive_noise_scale", "set noise_offset too"),
        ({"min_timestep": 600, "max_timestep": 500}, "min_timestep", "swap them"),
        ({"scale_v_pred_loss_like_noise_pred": True}, "scale_v_pred_loss_like_noise_pred", "v_parameterization"),
        ({"v_parameterization": True, "v_pred_like_loss": 1.0}, "v_pred_like_loss", "models that predict noise"),
        ({"dim_from_weights": True}, "dim_from_weights", "set network_weights"),
    ],
)
def test_settings_that_cannot_go_together(values: dict[str, object], key: str, words: str) -> None:
    found = refused(**values)
    assert list(found) == [key]
    assert words in found[key]


@pytest.mark.parametrize(
    "values",
    [
        {"resolution": 64},
        {"resolution": 64, "bucket_no_upscale": False, "min_bucket_reso": 64, "max_bucket_reso": 64},
        {"resolution": "512,650"},
        {"resolution": 520, "enable_bucket": False},
        {"resolution": 1536},
        {"resolution": 300, "bucket_no_upscale": False, "min_bucket_reso": 310},
        {"min_timestep": 500, "max_timestep": 500},
        {"train_data_dir": "p"},
        {"optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"]},
    ],
)
def test_unusual_settings_that_work(values: dict[str, object]) -> None:
    load_config(None, values)


def test_a_rule_is_silent_where_a_setting_it_reads_is_wrong_itself() -> None:
    assert list(refused(min_timestep=600, max_timestep=-1)) == ["max_timestep"]


def test_every_wrong_value_is_reported_at_once() -> None:
    found = refused(
        network_dim=0,
        seed="x",
        clip_skip=True,
        nothing_like_it=1,
        optimizer_args=["x"],
        min_timestep=900,
        max_timestep=5,
    )
    assert set(found) == {
        "network_dim", "seed", "clip_skip", "nothing_like_it", "optimizer_args", "min_timestep"
    }  # fmt: skip


def test_the_error_lists_key_and_message_of_each_problem() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, {"network_dim": 0, "netwrok_alpha": 4})
    assert str(error.value).splitlines() == [
        "network_dim: 0 cannot be used: it must be a whole number from 1 to 4096 (default 32).",
        "netwrok_alpha: there is no such setting; did you mean network_alpha?",
    ]


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "epochs", "steps"),
    [
        ([], 10, None),
        ([{"max_train_steps": 500}], None, 500),
        ([{"max_train_epochs": 3}], 3, None),
        ([{"max_train_epochs": 3, "max_train_steps": 500}], 3, None),
        ([{"max_train_epochs": 3}, {"max_train_steps": 500}], None, 500),
        ([{"max_train_steps": 500}, {"max_train_epochs": 3}], 3, None),
        ([{"max_train_steps": 500}, {"network_dim": 4}], None, 500),
        ([{"max_train_epochs": 0, "max_train_steps": 500}], None, 500),
        ([{"max_train_epochs": None, "max_train_steps": 500}], None, 500),
        ([{"max_train_steps": 500}, {"max_train_steps": 0, "max_train_epochs": 2}], 2, None),
    ],
)
def test_epochs_and_steps(layers: list[dict[str, object]], epochs: int | None, steps: int | None) -> None:
    training = config_from_layers(layers).training
    assert (training.max_train_epochs, training.max_train_steps) == (epochs, steps)


def test_steps_that_lose_to_epochs_in_one_layer_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("max_train_epochs = 3\nmax_train_steps = 500\n")
    assert load_layers(path).notices == ("max_train_steps 500 is not used, because max_train_epochs is set beside it.",)
    assert load_layers(path, {"max_train_steps": 7}).config is not None


def test_steps_that_lose_to_epochs_are_checked_all_the_same() -> None:
    assert list(refused(max_train_epochs=3, max_train_steps="many")) == ["max_train_steps"]


def test_later_layers_win(tmp_path: Path) -> None:
    preset, run = tmp_path / "preset.toml", tmp_path / "run.toml"
    preset.write_text("[network]\nnetwork_dim = 64\nnetwork_alpha = 8\n[training]\nseed = 1\n")
    run.write_text("network_dim = 16\nseed = 2\n")
    config = load_config(run, {"seed": 3}, preset=preset)
    assert (config.network.network_dim, config.network.network_alpha, config.training.seed) == (16, 8.0, 3)


def test_problems_of_a_form_keep_the_default_length_out_of_the_way() -> None:
    config, problems = problems_of({**to_flat(TrainingConfig()), "max_train_steps": 300})
    assert problems == ()
    assert config is not None
    assert (config.training.max_train_epochs, config.training.max_train_steps) == (None, 300)


def test_problems_of_a_form_does_not_raise() -> None:
    config, problems = problems_of({"network_dim": "", "learning_rate": None})
    assert config is None
    assert [problem.key for problem in problems] == ["network_dim", "learning_rate"]


def test_true_is_no_default_of_one() -> None:
    assert problems_of({"clip_skip": True})[0] is None


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_saved_file_has_every_setting_under_its_help(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    save_config(TrainingConfig(), path, header="Made for a test.\nSecond line.")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Made for a test.\n# Second line.\n\n[model]\n# The model to train on")
    assert "\n[network]\n# The kind of adapter." in text
    assert "\nnetwork_dim = 32\n" in text
    for setting in known_settings().values():
        if setting.kind != "tables" and (setting.default is not None or setting.zero_is_off):
            assert f"\n{setting.key} = " in text


VALUES: dict[str, st.SearchStrategy[object]] = {
    "network_dim": st.integers(1, 128),
    "network_alpha": st.floats(0.001, 128),
    "conv_dim": st.none() | st.integers(1, 64),
    "optimizer_args": st.lists(st.sampled_from(["weight_decay=0.1", "eps=1e-8"]), unique=True),
    "text_encoder_lr": st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=1, max_size=2),
    "unet_lr": st.none() | st.floats(1e-7, 1),
    "caption_prefix": st.text(st.characters(exclude_categories=["Cs"])),
    "sample_prompts": st.text(st.sampled_from("a\"'\\\n\t#=[]--w é")),
    "min_snr_gamma": st.none() | st.floats(0.1, 20),
    "save_every_n_epochs": st.none() | st.integers(1, 9),
    "lr_warmup_steps": st.integers(0, 500) | st.floats(0, 0.9),
    "shuffle_caption": st.booleans(),
    "resolution": st.sampled_from(["512,512", "512,768", "640"]),
    "max_train_steps": st.none() | st.integers(1, 10**6),
    "pretrained_model_name_or_path": st.text(st.sampled_from("ab /\\:.'é")),
}


@UNHURRIED
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_saved_configuration_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    config = load_config(None, values)
    path = tmp_path_factory.mktemp("saved") / "run.toml"
    save_config(config, path)
    assert load_config(path) == config
    assert config_from_layers([to_flat(config)]) == config


LEAVES = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=["Cs"])), st.none(), st.dates()
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
KEYS = st.sampled_from([*known_settings(), "network_module", "network_args", "v2", "xformers", "epoch"]) | st.text()


@UNHURRIED
@given(st.dictionaries(KEYS, ANYTHING, max_size=6))
def test_any_mapping_gives_a_configuration_or_a_config_error(values: dict[str, object]) -> None:
    try:
        config = load_config(None, values)
    except ConfigError as error:
        assert error.problems
        assert all(problem.key and problem.message for problem in error.problems if problem.key in known_settings())
    else:
        assert config_from_layers([to_flat(config)]) == config


@UNHURRIED
@given(
    st.dictionaries(KEYS, ANYTHING.filter(lambda value: value is not None), max_size=6),
    st.sampled_from([{}, {"network_module": "networks.lora"}]),
)
@example(values={"model_family": []}, kohya={"network_module": "networks.lora"})
def test_any_file_gives_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object], kohya: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("any") / "run.toml"
    try:
        path.write_text(toml.dumps({**values, **kohya}), encoding="utf-8")
    except (ValueError, TypeError, IndexError, AttributeError):
        return  # the toml package cannot write everything that TOML can hold
    for ignore_unsupported in (False, True):
        try:
            load_config(path, ignore_unsupported=ignore_unsupported)
        except ConfigError as error:
            assert error.problems


@UNHURRIED
@given(st.text(max_size=60))
def test_any_text_gives_a_configuration_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "run.toml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        load_config(path)
    except ConfigError as error:
        assert error.problems


def test_both_files_and_values_are_reported_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = \n")
    with pytest.raises(ConfigError) as error:
        load_config(broken, {"network_dim": 0}, preset=tmp_path / "none.toml")
    assert [problem.key for problem in error.value.problems] == [
        str(tmp_path / "none.toml"),
        str(broken),
        "network_dim",
    ]


def test_a_preset_read_alone_says_only_what_it_sets(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text("[optimizer]\nlearning_rate = 1.0\noptimizer_type = 'Prodigy'\n")
    assert read_layer(path) == {"learning_rate": 1.0, "optimizer_type": "Prodigy"}


def test_paths_of_a_shipped_preset_are_the_projects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "presets").mkdir(parents=True)
    (project / "demo").mkdir()
    (project / "demo" / "model.safetensors").touch()
    monkeypatch.setattr("trainer.config.files.PROJECT", project)
    monkeypatch.setattr("trainer.config.files.PRESETS", project / "presets")
    preset = project / "presets" / "demo.toml"
    preset.write_text(
        'pretrained_model_name_or_path = "demo/model.safetensors"\ntrain_data_dir = "demo/pictures"\n'
        'vae = "user/name-on-the-hub"\nsample_prompts = "demo/prompts.txt"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(preset)
    assert config.model.pretrained_model_name_or_path == str(project / "demo" / "model.safetensors")
    assert config.dataset.train_data_dir == str(project / "demo" / "pictures")
    assert config.model.vae == "user/name-on-the-hub"
    assert config.sampling.sample_prompts == str(project / "demo" / "prompts.txt")
    monkeypatch.chdir(project)
    assert load_config(preset).dataset.train_data_dir == "demo/pictures"


# --- --set ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("network_dim=8", ("network_dim", 8)),
        ("learning_rate = 1e-4", ("learning_rate", 1e-4)),
        ("shuffle_caption=true", ("shuffle_caption", True)),
        ("output_name=my_lora", ("output_name", "my_lora")),
        ("output_name='quoted'", ("output_name", "quoted")),
        ("output_name=2024-01-01", ("output_name", "2024-01-01")),
        ("output_name=007", ("output_name", "007")),
        ("metadata_title=true", ("metadata_title", "true")),
        ("resolution=512,768", ("resolution", "512,768")),
        ("resolution=[512, 768]", ("resolution", [512, 768])),
        ("optimizer_args=['weight_decay=0.1']", ("optimizer_args", ["weight_decay=0.1"])),
        ("caption_prefix=a = b", ("caption_prefix", "a = b")),
        ("reg_data_dir=", ("reg_data_dir", "")),
        ("seed=1\nnetwork_dim = 4", ("seed", "1\nnetwork_dim = 4")),
        ("train_data_dir=C:\\pictures", ("train_data_dir", "C:\\pictures")),
    ],
)
def test_set_takes_a_toml_literal_else_a_text(text: str, pair: tuple[str, object]) -> None:
    assert parse_set(text) == pair


@pytest.mark.parametrize("text", ["network_dim", "=8", ""])
def test_set_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as key=value"):
        parse_set(text)


# --- as a value -----------------------------------------------------------------------------------------------------


def test_a_configuration_is_a_frozen_hashable_picklable_value() -> None:
    config = load_config(None, {"optimizer_args": ["weight_decay=0.1"]})
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(load_config(None, {"optimizer_args": ["weight_decay=0.1"]}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = config.model  # type: ignore[misc]


def test_loading_needs_no_torch_and_little_else(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    save_config(TrainingConfig(), path)
    script = (
        "import sys; from pathlib import Path; from trainer.config import load_config; import trainer.advice;"
        f"load_config(Path({str(path)!r}));"
        "heavy = ('torch', 'numpy', 'diffusers', 'transformers', 'gradio');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
