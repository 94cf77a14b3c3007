"""What a LoRA file tells of its training: kohya's entries, modelspec's, settings to read back, and no paths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
import time
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer.adapters import make_spec
from trainer.adapters.files import Module
from trainer.config import TrainingConfig, config_from_layers, known_settings, to_flat
from trainer.pictures.batches import examples
from trainer.pictures.counts import count
from trainer.pictures.scan import scan
from trainer.planning.timetable import make_timetable
from trainer.results import metadata
from trainer.results.metadata import FileHashes, ModelFacts, RunFacts

SECRET = "secret-home"

KOHYAS = json.loads((Path(__file__).parents[1] / "data" / "lora_metadata_sd15.json").read_text(encoding="utf-8"))
"""Every entry of a file that sd-scripts trained, with its value there."""

SETTINGS = {
    "resolution": 256,
    "min_bucket_reso": 128,
    "max_bucket_reso": 512,
    "bucket_no_upscale": False,
    "clip_skip": 2,
    "shuffle_caption": True,
    "keep_tokens": 1,
    "network_dim": 8,
    "network_alpha": 4.0,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_train_steps": 40,
    "optimizer_type": "AdamW",
}
"""The settings of that training."""

OWN_VALUES = {
    "modelspec.date",
    "modelspec.implementation_version",
    "ss_bucket_info",
    "ss_dataset_dirs",
    "ss_num_batches_per_epoch",
    "ss_num_epochs",
    "ss_num_reg_images",
    "ss_num_train_images",
    "ss_reg_dataset_dirs",
    "ss_session_id",
    "ss_tag_frequency",
    "ss_text_encoder_lr",
    "ss_training_finished_at",
    "ss_training_started_at",
    "sshs_legacy_hash",
    "sshs_model_hash",
}
"""Entries whose values come from other pictures, another time or another default."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with four training and two regularisation pictures below it."""
    home = tmp_path / SECRET
    for folder, number, size in (("train/3_tok cat", 4, (64, 64)), ("reg/1_cat", 2, (64, 96))):
        (home / folder).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", size).save(home / folder / f"{index}.png")
    (home / "train/3_tok cat/0.txt").write_text("tok, Red Eyes,smile\n")
    (home / "train/3_tok cat/1.txt").write_text("tok, smile, 猫\n")
    return home


def config_of(home: Path, **settings: object) -> TrainingConfig:
    folders = {
        "pretrained_model_name_or_path": str(home / "models" / "base.safetensors"),
        "train_data_dir": str(home / "train"),
        "reg_data_dir": str(home / "reg"),
        "output_dir": str(home / "out"),
        "logging_dir": str(home / "logs"),
        "vae": str(home / "models" / "vae.safetensors"),
        "sample_prompts": str(home / "prompts.txt"),
    }
    return config_from_layers([{**folders, **SETTINGS, **settings}])


def facts_of(config: TrainingConfig, **changes: object) -> RunFacts:
    report = scan(config)
    counts = count(report, examples(report, config), config)
    facts = RunFacts(
        config=config,
        adapter=make_spec(config.network, ("unet", "text_encoder")),
        timetable=make_timetable(config, micro_batches=counts.batches),
        report=report,
        counts=counts,
        model=ModelFacts(
            "tiny-sd15", "sd_v1", "stable-diffusion-v1", "epsilon", FileHashes("IsADirectory", "IsADirectory")
        ),
        optimizer="torch.optim.adamw.AdamW",
        mixed_precision="no",
        started=1_700_000_000.5,
        session_id=7,
    )
    return dataclasses.replace(facts, **changes)


def entries_of(config: TrainingConfig, **changes: object) -> dict[str, str]:
    return metadata.build(facts_of(config, **changes), step=40, epoch=1, finished=1_700_000_060.25)


def test_every_entry_of_sd_scripts_is_there_with_its_value_for_the_same_settings(home: Path) -> None:
    entries = entries_of(config_of(home))
    hashes = {"sshs_model_hash", "sshs_legacy_hash"}  # added when the file is written
    assert set(KOHYAS) - set(entries) == hashes
    assert set(entries) - set(KOHYAS) == {metadata.SETTINGS_ENTRY}
    shared = set(KOHYAS) - OWN_VALUES
    assert {key: entries[key] for key in shared} == {key: KOHYAS[key] for key in shared}
    assert all(isinstance(value, str) for value in entries.values())


def test_every_setting_writes_the_entry_that_it_declares(home: Path) -> None:
    """What the run finds out is written by the module itself, so that it could be forgotten; one such needs a value."""
    given = {"conv_dim": 4, "min_timestep": 5, "metadata_title": "a", "metadata_author": "b", "metadata_license": "c"}
    given |= {"metadata_description": "d", "metadata_tags": "e"}
    model = ModelFacts("v", "sd_v1", "stable-diffusion-v1", "epsilon", vae_name="v.pt")
    entries = entries_of(config_of(home, **given), model=model)
    every = known_settings().values()
    declared = {setting.entry for setting in every if setting.entry and setting.belongs_to("ddpm")}
    assert len(declared) > 60
    assert declared - set(entries) == set()
    assert entries["ss_network_dim"] == "8"
    assert "ss_discrete_flow_shift" not in entries
    flow = entries_of(config_of(home), model=ModelFacts("f", "flux", "flux-1-dev", "flow"))
    assert flow["ss_discrete_flow_shift"] == "3.0"


def test_pictures_tags_and_buckets_are_counted_as_kohya_does(home: Path) -> None:
    entries = entries_of(config_of(home))
    assert json.loads(entries["ss_dataset_dirs"]) == {"3_tok cat": {"n_repeats": 3, "img_count": 4}}
    assert json.loads(entries["ss_reg_dataset_dirs"]) == {"1_cat": {"n_repeats": 1, "img_count": 2}}
    assert json.loads(entries["ss_tag_frequency"]) == {
        "3_tok cat": {"tok": 2, "red eyes": 1, "smile": 2, "猫": 1, "tok cat": 2},
        "1_cat": {"cat": 2},
    }
    assert (entries["ss_num_train_images"], entries["ss_num_reg_images"]) == ("12", "2")
    buckets = json.loads(entries["ss_bucket_info"])["buckets"]
    assert [bucket["count"] for bucket in buckets.values()] == [12, 12]
    assert entries["ss_num_batches_per_epoch"] == "24"
    assert entries["ss_num_epochs"] == "2"
    assert entries_of(config_of(home, enable_bucket=False))["ss_bucket_info"] == "null"


def test_step_epoch_times_and_batch_size(home: Path) -> None:
    entries = entries_of(config_of(home, train_batch_size=2, gradient_accumulation_steps=3))
    assert (entries["ss_steps"], entries["ss_epoch"], entries["ss_max_train_steps"]) == ("40", "1", "40")
    assert (entries["ss_batch_size_per_device"], entries["ss_total_batch_size"]) == ("2", "6")
    assert (entries["ss_training_started_at"], entries["ss_training_finished_at"]) == (
        "1700000000.5",
        "1700000060.25",
    )


def test_neither_folders_nor_paths_are_told(home: Path) -> None:
    model = ModelFacts(
        metadata.model_name(str(home / "models" / "base.safetensors")), "sd_v1", "stable-diffusion-v1", "epsilon"
    )
    entries = entries_of(config_of(home), model=model)
    assert entries["ss_sd_model_name"] == "base.safetensors"
    for key, value in entries.items():
        assert SECRET not in value, key
        assert "prompts.txt" not in value, key


def test_a_plain_folders_name_is_not_told(home: Path) -> None:
    plain = home / "holiday with alice"
    plain.mkdir()
    Image.new("RGB", (64, 64)).save(plain / "a.png")
    (plain / "a.txt").write_text("a beach")
    entries = entries_of(config_of(home, train_data_dir=str(plain)))
    assert json.loads(entries["ss_dataset_dirs"]) == {"1_pictures": {"n_repeats": 1, "img_count": 1}}
    assert not [key for key, value in entries.items() if "alice" in value]


def test_settings_read_back_as_they_were_but_for_paths(home: Path) -> None:
    prompts = "a cat --w 64\na dog"
    config = config_of(
        home, conv_dim=4, save_every_n_epochs=0, sample_prompts=prompts, optimizer_args=["betas=0.9,0.9"]
    )
    found = metadata.read_settings(entries_of(config))
    again = to_flat(config_from_layers([found]))
    expected = to_flat(config)
    paths = {key for key, value in expected.items() if isinstance(value, str) and SECRET in value}
    assert len(paths) == 6
    assert not paths & set(found)
    assert {key: value for key, value in again.items() if key not in paths} == {
        key: value for key, value in expected.items() if key not in paths
    }
    assert found["sample_prompts"] == prompts
    assert metadata.read_settings({}) == metadata.read_settings({metadata.SETTINGS_ENTRY: "[1"}) == {}


def test_no_metadata_leaves_what_programs_need_to_load_the_file(home: Path) -> None:
    entries = entries_of(config_of(home, no_metadata=True, conv_dim=4))
    assert {key: value for key, value in entries.items() if not key.startswith("modelspec.")} == {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_network_args": '{"conv_dim": "4", "conv_alpha": "1", "dropout": null}',
    }
    assert entries["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_what_the_user_says_of_the_file_goes_into_modelspec(home: Path) -> None:
    texts = {
        "metadata_title": "My cat",
        "metadata_author": "me",
        "metadata_description": "trigger: tok",
        "metadata_license": "CC0",
        "metadata_tags": "cat, style",
        "training_comment": "third try",
    }
    config = config_of(home, **texts, clip_skip=1, max_timestep=900, v_parameterization=True)
    model = ModelFacts("b", "sd_v1", "stable-diffusion-v1", "v_prediction")
    entries = entries_of(config, model=model)
    assert [entries[f"modelspec.{key}"] for key in ("title", "author", "description", "license", "tags")] == list(
        texts.values()
    )[:5]
    assert entries["ss_training_comment"] == "third try"
    assert entries["modelspec.prediction_type"] == "v"
    assert entries["modelspec.timestep_range"] == "0,900"
    assert entries["modelspec.resolution"] == "256x256"
    assert "modelspec.encoder_layer" not in entries
    assert "ss_sd_model_hash" not in entries


def test_ranks_taken_from_a_file_are_called_dynamic(home: Path) -> None:
    config = config_of(home, conv_dim=4)
    given = dataclasses.replace(make_spec(config.network, ("unet",)), given={"lora_unet_x": Module(3, 1.0, {})})
    entries = entries_of(config, adapter=given)
    assert (entries["ss_network_dim"], entries["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert "ss_network_args" not in entries or entries["ss_network_args"] == "None"


def test_a_loha_names_lycoris(home: Path) -> None:
    entries = entries_of(config_of(home, network_type="loha", conv_dim=4, conv_alpha=2.0))
    assert entries["ss_network_module"] == "lycoris.kohya"
    arguments = json.loads(entries["ss_network_args"])
    assert arguments == {
        "algo": "loha", "preset": "full", "conv_dim": "4", "conv_alpha": "2.0", "dropout": None
    }  # fmt: skip


def test_optimizer_name_is_the_class_with_the_arguments_given() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    assert metadata.optimizer_name(optimizer, []) == "torch.optim.adamw.AdamW"
    assert (
        metadata.optimizer_name(optimizer, ["weight_decay=0.1", "betas=0.9,0.99"])
        == "torch.optim.adamw.AdamW(weight_decay=0.1,betas=0.9,0.99)"
    )


def test_hashes_made_ahead_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    began, read = threading.Event(), []

    def sha256_of(given: Path) -> str:
        read.append(given)
        began.set()
        time.sleep(0.2)
        return "digest"

    monkeypatch.setattr(metadata, "sha256_of", sha256_of)
    metadata.hash_ahead(path)
    assert began.wait(10)
    found = metadata.model_hashes(path)
    assert found is not None and found.new == "digest"
    assert read == [path.resolve()]
    metadata.hash_ahead(tmp_path / "gone.safetensors")


def test_model_hashes_are_those_of_web_uis(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = os.urandom(0x100000 + 0x10000 + 1000)
    path.write_bytes(content)
    old = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert metadata.model_hashes(path) == FileHashes(old, hashlib.sha256(content).hexdigest())
    path.write_bytes(b"another model")
    os.utime(path, (1, 1))
    assert metadata.model_hashes(path) == FileHashes(
        hashlib.sha256(b"").hexdigest()[:8], hashlib.sha256(b"another model").hexdigest()
    )
    assert metadata.model_hashes(tmp_path) == FileHashes("IsADirectory", "IsADirectory")
    assert metadata.model_hashes("user/name") is None


def test_model_name_is_a_file_name_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd15").mkdir(parents=True)
    assert metadata.model_name(str(tmp_path / "gone" / "model.ckpt")) == "model.ckpt"
    assert metadata.model_name("models/sd15") == "sd15"
    assert metadata.model_name("models/gone.safetensors") == "gone.safetensors"
    assert metadata.model_name("someone/sd-v1.5") == "someone/sd-v1.5"


def test_a_vae_of_its_own_is_named_and_hashed(home: Path) -> None:
    model = ModelFacts(
        "b", "sd_v1", "stable-diffusion-v1", "epsilon", vae_name="v.pt", vae_hashes=FileHashes("12345678", "ab")
    )
    entries = entries_of(config_of(home), model=model)
    assert (entries["ss_vae_name"], entries["ss_vae_hash"], entries["ss_new_vae_hash"]) == ("v.pt", "12345678", "ab")


def test_of_too_many_tags_the_most_frequent_are_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(metadata, "TAGS_KEPT", 3)
    tags = json.loads(entries_of(config_of(home))["ss_tag_frequency"])
    assert tags == {"3_tok cat": {"tok": 2, "smile": 2, "tok cat": 2}, "1_cat": {}}


def test_names_outside_unicode_and_long_lists_fit_into_json(home: Path) -> None:
    (home / "train" / "1_\udce9t\udce9").mkdir()
    Image.new("RGB", (64, 64)).save(home / "train" / "1_\udce9t\udce9" / "a.png")
    entries = entries_of(config_of(home))
    assert entries["ss_dataset_dirs"].encode("utf-8")


def test_the_programs_version_is_that_of_this_code() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert metadata._program_version() == project["version"]
