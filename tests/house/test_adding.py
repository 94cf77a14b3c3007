"""docs/adding.md, followed word by word in a copy of the project: what is added is then there everywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.adding import copy_project, examples, follow
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import logged, tiny_settings, write_dataset
from trainer.settings.toml import encoded

ADDED = {"optimizer_type": "SGD", "lr_scheduler": "square_root", "soft_min_snr_gamma": 2.0, "learning_rate": 1.0}
NAMES = ("added", "plain", "whole", "halves")
TOUCHED = {
    "trainer/config/objective.py",
    "trainer/process/loss.py",
    "trainer/optimizers/sgd.py",
    "trainer/optimizers/__init__.py",
    "trainer/schedules/shapes.py",
    "trainer/tools/pictures.py",
    "trainer/tools/__init__.py",
    "kohya_gui/panels/captions.py",
    "kohya_gui/shell/page.py",
}

WINDOW = """
import json, runpy, sys
from pathlib import Path
runpy.run_module("trainer.config", run_name="__main__")
from kohya_gui.form.advanced_tab import advanced_markup
from kohya_gui.form.fields import fields_markup
from kohya_gui.form.presets import Presets
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.shell.page import TABS, Page
from trainer.config import known_settings
here = Path.cwd()
page = Page(Session(Folders([here]), Presets(here / "presets", here / "own")))
captions = next(panel for panel in page.panels if panel.name == "captions")

def shown():
    return page.form_update()[captions.component]

def edit(folder):
    page.session.edit("train_data_dir", folder)
    return shown()

form = advanced_markup(known_settings().values()) + fields_markup(known_settings().values())
before, after = edit(""), edit(sys.argv[1])
(Path(sys.argv[1]) / "2_tok class" / "00.txt").write_text("written <later>")
unseen = shown()
read = captions.on_read()[captions.component]
titles = [each["props"].get("label") for each in page.blocks.config["components"] if each["type"] == "tabitem"]
print(json.dumps([form, titles, before, after, unseen, read]))
"""
COMMANDS = """
import json, sys
from trainer.__main__ import main
for words in json.load(sys.stdin):
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    assert code == 0, (code, words)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A copy of the project with everything added that the page has an example of."""
    folder = copy_project(project, tmp_path_factory.mktemp("copy"))
    before = contents(folder)
    for example in examples((folder / "docs" / "adding.md").read_text(encoding="utf-8")):
        follow(example, folder)
    changed = {name for name, content in contents(folder).items() if before.get(name) != content}
    assert changed == TOUCHED, "what the page says is all there is to do"
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def python(copy: Path, *words: str, given: str = "") -> str:
    """Run Python in the copy and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=copy, env=environment, input=given, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_documentation_and_the_window_have_them(copy: Path) -> None:
    pictures = write_dataset(copy / "captioned") / "train"
    printed = python(copy, "-c", WINDOW, str(pictures)).splitlines()[-1]
    form, titles, before, after, unseen, read = json.loads(printed)
    page = (copy / "docs" / "settings.md").read_text(encoding="utf-8")
    assert "### soft_min_snr_gamma" in page and "Everything after the first paragraph is the tooltip." in page
    assert '"SGD"' in page and '"square_root"' in page
    for part in ("Soft min SNR gamma", "soft_min_snr_gamma", "SGD", "square_root"):
        assert part in form
    assert titles == ["Basic", "Datasets", "Advanced", "Tools", "Plan", "Training", "Queue", "Runs", "Captions"]
    assert "Read again" in before and "<li>" not in before
    assert after.count("<li>") == 12
    assert "written" not in unseen and "written &lt;later&gt;" in read


def test_the_command_line_has_the_tool(copy: Path) -> None:
    pictures = str(write_dataset(copy / "dataset") / "train" / "2_tok class")
    words = [["--help"], ["pictures", "--help"], ["pictures", pictures, "--at-least", "13"], ["pictures", pictures]]
    printed = " ".join(python(copy, "-c", COMMANDS, given=json.dumps(words)).split())
    assert "count the pictures of a folder" in printed
    assert "The folder that is looked at." in printed and "--at_least" in printed
    assert printed.endswith("fewer pictures. 12")


def test_a_run_uses_records_and_resumes_them(copy: Path, tmp_path: Path) -> None:
    model, dataset = tiny_sd15(tmp_path), write_dataset(tmp_path)

    def written(name: str, **changed: object) -> str:
        common = {**ADDED, "text_encoder_lr": 1.0, "optimizer_args": ["momentum=0.9"], "max_train_steps": 4}
        settings = tiny_settings(model, dataset, tmp_path / "out", **{**common, "output_name": name, **changed})
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join(f"{key} = {encoded(value)}" for key, value in settings.items()))
        return str(path)

    added, halves = written("added"), written("halves", lr_scheduler="constant")
    run = [
        ["keys", *(f"--set={key}={value}" for key, value in ADDED.items())],
        ["export", added],
        ["train", added],
        ["train", written("plain", soft_min_snr_gamma=0)],
        ["train", written("whole", lr_scheduler="constant")],
        ["train", halves, "--set", "max_train_steps=2"],
        ["train", halves, "--check", "--resume", "auto", "--set", "soft_min_snr_gamma=3"],
        ["train", halves, "--resume", "auto"],
    ]
    printed = python(copy, "-c", COMMANDS, given=json.dumps(run)).partition("\n")[2]
    assert 'optimizer_type = "SGD"' in printed
    assert "soft_min_snr_gamma" in printed.split("Resuming: ", 1)[1], "resuming with another value is said"

    output = tmp_path / "out"
    steps = {name: [each for each in logged(output / f"{name}.run") if each["event"] == "StepDone"] for name in NAMES}
    assert steps["added"][0]["loss"] != steps["plain"][0]["loss"], "the setting changes the loss"
    assert [each["lr"]["unet"] for each in steps["added"]] == pytest.approx([math.sqrt(1 - at / 4) for at in range(4)])
    tensors = {name: load_file(output / f"{name}.safetensors") for name in NAMES}
    assert all(torch.equal(tensors["whole"][key], value) for key, value in tensors["halves"].items())
    assert any(not torch.equal(tensors["plain"][key], value) for key, value in tensors["added"].items())
    said = {name: metadata(output / f"{name}.safetensors") for name in NAMES}
    assert said["added"]["ss_soft_min_snr_gamma"] == "2.0" and said["plain"]["ss_soft_min_snr_gamma"] == "None"
    assert "SGD" in said["added"]["ss_optimizer"] and said["added"]["ss_lr_scheduler"] == "square_root"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
