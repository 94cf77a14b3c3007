"""Recipes on their way into the form: what they may look at, what stays as it is, what waits for an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kohya_gui.form import opening, opening_report
from kohya_gui.form.draft import defaults
from kohya_gui.parts.folders import Folders
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
