"""The form: every setting has its field, and what a field shows reads back as the value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_gui.form import fields
from kohya_gui.form.advanced_tab import advanced_markup
from kohya_gui.form.basic_tab import basic_markup, basic_settings
from kohya_gui.form.draft import Draft, defaults, payload
from kohya_gui.form.presets import Presets
from kohya_gui.parts.folders import Folders
from kohya_gui.parts.markup import duration, esc, number, size
from kohya_gui.session import Session
from trainer.config import known_settings
from trainer.settings.walk import Setting

SETTINGS = tuple(setting for setting in known_settings().values() if setting.kind != "tables")
MARKUP = {"basic": basic_markup(SETTINGS), "advanced": advanced_markup(SETTINGS)}


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draft:
    monkeypatch.chdir(tmp_path)
    return Draft(Folders([tmp_path]))


def by_key(setting: Setting) -> str:
    return setting.key


@pytest.mark.parametrize("setting", SETTINGS, ids=by_key)
def test_every_setting_has_one_field_with_label_help_and_link(setting: Setting) -> None:
    here, other = MARKUP[setting.show.tab], MARKUP["advanced" if setting.show.tab == "basic" else "basic"]
    assert here.count(f'data-key="{setting.key}"') == 1
    assert f'data-key="{setting.key}"' not in other
    assert f'<label for="{setting.key}">{esc(setting.show.label)}</label>' in here
    assert esc(setting.help) in here
    assert f"guide/settings#{setting.key}" in here


@pytest.mark.parametrize("markup", MARKUP.values(), ids=MARKUP)
def test_no_text_of_a_setting_is_taken_for_a_template(markup: str) -> None:
    assert "{" not in markup and "`" not in markup and "$" not in markup


def test_the_basic_tab_is_in_the_order_that_a_first_lora_needs() -> None:
    basic = [setting for setting in SETTINGS if setting.show.tab == "basic"]
    assert list(basic_settings(SETTINGS)) == sorted(basic, key=lambda setting: setting.show.place)


@pytest.mark.parametrize("setting", SETTINGS, ids=by_key)
def test_a_default_reads_back_as_itself(setting: Setting) -> None:
    default = defaults()[setting.key]
    back = fields.read(setting, fields.write(setting, default))
    # 0 is how an empty field of a setting that 0 switches off is stored.
    assert back == default or (default is None and setting.zero_is_off and back == 0)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15))
def test_any_number_reads_back_as_itself(value: float) -> None:
    assert fields.read(known_settings()["learning_rate"], fields.plain(value)) == value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("learning_rate", " 1e-4 ", 1e-4),
        ("network_dim", "32", 32),
        ("network_dim", "3.5", 3.5),
        ("network_dim", "many", "many"),
        ("text_encoder_lr", "5e-5, 1e-5", [5e-5, 1e-5]),
        ("text_encoder_lr", "0", 0),
        ("unet_lr", "", None),
        ("max_token_length", "150", 150),
        ("max_token_length", "151", "151"),
        ("optimizer_args", "weight_decay=0.1 betas=0.9,0.99", ["weight_decay=0.1", "betas=0.9,0.99"]),
        ("optimizer_args", "betas=(0.9, 0.99)\nd_coef=2", ["betas=(0.9, 0.99)", "d_coef=2"]),
        ("save_every_n_steps", "", 0),
    ],
)
def test_what_is_typed_becomes_a_value_of_its_kind(key: str, text: str, value: object) -> None:
    assert fields.read(known_settings()[key], text) == value


def test_all_wrong_values_are_told_at_once(draft: Draft) -> None:
    for key, text in {"network_dim": "x", "learning_rate": "-1", "train_batch_size": "0", "seed": "1.5"}.items():
        draft.edit(key, text)
    checked = draft.check()
    assert {problem.key for problem in checked.problems} == {"network_dim", "learning_rate", "train_batch_size", "seed"}
    assert checked.config is None
    assert checked.usable is not None


def test_epochs_and_steps_take_each_others_place(draft: Draft) -> None:
    draft.edit("max_train_steps", "500")
    assert draft.values["max_train_epochs"] is None
    draft.edit("max_train_epochs", "7")
    assert draft.values["max_train_steps"] is None
    assert draft.check().problems == ()


def test_undo_returns_to_the_base(draft: Draft) -> None:
    draft.lay({**defaults(), "network_dim": 8}, "mine")
    draft.edit("network_dim", "64")
    shown = payload(draft, draft.check())
    assert shown["undo"] == {"network_dim": "Back to mine: 8"}
    draft.undo("network_dim")
    assert draft.values["network_dim"] == 8


def test_the_payload_is_plain_json_and_hides_what_does_not_matter(draft: Draft) -> None:
    shown = payload(draft, draft.check())
    assert json.loads(json.dumps(shown)) == shown
    hidden = shown["hidden"]
    assert isinstance(hidden, list)
    assert "huber_c" in hidden
    draft.edit("loss_type", "huber")
    again = payload(draft, draft.check())["hidden"]
    assert isinstance(again, list)
    assert "huber_c" not in again


def test_a_taken_name_is_told(draft: Draft, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "lora.safetensors").touch()
    assert draft.check().notes["output_name"] == "lora is there already; the next run will be called lora-2."


def test_a_name_in_the_queue_is_told(tmp_path: Path) -> None:
    presets = Presets(tmp_path / "presets", tmp_path / "own")
    session = Session(Folders([tmp_path]), presets, tmp_path / "own" / "form.json")
    session.draft.lay({**defaults(), "output_dir": str(tmp_path / "out"), "output_name": "cat"}, "")
    assert session.draft.check().notes["output_name"].startswith("The LoRA becomes")
    before = session.form_revision
    assert session.draft.check().config is not None
    entry = session.queue.add(session.draft.check().config)
    assert (
        session.draft.check().notes["output_name"] == "cat is in the queue already; the next run will be called cat-2."
    )
    assert (after := session.form_revision) > before, "every tab is told"
    assert session.form_revision == after
    session.queue.remove(entry.key)
    assert session.draft.check().notes["output_name"].startswith("The LoRA becomes")
    assert session.form_revision > after


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (12345, "12,345"), (0, "0"), (0.5, "0.5")]
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


def test_sizes_and_durations_as_people_write_them() -> None:
    assert [size(count) for count in (12, 37_900_000, 2_300_000_000)] == ["12 B", "37.9 MB", "2.3 GB"]
    assert [duration(count) for count in (45, 200, 7500)] == ["45 s", "3 min 20 s", "2 h 05 min"]
