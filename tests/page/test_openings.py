"""Recipes on their way into the form: what they may look at, what stays as it is, what waits for an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kohya_gui.form import opening, opening_report
from kohya_gui.form.draft import defaults
from kohya_gui.form.presets import Presets
from kohya_gui.panels.presets import PresetPanel
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.shell.page import Page
from tests.page.test_opening import RECIPE
from trainer.ground.errors import ConfigError


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    (tmp_path / "mine").mkdir()
    return Folders([tmp_path / "mine"])


def test_what_a_text_names_outside_the_allowed_folders_is_not_looked_at(tmp_path: Path, folders: Folders) -> None:
    secret = tmp_path / "secret.toml"
    secret.write_text("network_dim = 77\n")
    inside = tmp_path / "mine" / "base.toml"
    inside.write_text("network_dim = 66\n")
    for path, rank in ((secret, 4), (inside, 66)):
        text = f"python train_network.py --config_file={path} --vae={path} --seed 1"
        found = opening.opening("x", opening.of_text("", text, folders), defaults())
        assert found.values["network_dim"] == rank
        assert (str(path) in found.opened.report.missing.values()) == (path == secret)
        assert "77" not in opening_report.dialog(found, "1")


def test_a_recipe_of_another_program_leaves_model_and_folders_as_they_are(folders: Folders) -> None:
    current = {
        **defaults(),
        "pretrained_model_name_or_path": "mine.safetensors",
        "output_name": "cat",
        "network_dim": 3,
    }
    text = json.dumps(RECIPE)
    found = opening.opening("x", opening.of_text("a.json", text, folders), current)
    assert (found.values["pretrained_model_name_or_path"], found.values["network_dim"]) == ("mine.safetensors", 24)
    assert found.kept == ("pretrained_model_name_or_path",), "the output's name is kohya_ss' own"
    ours = opening.opening("x", opening.of_text("a.toml", "network_dim = 9\n", folders), current)
    assert (ours.values["pretrained_model_name_or_path"], ours.kept) == ("", ())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("", " ", "nothing in what was pasted"),
        ("a.toml", "x" * 1_000_001, "larger than 1,000,000"),
        ("a.safetensors", "[", "no metadata"),
        ("a.safetensors", "{}", "tells nothing of its training"),
        ("a.toml", "x", "not valid TOML"),
        ("../../b.toml", "\0", "not valid TOML"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_words(folders: Folders, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        opening.opening("x", opening.of_text(name, text, folders), defaults())


def test_a_value_of_any_kind_can_be_shown_in_its_field(folders: Folders) -> None:
    text = "network_dim = {a = 1}\nseed = [[1], [2]]\noptimizer_args = 5\n"
    found = opening.opening("x", opening.of_text("a.toml", text, folders), defaults())
    assert [found.values[key] for key in ("network_dim", "seed")] == ["{'a': 1}", ["[1]", "[2]"]]
    assert "cannot be used" in opening_report.dialog(found, "1")


def test_what_waits_for_an_answer_is_opened_once_and_not_for_ever(folders: Folders) -> None:
    waiting = opening.Openings()
    found = opening.opening("x", opening.of_text("a.toml", "network_dim = 9\n", folders), defaults())
    numbers = [waiting.keep(found) for _ in range(20)]
    assert waiting.take(numbers[0]) is None
    assert waiting.take(numbers[-1]) is found
    assert waiting.take(numbers[-1]) is None


GOOD, WRONG = {"network_dim": 24}, "lots"
KINDS: dict[str, tuple[str, str, str]] = {
    "ours": ("run.toml", 'network_dim = 24\ntrain_batch_size = "lots"\n', "train_batch_size"),
    "sd-scripts": (
        "sd.toml",
        '[a]\nnetwork_module = "networks.lora"\nnetwork_dim = 24\ntrain_batch_size = "lots"\n',
        "train_batch_size",
    ),
    "dataset_config": (
        "sets.toml",
        "network_dim = 24\n[[datasets]]\nresolution = 512\nbatch_size = 'lots'\n"
        "[[datasets.subsets]]\nimage_dir = 'demo'\nnum_repeats = 3\n",
        "datasets",
    ),
    "LoRA_Easy_Training_Scripts": (
        "easy.toml",
        "[network_args.args]\nnetwork_dim = 24\n[general_args.args]\nseed = 'lots'\n",
        "seed",
    ),
    "kohya_ss": (
        "form.json",
        '{"LoRA_type": "Standard", "network_dim": 24, "train_batch_size": "lots", "epoch": 2}',
        "train_batch_size",
    ),
    "sh": ("go.sh", "python train_network.py --network_dim=24 \\\n --train_batch_size lots\n", "train_batch_size"),
    "bat": ("go.bat", "python train_network.py --network_dim=24 ^\r\n --train_batch_size lots\r\n", "train_batch_size"),
    "ps1": ("go.ps1", "python train_network.py --network_dim=24 `\n --train_batch_size lots\n", "train_batch_size"),
    "pasted": ("", "accelerate launch train_network.py --network_dim 24 --train_batch_size lots", "train_batch_size"),
    "LoRA of kohya's": (
        "a.safetensors",
        '{"ss_network_module": "networks.lora", "ss_network_dim": "24", "ss_batch_size_per_device": "lots"}',
        "train_batch_size",
    ),
    "LoRA of ours": (
        "b.safetensors",
        json.dumps({"trainer_config": json.dumps({"network_dim": 24, "train_batch_size": "lots"})}),
        "train_batch_size",
    ),
    "OneTrainer": (
        "one.json",
        '{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "lora_rank": 24, "batch_size": "lots"}',
        "train_batch_size",
    ),
    "ai-toolkit": (
        "kit.yaml",
        "job: extension\nconfig:\n  process:\n    - type: sd_trainer\n      network: {type: lora, linear: 24}\n"
        "      train: {batch_size: lots}\n",
        "train_batch_size",
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Page:
    here = tmp_path_factory.mktemp("page")
    return Page(Session(Folders([here, Path.cwd()]), Presets(here / "presets", here / "own"), patience=0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_value_marks_its_field_and_all_else_arrives(built: Page, kind: str) -> None:
    """By the handlers that a click, a drop and a paste in the page come to."""
    name, text, key = KINDS[kind]
    presets = next(each for each in built.panels if isinstance(each, PresetPanel))
    built.session.draft.lay(defaults(), "", "")
    act = {"act": "open-dropped", "dropped_name": name, "dropped_text": text}
    shown = presets.answered(act if name else {"act": "open-pasted", "pasted": text})
    number = re.search(r'data-act="open-agreed" data-number="(\d+)"', str(shown[built.dialog]))
    assert number, "the report comes first"
    assert built.session.draft.values["network_dim"] == defaults()["network_dim"]
    assert WRONG in str(shown[built.dialog])
    presets.answered({"act": "open-agreed", "number": number[1]})
    draft = built.session.draft
    assert draft.values["network_dim"] == GOOD["network_dim"]
    checked = draft.check()
    assert [problem.key for problem in checked.problems] == [key]
    assert checked.config is None and WRONG in checked.problems[0].message
    if key != "datasets":
        assert draft.values[key] == WRONG, "as it was written, in its field"
    else:
        assert "num_repeats" in str(draft.values[key])
