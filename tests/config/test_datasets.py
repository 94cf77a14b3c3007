"""Datasets as settings: from files, from --set, into files and back, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.advice import Situation, advise
from trainer.config import (
    TrainingConfig,
    config_from_layers,
    datasets_of,
    load_config,
    load_layers,
    parse_set,
    problems_of,
    save_config,
    to_flat,
)
from trainer.config.datasets import dataset_settings, differences, paths_in, subset_settings
from trainer.ground.errors import ConfigError
from trainer.planning.fitting import check_process
from trainer.process import FLOW

TABLES = [
    {
        "resolutions": [512, [768, 640]],
        "batch_size": 4,
        "keep_tokens": 2,
        "subsets": [
            {"image_dir": "/a", "num_repeats": 3, "caption_prefix": 'x "y"', "flip_aug": True},
            {"image_dir": "C:\\b", "is_reg": True, "keep_tokens": 0},
        ],
    },
    {"enable_bucket": False, "subsets": [{"metadata_file": "/m.json", "image_dir": "/c"}]},
]


def test_a_file_says_what_was_saved(tmp_path: Path) -> None:
    config = config_from_layers([{"datasets": TABLES, "train_batch_size": 2}])
    save_config(config, tmp_path / "run.toml")
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    assert text.index("[metadata]") < text.index("[[datasets]]"), "tables end what a section can say"
    assert "  [[datasets.subsets]]" in text
    assert load_config(tmp_path / "run.toml") == config


def test_a_dataset_is_there_once_for_each_resolution() -> None:
    config = config_from_layers([{"datasets": TABLES, "train_batch_size": 2, "keep_tokens": 7}])
    found = datasets_of(config)
    assert [each.config.dataset.resolution for each in found] == ["512,512", "768,640", "512,512"]
    assert [each.config.training.train_batch_size for each in found] == [4, 4, 2]
    assert [each.place for each in found] == ["dataset 1", "dataset 1", "dataset 2"]
    kept = [[subset.config.captions.keep_tokens for subset in each.subsets] for each in found]
    assert kept == [[2, 0], [2, 0], [7]], "0 is a value; what is not said is as above"
    assert [subset.num_repeats for subset in found[0].subsets] == [3, 1]


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_later_layer_says_where_pictures_are(tmp_path: Path, ending: str) -> None:
    texts = {
        "toml": "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/a'\n",
        "json": '\ufeff{"general": {"keep_tokens": null}, "datasets": [{"subsets": [{"image_dir": "/a"}]}]}',
    }
    path = tmp_path / f"d.{ending}"
    path.write_text(texts[ending], encoding="utf-8")
    (tmp_path / "run.toml").write_text("train_data_dir = '/t'\n")
    set_ = dict([parse_set(f"dataset_config={path}")])
    config = load_config(tmp_path / "run.toml", set_)
    assert config.dataset.train_data_dir == "" and config.dataset.datasets == ({"subsets": [{"image_dir": "/a"}]},)
    back = config_from_layers([to_flat(config), {"train_data_dir": "/t"}])
    assert back.dataset.datasets == () and back.dataset.train_data_dir == "/t"
    both = load_layers(overrides={**set_, "train_data_dir": "/t"})
    assert both.notices == ("train_data_dir /t is not used, because datasets are set beside it.",)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config(overrides={"dataset_config": str(tmp_path / "gone.toml")})
    (tmp_path / "run.toml").write_text("dataset_config = 'gone.toml'\n")
    with pytest.raises(ConfigError, match="dataset_config: 'gone.toml' is not there"):
        load_config(tmp_path / "run.toml")


def test_every_wrong_value_is_named_at_once() -> None:
    tables = [
        {"batch_size": 0, "subsets": [{"image_dir": "/a", "num_repeats": -1}, {"flip": True, "keep_tokens": "2"}]}
    ]
    config, problems = problems_of({"datasets": tables})
    assert config is None
    assert [problem.message.split(" cannot")[0].split(" is no key")[0] for problem in problems] == [
        "dataset 1: batch_size 0",
        "dataset 1, subset 1: num_repeats -1",
        "dataset 1, subset 2: flip",
        'dataset 1, subset 2: keep_tokens "2"',
    ]


def test_rules_hold_for_each_dataset_and_not_for_what_none_of_them_has() -> None:
    run = {"resolution": 64, "bucket_no_upscale": False}  # would be refused by itself
    subsets = [{"image_dir": "/a"}, {"image_dir": "/b", "random_crop": True}]
    assert problems_of({**run, "datasets": [{"resolution": 512, "subsets": subsets[:1]}]})[1] == ()
    found = problems_of({**run, "datasets": [{"resolution": 1536, "subsets": subsets}, {"subsets": subsets[:1]}]})[1]
    texts = [problem.message for problem in found]
    assert any(text.startswith("dataset 1: max_bucket_reso 1024 is below") for text in texts)
    assert any(text.startswith("dataset 2: min_bucket_reso 256 is above") for text in texts)
    assert any(text.startswith("dataset 1, subset 2: random_crop true changes pictures") for text in texts)
    assert {problem.key for problem in found} == {"datasets"} and len(texts) == 3


def test_masks_need_the_switch_that_goes_with_them() -> None:
    tables = [{"subsets": [{"image_dir": "/a", "conditioning_data_dir": "/m"}]}]
    (problem,) = problems_of({"datasets": tables})[1]
    assert problem.message.startswith(
        'dataset 1, subset 1: conditioning_data_dir "/m" has no effect unless masked_loss'
    )
    assert problems_of({"datasets": tables, "masked_loss": True})[1] == ()


def test_settings_of_another_kind_of_model_are_refused_in_a_subset_too() -> None:
    config = config_from_layers([{"datasets": [{"subsets": [{"image_dir": "/a", "max_timestep": 500}]}]}])
    with pytest.raises(ConfigError, match="dataset 1, subset 1: max_timestep is for"):
        check_process(config, FLOW)


def test_advice_is_about_the_dataset_that_it_is_for() -> None:
    tables = [
        {"resolution": 128, "subsets": [{"image_dir": "/a"}]},
        {"resolution": 512, "subsets": [{"image_dir": "/a", "shuffle_caption": True}]},
    ]
    said = advise(config_from_layers([{"datasets": tables}]), Situation(images=9, samples=9, model_side=512))
    about = [(each.rule, each.message.partition(":")[0]) for each in said if each.key == "datasets"]
    assert ("resolution", "dataset 1") in about and ("keep-tokens", "dataset 2, subset 1") in about
    assert ("resolution", "dataset 2") not in about


def test_what_differs_is_said_by_its_own_setting() -> None:
    before = config_from_layers([{"datasets": TABLES}]).dataset.datasets
    changed = [
        dict(TABLES[0], subsets=[{**TABLES[0]["subsets"][0], "num_repeats": 5}, TABLES[0]["subsets"][1]]),
        TABLES[1],
    ]  # type: ignore[index, dict-item]
    now = config_from_layers([{"datasets": changed}]).dataset.datasets
    ((place, setting, was, is_),) = differences(before, now)
    assert (place, was, is_) == ("dataset 1, subset 1: num_repeats", 3, 5)
    assert setting is not None and setting.resume == "data"
    assert differences(before, before) == []
    assert differences(before, now[:1])[0][1] is None


def test_paths_are_found_wherever_they_are() -> None:
    wild = [*TABLES, "x", {"conditioning_data_dir": "/m", "subsets": [3, {"image_dir": 5, "metadata_file": "/n"}]}]
    assert [path for _, path in paths_in(wild)] == ["/a", "C:\\b", "/m.json", "/c", "/m", "/n"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["datasets", "general", "subsets", "resolution", "image_dir", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_is_written_is_used_or_refused(value: object) -> None:
    config, problems = problems_of({"datasets": value})
    assert (config is None) is bool(problems)
    if config is not None:
        assert isinstance(config, TrainingConfig)
        datasets_of(config)


KEYS_THERE = """
resolution batch_size enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps
bucket_no_upscale resize_interpolation num_repeats shuffle_caption enable_wildcard color_aug
flip_aug random_crop keep_tokens keep_tokens_separator secondary_separator caption_separator
caption_prefix caption_suffix caption_dropout_rate caption_tag_dropout_rate
caption_dropout_every_n_epochs token_warmup_min token_warmup_step caption_extension class_tokens
"""


def test_every_key_of_sd_scripts_files_is_known() -> None:
    there = KEYS_THERE.split()
    assert set(there) <= set(dataset_settings())
    of_subset = {"image_dir", "is_reg", "alpha_mask", "metadata_file", "conditioning_data_dir"}
    assert of_subset | set(there[7:]) <= set(subset_settings())
