"""Datasets written for sd-scripts: what it can be told is read back as it was, and the rest is named."""

from __future__ import annotations

from pathlib import Path

from trainer.config import config_from_layers, load_config
from trainer.config.dataset_export import dataset_config
from trainer.config.datasets import datasets_of


def test_what_sd_scripts_can_be_told_means_the_same(tmp_path: Path) -> None:
    tables = [
        {"resolutions": [512, "768,640"], "batch_size": 4, "alpha_mask": True, "subsets": [
            {"image_dir": "/a b", "num_repeats": 3, "caption_prefix": "x"},
            {"image_dir": "/r", "is_reg": True, "diff_output_preservation": True},
        ]},
        {"enable_bucket": False, "subsets": [{"metadata_file": "/m.json", "keep_tokens": 0}]},
    ]  # fmt: skip
    config = config_from_layers([{"datasets": tables}])
    text, unsaid = dataset_config(config)
    assert unsaid == ()
    assert "resolutions" not in text and "resolution = [ 768, 640,]" in text.replace("[768, 640]", "[ 768, 640,]")
    assert text.index("[[datasets.subsets]]") < text.index("alpha_mask"), "there it is said of a subset alone"
    (tmp_path / "d.toml").write_text(text, encoding="utf-8")
    again = load_config(overrides={"dataset_config": str(tmp_path / "d.toml")})
    before, after = (
        [(each.subsets, each.config.dataset.resolution) for each in datasets_of(one)] for one in (config, again)
    )
    assert len(before) == len(after) == 3
    for (ours, size), (theirs, other) in zip(before, after, strict=True):
        assert size == other
        for one, two in zip(ours, theirs, strict=True):
            assert (one.image_dir, one.num_repeats, one.is_reg) == (two.image_dir, two.num_repeats, two.is_reg)
            assert one.diff_output_preservation == two.diff_output_preservation == one.is_reg
            assert one.config.augmentation == two.config.augmentation and one.config.captions == two.config.captions


def test_what_it_cannot_be_told_is_named() -> None:
    tables = [
        {"min_timestep": 5, "subsets": [{"image_dir": "/a", "conditioning_data_dir": "/m"}, {"image_dir": "/b"}]},
        {"subsets": [{"image_dir": "/a", "conditioning_data_dir": "/m", "is_reg": True}]},
    ]
    text, unsaid = dataset_config(config_from_layers([{"datasets": tables, "masked_loss": True}]))
    assert any("dataset 1: sd-scripts says min_timestep for a whole run" in line for line in unsaid)
    assert any('dataset 1, subset 1: conditioning_data_dir "/m"' in line for line in unsaid)
    assert any("dataset 2, subset 1: is_reg true does not go together with masks" in line for line in unsaid)
    assert len(unsaid) == 3
    assert text.count("conditioning_data_dir") == 1 and "min_timestep" not in text
