"""The Datasets editor: rows that come and go, what is typed in them, and what the form makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import gradio as gr
import pytest

from kohya_gui.form import datasets_form
from kohya_gui.form.presets import PROJECT, Presets, file_text
from kohya_gui.panels.datasets import DatasetsPanel
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.shell.page import Page
from tests.helpers.pictures import write_folder
from trainer.config import load_config


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "train" / "10_sks dog", 2)
    write_folder(tmp_path / "train" / "2_cat", 1)
    write_folder(tmp_path / "reg" / "1_dog", 1)
    presets = Presets(PROJECT / "presets", tmp_path / "own")
    return Session(Folders([PROJECT, tmp_path]), presets, tmp_path / "form.json", patience=600.0)


def told(**data: object) -> gr.EventData:
    return gr.EventData(None, data)


def panel_of(session: Session) -> DatasetsPanel:
    return next(each for each in Page(session).panels if isinstance(each, DatasetsPanel))


def shown(panel: DatasetsPanel, update: dict[object, object]) -> dict[str, object]:
    return cast("dict[str, object]", update[panel.component])


def test_the_folders_in_basic_become_rows(session: Session, tmp_path: Path) -> None:
    session.edit("train_data_dir", str(tmp_path / "train"))
    session.edit("reg_data_dir", str(tmp_path / "reg"))
    panel = panel_of(session)
    assert "no-datasets" in str(shown(panel, panel.desk.form_update())["markup"])
    seen = shown(panel, panel.on_act(told(act="from-folders")))
    (dataset,) = cast("list[dict[str, list[dict[str, object]]]]", session.draft.values["datasets"])
    assert dataset["subsets"] == [
        {"image_dir": str(tmp_path / "train" / "10_sks dog"), "num_repeats": 10, "class_tokens": "sks dog"},
        {"image_dir": str(tmp_path / "train" / "2_cat"), "num_repeats": 2, "class_tokens": "cat"},
        {"image_dir": str(tmp_path / "reg" / "1_dog"), "num_repeats": 1, "class_tokens": "dog", "is_reg": True},
    ]
    assert cast("dict[str, object]", seen["values"])["0.2.is_reg"] is True
    checked = session.draft.check()
    survey = session.survey(checked)
    assert survey is not None and survey.report is not None
    assert [folder.repeats for folder in survey.report.folders] == [10, 2, 1]
    session.draft.take_back()
    assert session.draft.values["datasets"] == []


def test_what_is_typed_is_a_dataset_config(session: Session, tmp_path: Path) -> None:
    panel = panel_of(session)
    panel.on_act(told(act="add-dataset"))
    for key, value in {
        "0.sizes": "512 768x640; 1024",
        "0.batch_size": "2",
        "0.enable_bucket": "off",
        "0.0.image_dir": str(tmp_path / "train" / "2_cat"),
        "0.0.num_repeats": "3",
        "0.0.keep_tokens": "0",
        "0.0.caption_prefix": "{a} <b> & 'c'",
        "0.0.caption_dropout_rate": "0.1",
        "0.0.flip_aug": "on",
    }.items():
        panel.on_edit(told(key=key, value=value))
    config = session.draft.check().config
    assert config is not None
    (dataset,) = config.dataset.datasets
    assert dataset == {
        "batch_size": 2,
        "enable_bucket": False,
        "resolutions": ["512,512", "768,640", "1024,1024"],
        "subsets": [
            {
                "image_dir": str(tmp_path / "train" / "2_cat"),
                "num_repeats": 3,
                "keep_tokens": 0,
                "caption_prefix": "{a} <b> & 'c'",
                "caption_dropout_rate": 0.1,
                "flip_aug": True,
            }
        ],
    }
    (tmp_path / "run.toml").write_text(file_text(config), encoding="utf-8")
    assert load_config(tmp_path / "run.toml").dataset.datasets == config.dataset.datasets
    panel.on_edit(told(key="0.0.flip_aug", value=""))
    panel.on_edit(told(key="0.sizes", value="640"))
    values = datasets_form.shown_values(session.draft.values["datasets"])
    assert "0.0.flip_aug" not in values and values["0.sizes"] == "640"
    assert "resolutions" not in cast("list[dict[str, object]]", session.draft.values["datasets"])[0]


def test_what_is_wrong_stands_at_its_row_and_the_rest_is_looked_at(session: Session, tmp_path: Path) -> None:
    panel = panel_of(session)
    session.draft.change({"datasets": datasets_form.with_folder([{"subsets": [{"image_dir": "gone"}]}], 0)})
    panel.on_edit(told(key="0.1.image_dir", value=str(tmp_path / "train" / "2_cat")))
    markup = str(shown(panel, panel.on_edit(told(key="0.1.num_repeats", value="many")))["markup"])
    first, second = markup.split('data-row="0.1"')
    assert "Folder &#x27;gone&#x27; does not exist" in first
    assert "Repeats &quot;many&quot; cannot be used" in second and "whole number" in second
    panel.on_edit(told(key="0.sizes", value="huge"))
    assert shown(panel, panel.on_edit(told(key="0.batch_size", value="0")))["wrong"] == [
        "0.sizes",
        "0.batch_size",
        "0.1.num_repeats",
        "0.0.image_dir",
    ]
    panel.on_edit(told(key="0.sizes", value=""))
    panel.on_edit(told(key="0.batch_size", value=""))
    markup = str(shown(panel, panel.on_act(told(act="remove", key="0.0")))["markup"])
    assert "does not exist" not in markup
    markup = str(shown(panel, panel.on_edit(told(key="0.0.num_repeats", value="4")))["markup"])
    assert 'role="alert"' not in markup


def test_folders_that_the_page_may_not_touch_are_not_looked_at(session: Session) -> None:
    panel = panel_of(session)
    panel.on_act(told(act="add-dataset"))
    markup = str(shown(panel, panel.on_edit(told(key="0.0.image_dir", value="/etc")))["markup"])
    assert 'role="alert"' in markup
    checked = session.draft.check()
    assert checked.config is None
    assert checked.usable is None or checked.usable.dataset.datasets == ()


def test_made_up_events_change_nothing(session: Session) -> None:
    panel = panel_of(session)
    panel.on_act(told(act="add-dataset"))
    before = session.draft.values["datasets"]
    for key in ("", "0", "9.sizes", "0.9.image_dir", "0.0.nothing", "0.subsets", "x.y", "0.0.0.image_dir", None, 5):
        panel.on_edit(told(key=key, value="1"))
        panel.on_edit(told(key=key, value=["x"]))
    for act in ("remove", "add-folder", "nothing"):
        panel.on_act(told(act=act, key="77"))
    assert session.draft.values["datasets"] == before


def test_a_preset_keeps_datasets_and_one_with_pictures_replaces_them(session: Session) -> None:
    session.draft.change({"datasets": [{"subsets": [{"image_dir": "/x"}]}]})
    presets = session.presets.all()
    other = next(preset for name, preset in presets.items() if name != "demo")
    session.apply(other)
    assert session.draft.values["datasets"]
    session.apply(presets["demo"])
    assert session.draft.values["datasets"] == []


def test_the_form_is_kept_with_its_datasets(session: Session, tmp_path: Path) -> None:
    session.draft.change({"datasets": [{"subsets": [{"image_dir": str(tmp_path), "keep_tokens": 2}]}]})
    session.keep_form()
    again = Session(session.folders, session.presets, tmp_path / "form.json")
    assert again.draft.values["datasets"] == session.draft.values["datasets"]
    told_wrong = json.loads((tmp_path / "form.json").read_text())
    told_wrong["values"]["datasets"] = [{"subsets": [{"subsets": [{"subsets": []}]}]}]
    (tmp_path / "form.json").write_text(json.dumps(told_wrong))
    fresh = Session(session.folders, session.presets, tmp_path / "form.json")
    assert fresh.draft.values["datasets"] == []
