"""The presets that come with the program, and one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_gui.form.draft import defaults
from kohya_gui.form.presets import DEMO, PROJECT, Preset, Presets, changes, file_text, is_kept, laid_over
from trainer.advice import Situation, advise
from trainer.config import known_settings, load_config, problems_of, to_flat
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError

SHIPPED = sorted((PROJECT / "presets").glob("*.toml"))
EXPECTED = {
    "demo",
    "quick-trial",
    "sd15-character-anime",
    "sd15-realistic",
    "sd15-style",
    "sdxl-character",
    "sdxl-style",
    "sdxl-low-memory",
    "sdxl-pony-illustrious",
    "flux-8gb",
    "flux-12gb",
    "flux-16gb",
    "flux-24gb",
    "anima-6gb",
    "anima-8gb",
    "dadapt-adam",
    "prodigy",
}


@pytest.fixture
def presets(tmp_path: Path) -> Presets:
    return Presets(PROJECT / "presets", tmp_path / "own")


def test_all_that_people_were_promised_are_there() -> None:
    assert {path.stem for path in SHIPPED} >= EXPECTED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_preset_applies_and_checks(path: Path) -> None:
    after = laid_over(defaults(), Preset(path, own=False).values())
    config, problems = problems_of(after)
    assert problems == ()
    assert config is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_preset_says_for_whom_it_is(path: Path) -> None:
    preset = Preset(path, own=False)
    assert preset.title
    assert preset.description.endswith(".")


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != DEMO], ids=lambda path: path.stem)
def test_a_shipped_preset_follows_our_own_advice(path: Path) -> None:
    config, _ = problems_of(laid_over(defaults(), Preset(path, own=False).values()))
    assert config is not None
    # Prompts are one's own, the strength is told and not advised against, and a trial is short on purpose.
    family = path.stem.partition("-")[0]
    told = {each.rule for each in advise(config, Situation(model_family=family if family in FAMILIES else ""))} - {
        "samples",
        "strength",
    }
    assert told == ({"total-steps"} if path.stem == "quick-trial" else set())


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != DEMO], ids=lambda path: path.stem)
def test_a_shipped_preset_leaves_model_folders_and_names_alone(path: Path) -> None:
    mine = {"pretrained_model_name_or_path": "/m.safetensors", "train_data_dir": "/p", "output_name": "mine"}
    after = laid_over({**defaults(), **mine}, Preset(path, own=False).values())
    assert {key: after[key] for key in mine} == mine


def test_the_demo_finds_its_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = Preset(PROJECT / "presets" / "demo.toml", own=False).values()
    assert Path(str(values["pretrained_model_name_or_path"])).is_file()
    assert Path(str(values["train_data_dir"])).is_dir()


def test_a_preset_with_steps_takes_the_epochs_place() -> None:
    after = laid_over(defaults(), Preset(PROJECT / "presets" / "quick-trial.toml", own=False).values())
    assert (after["max_train_steps"], after["max_train_epochs"]) == (300, None)


def test_saving_and_loading_brings_back_what_was_changed(presets: Presets) -> None:
    values = {
        **defaults(),
        "network_dim": 24,
        "learning_rate": 3e-5,
        "train_data_dir": "/secret",
        "sample_prompts": "x",
    }
    presets.save("mine", values)
    loaded = presets.all()["mine"]
    assert loaded.own
    assert loaded.values() == {"network_dim": 24, "learning_rate": 3e-5}


def test_a_preset_changes_only_what_differs(presets: Presets) -> None:
    presets.save("mine", {**defaults(), "network_dim": 24})
    before = {**defaults(), "clip_skip": 2}
    changed = changes(before, laid_over(before, presets.all()["mine"].values()))
    assert [(each.key, each.before, each.after) for each in changed] == [
        ("clip_skip", "2", "1"),
        ("network_dim", "32", "24"),
    ]


@pytest.mark.parametrize("name", ["", "../out", "a/b", "con", "demo"])
def test_a_bad_name_is_refused(presets: Presets, name: str) -> None:
    with pytest.raises(ConfigError):
        presets.save(name, defaults())


def test_only_own_presets_can_be_deleted(presets: Presets) -> None:
    presets.save("mine", defaults())
    presets.delete("mine")
    assert "mine" not in presets.all()
    with pytest.raises(ConfigError, match="not one of your own"):
        presets.delete("quick-trial")
    assert "quick-trial" in presets.all()


def test_a_preset_with_an_unknown_setting_says_so(presets: Presets, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "odd.toml").write_text("network_dimm = 4\n")
    with pytest.raises(ConfigError, match="network_dim"):
        presets.all()["odd"].values()


def test_a_settings_file_opens_as_it_was_saved(tmp_path: Path) -> None:
    config, _ = problems_of({**defaults(), "network_dim": 24, "max_train_steps": 500, "max_train_epochs": None})
    assert config is not None
    path = tmp_path / "run.toml"
    path.write_text(file_text(config))
    assert to_flat(load_config(path)) == to_flat(config)


def test_what_is_kept_names_settings_that_exist() -> None:
    kept = {key for key in known_settings() if is_kept(key)}
    assert {"pretrained_model_name_or_path", "train_data_dir", "output_dir", "output_name", "seed"} <= kept
    assert "learning_rate" not in kept
