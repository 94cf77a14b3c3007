"""What stands beside the form and in the training tab, from snapshots of whole runs."""

from __future__ import annotations

import html
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import gradio as gr
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from kohya_gui.form import opening
from kohya_gui.form.draft import Draft, defaults
from kohya_gui.form.plan_panel import plan_panel
from kohya_gui.form.preset_card import LIST
from kohya_gui.form.presets import PROJECT, Preset, Presets
from kohya_gui.panels.desk import Panel
from kohya_gui.panels.fields import BasicFields
from kohya_gui.panels.news import News
from kohya_gui.panels.plan import PlanPanel
from kohya_gui.panels.presets import PresetPanel
from kohya_gui.panels.run import RunsPanel
from kohya_gui.panels.undo import UndoPanel
from kohya_gui.parts.charts import Line, chart
from kohya_gui.parts.folders import Folders
from kohya_gui.parts.served import Pictures
from kohya_gui.session import Session, View
from kohya_gui.shell.page import Page
from kohya_gui.tools.problems import problems
from kohya_gui.tools.worker import BROKEN, DONE, ENDED, NOT_BEGUN, Work
from kohya_gui.watch import gallery, run_page, run_panel
from tests.helpers.families import TINY
from tests.page.test_opening import RECIPE
from trainer.config import load_config, save_config
from trainer.ground import events
from trainer.ground.errors import ConfigError, Problem
from trainer.results.curves import GROUPS, curves
from trainer.results.run_folder import RunFolder
from trainer.results.snapshot import Board, RunSnapshot, fold
from trainer.run import Run

DEMO = Preset(PROJECT / "presets" / "demo.toml", own=False)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(tmp_path)
    presets = Presets(PROJECT / "presets", tmp_path / "own")
    return Session(Folders([PROJECT, tmp_path]), presets, tmp_path / "form.json", patience=600.0)


Kind = TypeVar("Kind", bound=Panel)


def panel_of(page: Page, kind: type[Kind]) -> Kind:
    """The panel of this kind."""
    return next(each for each in page.panels if isinstance(each, kind))


def told(**data: str) -> gr.EventData:
    """What the page's script says when something is clicked."""
    return gr.EventData(None, data)


def run_of(steps: int, total: int | None = None) -> RunSnapshot:
    """The snapshot of a run after so many steps."""
    total = total or steps
    snapshot = fold(
        RunSnapshot(),
        events.Started(
            folder="/o/x.run", step=0, total_steps=total, total_epochs=1, steps_per_epoch=total, resumed=False
        ),
    )
    for step in range(1, steps + 1):
        done = events.StepDone(
            step=step,
            epoch=1,
            loss=1 / step,
            average_loss=0.1,
            lr={"unet": 1e-4},
            seconds=0.25,
            step_size=1e-5,
            memory=5,
        )
        snapshot = fold(snapshot, done)
    return snapshot


# --- the run --------------------------------------------------------------------------------------------------------


def test_a_refresh_stays_light_after_100_000_steps(session: Session) -> None:
    folder = logged_run(Path("outputs"), "long", 100_000)
    news = Page(session).news
    assert folder.output_name in parts_since(news, 0)[1]["head"]
    with folder.events.open("ab") as log:
        log.write(json.dumps(events.to_record(step_done(100_001))).encode() + b"\n")
    began = time.process_time()
    news._views.clear()
    parts = parts_since(news, 0)[1]
    record = session.view("long").record
    assert record is not None
    drawn = [json.dumps(curves(record, group)) for group in GROUPS]
    assert time.process_time() - began < 0.4, "four groups of curves and the whole page"
    assert sum(map(len, parts.values())) < 100_000
    assert max(map(len, drawn)) < 100_000


def logged_run(output_dir: Path, name: str, steps: int, *more: events.Event) -> RunFolder:
    """Write the log of a run of so many steps, ended by `more`, and return its folder."""
    folder = RunFolder(output_dir, name)
    folder.make()
    began = events.Started(
        folder=str(folder.path), step=0, total_steps=steps, total_epochs=1, steps_per_epoch=steps, resumed=False
    )
    told = (began, *(step_done(step) for step in range(1, steps + 1)), *more)
    folder.events.write_text("".join(json.dumps(events.to_record(event)) + "\n" for event in told))
    return folder


def parts_since(news: News, number: int) -> tuple[int, dict[str, str]]:
    """What a page that has the news up to `number` is told: the newest number, and the parts that changed."""
    answer = news.since(number)
    assert answer is not None
    return cast(int, answer["number"]), cast(dict[str, str], answer["parts"])


class Watched:
    """A run that is under way for as long as a test says, to stand where a session's run does."""

    def __init__(self) -> None:
        self.board, self.alive = Board(), True

    @property
    def snapshot(self) -> RunSnapshot:
        return self.board.snapshot


@pytest.fixture
def watched(session: Session) -> Watched:
    run = Watched()
    session.run = cast(Run, run)
    run.board.post(
        events.Started(folder="/o/x.run", step=0, total_steps=9, total_epochs=1, steps_per_epoch=9, resumed=False)
    )
    return run


def step_done(step: int) -> events.StepDone:
    return events.StepDone(step=step, epoch=1, loss=0.5, average_loss=0.5, lr={"unet": 1e-4}, seconds=0.25)


def test_a_page_is_told_only_what_is_newer_than_what_it_has(session: Session, watched: Watched) -> None:
    news = Page(session).news
    number, parts = parts_since(news, 0)
    of_a_run = {"head", "message", "verdict", "curves", "samples", "files", "tried", "pictures", "settings"}
    of_a_run |= {"notes", "log"}
    assert set(parts) == {"bar", "form-note", "memory", "runs", "queue", "series", "tool", LIST, *of_a_run}
    assert news.since(number) is None
    watched.board.post(events.Warned(message="Look out"))
    newer, parts = parts_since(news, number)
    assert set(parts) == {"message"}
    assert newer > number
    other, parts = parts_since(news, 0)
    assert other == newer and "Look out" in parts["message"]


def test_who_types_during_a_run_is_told_that_it_is_for_the_next_one(session: Session, watched: Watched) -> None:
    news = Page(session).news
    number, parts = parts_since(news, 0)
    assert "A run is under way. Changes here are for the next one." in parts["form-note"]
    watched.alive = False
    assert parts_since(news, number)[1]["form-note"] == ""


def test_a_paused_run_that_is_told_to_end_is_shown_as_ending_until_it_has(session: Session, watched: Watched) -> None:
    news = Page(session).news
    watched.board.post(step_done(4))
    watched.board.post(events.Paused(step=4, phase="drawing samples", saved=True, device_free=True))
    assert "Paused after step 4, while drawing samples. The state is saved" in parts_since(news, 0)[1]["message"]
    for to_the_end, shown in ((False, "Training"), (True, "Aborting")):
        news.say("Aborting", to_the_end=to_the_end)
        watched.board.post(events.Resumed(step=4))
        assert f">{shown}<" in parts_since(news, 0)[1]["bar"]
        watched.board.post(events.Paused(step=4, saved=True, device_free=True))
    watched.alive = False
    assert "Aborting" not in parts_since(news, 0)[1]["bar"]


def test_before_a_run_has_its_folder_its_page_says_that_it_is_being_prepared(session: Session) -> None:
    run = Watched()
    session.run = cast(Run, run)
    run.board.post(events.Stage(name="loading the model", done=1, total=3))
    parts = parts_since(Page(session).news, 0)[1]
    assert "The run is being prepared." in parts["message"]
    assert "Loading the model: 1 of 3" in parts["bar"]


@pytest.mark.parametrize("end", ["interrupted", "failed", "ended"])
def test_where_no_state_was_saved_none_is_promised(end: str) -> None:
    run = replace(run_of(7), status="interrupted")
    if end == "failed":
        run = fold(run, events.Failed(kind="RunError", message="broken", remedy="", step=7))
    elif end == "ended":
        run = fold(run, events.Finished(step=7, epoch=1, path="", stopped=True, seconds=1.0))
    assert "last saved state" in run_panel.message(run)
    assert "last saved state" not in run_panel.message(run, kept=False)


def test_numbers_of_a_restarted_program_are_higher(session: Session) -> None:
    number, _ = parts_since(Page(session).news, 0)
    time.sleep(0.02)
    assert set(parts_since(Page(session).news, number)[1])
    assert set(parts_since(Page(session).news, number + 10**9)[1]), "the clock was set back"


def test_what_was_asked_for_stands_in_the_bar_until_the_run_answers(session: Session, watched: Watched) -> None:
    watched.board.post(step_done(1))
    news = Page(session).news
    news.say("Stopping")
    number, parts = parts_since(news, 0)
    assert ">Stopping<" in parts["bar"]
    watched.board.post(step_done(2))
    number, parts = parts_since(news, number)
    assert ">Stopping<" in parts["bar"]
    watched.board.post(events.Finished(step=2, epoch=1, path="", stopped=True, seconds=1))
    assert ">Stopped<" in parts_since(news, number)[1]["bar"]
    news.say("Saving", seconds=0)
    assert ">Stopped<" in parts_since(news, 0)[1]["bar"]


def test_the_bar_tells_step_epoch_speed_time_and_memory() -> None:
    bar = run_panel.bar(run_of(100, total=400), busy=True)
    for words in ("100 / 400", "1 / 1", "4.00 it/s", "1 min 15 s", "Training"):
        assert words in bar
    assert 'aria-valuenow="25"' in bar


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "–"), (0.2, "5.00 it/s"), (3.5, "3.50 s/it")])
def test_speed_as_kohyas_console_has_it(seconds: float, text: str) -> None:
    assert run_panel.speed(seconds) == text


@pytest.mark.parametrize(
    ("status", "usable"),
    [
        ("training", {"start", "pause", "stop", "abort", "save-now", "sample-now"}),
        ("preparing", {"start", "pause", "stop", "abort"}),
        ("paused", {"start", "pause", "stop", "abort"}),
    ],
)
def test_buttons_that_would_do_nothing_are_off(status: str, usable: set[str]) -> None:
    controls = run_panel.controls(RunSnapshot(status=status), busy=True)
    assert {name for name, on in controls.items() if on} == usable


def test_without_a_run_only_start_can_be_pressed() -> None:
    controls = run_panel.controls(RunSnapshot(status="finished"), busy=False)
    assert [name for name, on in controls.items() if on] == ["start"]


def test_a_failure_shows_its_remedy_and_offers_to_resume() -> None:
    failed = events.Failed(kind="RunError", message="Out of <memory>.", remedy="Lower the batch size.", step=7)
    words = run_panel.message(fold(run_of(7), failed))
    assert "Out of &lt;memory&gt;." in words
    assert "Lower the batch size." in words
    assert 'data-act="resume"' in words
    assert 'data-act="resume-form"' in words


@pytest.mark.parametrize(("path", "words"), [("/o/x.safetensors", "Done: x.safetensors"), ("", "without a file")])
def test_a_finished_run_says_what_to_do_next(path: str, words: str) -> None:
    finished = events.Finished(step=7, epoch=1, path=path, stopped=not path, seconds=3)
    assert words in run_panel.message(fold(run_of(7), finished))


def test_a_finished_run_names_the_file_that_is_better_than_its_last(session: Session) -> None:
    def judged(name: str, losses: dict[int, float]) -> View:
        more: list[events.Event] = []
        for step, loss in losses.items():
            path = Path("outputs") / f"{name}{'' if step == 6 else f'-step{step:08d}'}.safetensors"
            pictures = {str(place): loss + place / 100 for place in range(4)}
            more.append(events.Validated(step=step, epoch=1, loss=loss, pictures=pictures))
            more.append(events.Saved(kind="lora", path=str(path), step=step, epoch=1, bytes=1))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"1")
        ended = events.Finished(step=6, epoch=1, path=str(path), stopped=False, seconds=1.0)
        logged_run(Path("outputs"), name, 6, *more, ended)
        return session.view(name)

    worse, better = judged("worse", {2: 0.1, 4: 0.12, 6: 0.2}), judged("better", {2: 0.2, 4: 0.12, 6: 0.1})
    assert run_page.better_than_final(worse) == "worse-step00000002.safetensors"
    assert run_page.better_than_final(better) == ""
    message = parts_since(Page(session).news, 0)[1]["message"]
    assert "an earlier file is better" not in message, "the newest run's"
    (Path("outputs") / "worse-step00000002.safetensors").unlink()
    assert run_page.better_than_final(worse) == "worse-step00000004.safetensors", "of those that are there"
    assert "better: worse-step" in run_panel.message(worse.snapshot, run_page.better_than_final(worse))


def test_samples_stand_by_prompt_and_step(session: Session, tmp_path: Path) -> None:
    snapshot = run_of(3)
    for step in (0, 2):
        for index, prompt in enumerate(("a cat --w 64", "a {dog}")):
            path = tmp_path / f"{step}-{index}.png"
            snapshot = fold(
                snapshot, events.SampleReady(path=str(path), step=step, epoch=0, index=index, prompt=prompt)
            )
    shown = gallery.samples(View(snapshot), session.pictures, session.folders)
    assert shown.count('class="grid-row"') == 2
    assert shown.count("<img") == 4
    assert shown.index("base model") < shown.index("step 2")
    assert shown.index("a cat") < shown.index("a &#123;dog&#125;")
    assert str(tmp_path) not in shown
    ready = events.SampleReady(path=str(tmp_path / "new.png"), step=4, epoch=0, index=0, prompt="a bird")
    shown = gallery.samples(View(fold(snapshot, ready)), session.pictures, session.folders)
    assert shown.count('class="grid-row"') == 3, "another prompt in the same place is another row"
    assert shown.count('class="no-sample"') == 4


def test_every_event_that_matters_has_its_line() -> None:
    quiet = {"Stage", "StepDone"}
    examples = {
        "Started": events.Started(folder="f", step=0, total_steps=1, total_epochs=1, steps_per_epoch=1, resumed=True),
        "EpochDone": events.EpochDone(epoch=1, step=1, loss=0.1),
        "Saved": events.Saved(kind="lora", path="x", step=1, epoch=1, bytes=3),
        "SampleReady": events.SampleReady(path="x", step=1, epoch=1, index=0, prompt="p"),
        "Validated": events.Validated(step=1, epoch=1, loss=0.1),
        "PromptsChanged": events.PromptsChanged(step=1, prompts="p"),
        "Warned": events.Warned(message="m"),
        "Paused": events.Paused(step=1),
        "Resumed": events.Resumed(step=1),
        "Finished": events.Finished(step=1, epoch=1, path="x", stopped=False, seconds=1),
        "Failed": events.Failed(kind="k", message="m", remedy="", step=1),
    }
    assert set(examples) | quiet == set(events.KINDS)
    assert all(run_panel.line(event) for event in examples.values())
    of_base = events.Validated(step=0, epoch=0, loss=0.2, base=True)
    assert run_panel.line(of_base) == "Validation loss of the model without the LoRA: 0.2000"
    table = events.Validated(step=1, epoch=1, loss=0.3, on="table")
    assert not run_panel.line(table) and not run_panel.line(replace(table, base=True))


@pytest.mark.parametrize("values", [[1.0], [0.5, 0.5], [1.0, float(10**9), 0.1], []])
def test_a_chart_draws_any_values_inside_its_frame(values: list[float]) -> None:
    drawn = chart("Loss", [Line(range(1, len(values) + 1), values, "raw")], last=10)
    points = drawn.partition('points="')[2].partition('"')[0].split()
    assert all(0 <= float(x) <= 602 and 0 <= float(y) <= 160 for x, y in (point.split(",") for point in points))
    assert bool(points) == bool(values)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_shows_the_sum_the_exact_steps_and_the_strength(session: Session) -> None:
    checked = session.draft.check()
    survey = session.survey(checked)
    assert survey is not None and survey.timetable is not None
    words = plan_panel(checked, survey)
    assert f'id="total-steps">{survey.timetable.total_steps}<' in words
    assert "images × repeats" in words
    assert "alpha ÷ rank = 8 ÷ 8" in words
    assert survey.plan is not None
    assert survey.rates == survey.plan.rates
    assert survey.plan.model in words


def test_the_plan_shows_what_each_block_gets(session: Session) -> None:
    session.draft.change({"down_lr_weight": "zeros", "mid_lr_weight": "0.5"}, "Blocks")
    checked = session.draft.check()
    survey = session.survey(checked)
    assert survey is not None and survey.plan is not None
    words = plan_panel(checked, survey)
    middle = words.partition(", middle</th>")[2].partition("</tr>")[0]
    rate = survey.plan.rates["unet"]
    assert f"<td>{rate / 2:g}</td>" in middle
    assert "<td>8</td>" in middle
    down = words.partition(", down 1</th>")[2].partition("</tr>")[0]
    assert "<td>0 of " in down


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    """A file with the tensor names of the published SDXL and nothing in them, for all that reads headers only."""
    tensors = {key: torch.zeros(1) for key in TINY["sdxl"].original()}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1, 4, 1, 1)
    save_file(tensors, tmp_path / "sd_xl.safetensors")
    return tmp_path / "sd_xl.safetensors"


def test_the_form_follows_the_recognised_model_and_changes_nothing_by_itself(session: Session, sdxl: Path) -> None:
    session.draft.edit("model_family", "sd15")
    before = session.draft.values
    session.draft.edit("pretrained_model_name_or_path", str(sdxl))
    checked = session.draft.check()
    survey = session.survey(checked)
    assert session.draft.values == {**before, "pretrained_model_name_or_path": str(sdxl)}
    shown = session.shown(checked, survey)
    notes, offers = shown["notes"], session.offers(survey)
    assert isinstance(notes, dict)
    assert "two text encoders" in notes["text_encoder_lr"]
    assert "last layer but one" in notes["clip_skip"]
    assert [offer.values for offer in offers if offer.values] == [{"resolution": "1024,1024"}]
    assert next(offer.preset for offer in offers if offer.preset) == "sdxl-character"
    assert all(offer.preset in session.presets.all() for offer in offers if offer.preset)
    # The form says sd15; that this file is another is told at the field, with the way out.
    assert survey is not None
    assert [(problem.key, problem.remedy) for problem in survey.problems] == [
        ("model_family", {"model_family": "auto"})
    ]


def test_an_offer_is_taken_with_a_click_and_a_preset_is_only_shown(session: Session, sdxl: Path) -> None:
    page = Page(session)
    session.draft.edit("pretrained_model_name_or_path", str(sdxl))
    basic = panel_of(page, BasicFields)
    before = session.draft.values
    basic.on_act(told(act="offer", name="resolution"))
    assert session.draft.values["resolution"] == "1024,1024"
    undo = panel_of(page, UndoPanel)
    undo.on_act(told(act="undo"))
    assert session.draft.values == before
    assert "Set Resolution to 1024,1024" in undo.on_act(told(act="redo"))[undo.component]
    assert session.draft.values["resolution"] == "1024,1024"
    update = basic.on_act(told(act="offer", name="preset-sdxl-style"))
    assert "Apply changes" in update[panel_of(page, PresetPanel).choice]
    assert session.draft.base_name == "demo"
    before = session.draft.values
    basic.on_act(told(act="offer", name="preset-no-such"))
    assert session.draft.values == before


def test_each_text_encoder_has_its_rate_beside_the_form(session: Session, sdxl: Path) -> None:
    for key, text in {
        "pretrained_model_name_or_path": str(sdxl),
        "model_family": "auto",
        "train_data_dir": "",
        "text_encoder_lr": "5e-5, 2e-5",
        "network_alpha": "4",
    }.items():
        session.draft.edit(key, text)
    checked = session.draft.check()
    words = plan_panel(checked, session.survey(checked))
    assert "<th>Text encoder 2</th><td>2e-5</td><td>1e-5</td>" in words
    assert "Stable Diffusion XL" in words


def test_what_the_demo_left_behind_is_told_and_cleared_with_a_click(session: Session, tmp_path: Path) -> None:
    assert session.shown(session.draft.check(), None)["offers"] == {}
    page = Page(session)
    session.draft.edit("train_data_dir", str(tmp_path))
    shown = session.shown(session.draft.check(), None)
    notes, offers = shown["notes"], shown["offers"]
    assert isinstance(notes, dict) and isinstance(offers, dict)
    assert "toy model" in notes["pretrained_model_name_or_path"]
    assert set(offers) == {"reg_data_dir", "sample_prompts"}
    for key in offers:
        panel_of(page, BasicFields).on_act(told(act="offer", name=f"clear-{key}"))
        assert session.draft.values[key] == ""
    assert session.shown(session.draft.check(), None)["offers"] == {}


@pytest.mark.parametrize("way", ["recipe", "preset"])
def test_a_recipe_and_a_preset_over_the_demo_stay_where_its_model_goes(
    session: Session, tmp_path: Path, sdxl: Path, way: str
) -> None:
    if way == "recipe":
        text = json.dumps({**RECIPE, "LoRA_type": "LyCORIS/LoKr", "optimizer": "Prodigy"})
        found = opening.opening("x", opening.of_text("a.json", text, session.folders), session.draft.values)
        number = session.openings.keep(found)
        panel_of(Page(session), PresetPanel).answered({"act": "open-agreed", "number": number})
    else:
        session.apply(next(each for name, each in session.presets.all().items() if name != "demo"))
    laid, name = session.draft.values, session.draft.base_name
    assert laid["train_data_dir"] == session.draft.base["train_data_dir"] == DEMO.values()["train_data_dir"]
    session.edit("network_alpha", "5")
    session.edit("pretrained_model_name_or_path", str(sdxl))
    own = {"pretrained_model_name_or_path": str(sdxl), "network_alpha": 5.0}
    gone = {key: defaults()[key] for key in ("train_data_dir", "reg_data_dir")}
    left = session.draft.values
    assert {key: left[key] for key in (*own, *gone)} == {**own, **gone}
    dropped = {key for key, value in left.items() if value != laid[key]} - own.keys()
    assert all(laid[key] == DEMO.values()[key] for key in dropped)
    assert session.draft.base_name == name
    assert {key for key, value in left.items() if value != session.draft.base[key]} == own.keys()


def test_a_model_on_the_hub_is_not_taken_for_what_it_may_not_be(session: Session) -> None:
    session.draft.edit("pretrained_model_name_or_path", "somebody/some-sdxl")
    checked = session.draft.check()
    survey = session.survey(checked)
    assert "Stable Diffusion 1.x" not in plan_panel(checked, survey)
    assert session.offers(survey) == []


def test_a_missing_model_leaves_the_steps_in_sight(session: Session) -> None:
    session.draft.edit("pretrained_model_name_or_path", "gone.safetensors")
    checked = session.draft.check()
    survey = session.survey(checked)
    assert survey is not None and survey.timetable is not None
    assert [problem.key for problem in survey.problems] == ["pretrained_model_name_or_path"]
    assert "1 setting needs attention" in plan_panel(checked, survey)


def test_both_a_missing_model_and_missing_pictures_are_told(session: Session) -> None:
    session.draft.edit("pretrained_model_name_or_path", "")
    session.draft.edit("train_data_dir", "")
    survey = session.survey(session.draft.check())
    assert survey is not None
    assert {problem.key for problem in survey.problems} >= {"pretrained_model_name_or_path", "train_data_dir"}


def test_a_scan_is_not_repeated_until_the_folder_changes(session: Session, tmp_path: Path) -> None:
    folder = tmp_path / "p" / "2_a cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "1.png")
    session.draft.edit("train_data_dir", str(tmp_path / "p"))
    first, second = (session.survey(session.draft.check()) for _ in range(2))
    assert first is not None and second is not None
    assert first.report is second.report
    Image.new("RGB", (64, 64)).save(folder / "2.png")
    third = session.survey(session.draft.check())
    assert third is not None and third.report is not None
    assert third.report.train_images == 2


def test_the_settings_for_the_terminal_are_written_and_replace_no_other_file_unasked(
    session: Session, tmp_path: Path
) -> None:
    page, path = Page(session), tmp_path / "outputs" / "demo.toml"
    plan = panel_of(page, PlanPanel)

    def write(*, sure: bool = False) -> str:
        """Click, or say yes to what was asked; return what is shown."""
        said = {"act": "write-settings", "of": "plan"}
        update = page.on_dialog(told(**said)) if sure else plan.on_act(told(**said))
        return html.unescape(str(update.get(plan.component) or update[page.dialog]))

    assert "'outputs' is not there yet" in write()
    assert not path.parent.exists()
    shown = write(sure=True)
    assert "The settings are in <code>outputs/demo.toml</code>" in shown
    assert "--standalone --nproc_per_node 2 -m trainer train outputs/demo.toml" in shown
    assert load_config(path) == session.draft.check().config
    session.draft.edit("network_dim", "6")
    assert "Write outputs/demo.toml" in page.form_update()[plan.component]
    write()
    assert load_config(path).network.network_dim == 6
    path.write_text("# mine\n")
    assert "not of this page" in write()
    assert path.read_text() == "# mine\n"
    write(sure=True)
    assert load_config(path).network.network_dim == 6
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.toml")
    for sure in (False, True):
        assert "what is there is a link" in write(sure=sure)
    assert not (tmp_path / "elsewhere.toml").exists()
    path.unlink()
    path.mkdir()
    assert "what is there is no file" in write()


# --- session, pictures, past runs -----------------------------------------------------------------------------------


def test_the_form_is_there_after_a_restart(session: Session, tmp_path: Path) -> None:
    session.draft.edit("network_dim", "77")
    session.keep_form()
    again = Session(session.folders, session.presets, tmp_path / "form.json")
    assert again.draft.values["network_dim"] == 77
    assert again.draft.base_name == "demo"


DEEP = '{"values": ' + "[" * 100_000 + "]" * 100_000 + ', "base": {}, "name": ""}'


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"values": {}, "base": {}, "name": ""}', "[1]", DEEP],
    ids=["empty", "nothing", "no values", "list", "deep"],
)
def test_a_damaged_form_file_gives_the_demo(session: Session, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    again = Session(session.folders, session.presets, tmp_path / "bad.json")
    assert again.draft.base_name == "demo"


def test_the_list_of_runs_follows_them_whichever_way_they_change(
    session: Session, watched: Watched, tmp_path: Path
) -> None:
    page = Page(session)
    number, parts = parts_since(page.news, 0)
    assert "No earlier runs" in parts["runs"]
    made = RunFolder(tmp_path / "outputs", "made")
    made.make()
    started = (
        '{"event": "Started", "time": 1, "folder": "x", "step": 0, "total_steps": 9, "total_epochs": 1, '
        '"steps_per_epoch": 9, "resumed": false}\n'
    )
    made.events.write_text(started)
    watched.alive = False  # the run ends, and nobody has clicked
    number, parts = parts_since(page.news, number)
    assert "step 0 of 9" in parts["runs"]
    elsewhere = RunFolder(tmp_path / "outputs", "elsewhere")
    elsewhere.make()
    elsewhere.events.write_text(started)
    assert page.news.since(number) is None
    panel_of(page, RunsPanel).look()
    number, parts = parts_since(page.news, number)
    assert "elsewhere" in parts["runs"]
    session.edit("output_dir", str(tmp_path / "others"))
    assert "No earlier runs" in parts_since(page.news, number)[1]["runs"]


def test_a_past_run_lends_its_settings_and_only_listed_ones_resume(session: Session, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "outputs", "old")
    folder.make()
    folder.events.write_text(
        '{"event": "StepDone", "time": 1, "step": 3, "epoch": 1, "loss": 1, "average_loss": 1, '
        '"lr": {}, "seconds": 1}\n'
    )
    save_config(load_config(overrides={"network_dim": 5, "output_name": "old"}), folder.config)
    assert [(run.folder.output_name, run.status, run.step) for run in session.past()] == [("old", "interrupted", 3)]
    assert session.past_named("old").folder.path.resolve() == folder.path
    with pytest.raises(Exception, match="no run named"):
        session.past_named("../../etc")
    page = Page(session)
    session.edit("network_dim", "77")
    panel_of(page, RunsPanel).on_act(told(act="reuse", name="old"))
    assert session.draft.values["network_dim"] == 5
    undo = panel_of(page, UndoPanel)
    assert "The settings of old were taken" in page.form_update()[undo.component]
    undo.on_act(told(act="undo"))
    assert session.draft.values["network_dim"] == 77


def test_a_run_that_names_folders_outside_is_not_looked_at(session: Session, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "outputs", "sly")
    folder.make()
    save_config(load_config(overrides={"train_data_dir": "/etc", "output_name": "sly"}), folder.config)
    config = session.settings_to_resume(folder, with_form=False)
    with pytest.raises(ConfigError, match="outside the folders"):
        session.look_ahead(folder, config)
    with pytest.raises(ConfigError, match="outside the folders"):
        session.resume(folder, config)


def test_pictures_have_names_that_tell_nothing_and_only_pictures_are_served(tmp_path: Path) -> None:
    pictures = Pictures()
    path = tmp_path / "one.png"
    address = pictures.full(path)
    assert address == pictures.full(path)
    assert "one" not in address
    assert pictures.thumbnail(path) != address


def test_only_lora_files_are_downloaded_and_only_by_their_name(tmp_path: Path) -> None:
    pictures = Pictures()
    paths = {name: tmp_path / name for name in ("one.safetensors", "one.toml", "one.png", "gone.safetensors")}
    for name in ("one.safetensors", "one.toml", "one.png"):
        paths[name].write_bytes(b"what is inside")
    with TestClient(Starlette(routes=[Route("/pictures/{kind}/{name}", pictures.answer)])) as client:
        answer = client.get("/" + pictures.download(paths["one.safetensors"]))
        assert (answer.status_code, answer.content) == (200, b"what is inside")
        assert "attachment" in answer.headers["content-disposition"]
        for name in ("one.toml", "one.png", "gone.safetensors"):
            assert client.get("/" + pictures.download(paths[name])).status_code == 404
        for address in (pictures.full(paths["one.safetensors"]), pictures.thumbnail(paths["one.safetensors"])):
            assert client.get("/" + address).status_code == 404
        assert client.get(f"/pictures/file/{paths['one.safetensors']}").status_code == 404


def test_undoing_everything_keeps_the_base(tmp_path: Path) -> None:
    draft = Draft(Folders([PROJECT, tmp_path]))
    draft.lay({**draft.values, **DEMO.values()}, "demo")
    draft.edit("network_dim", "99")
    draft.lay(draft.base, draft.base_name)
    assert draft.values["network_dim"] == 8


def test_what_is_wrong_with_a_tools_work_is_an_alert_unless_it_was_stopped() -> None:
    said = (Problem("", "Stopped while drawing pictures (1 of 4)."),)
    assert problems(Work(status=ENDED, problems=said)).startswith('<div class="quiet" role="status"><p>Stopped while')
    assert problems(Work(status=NOT_BEGUN, problems=said)).startswith('<div class="problem-box" role="alert">')
    broken = problems(Work(status=BROKEN))
    assert 'role="alert"' in broken and "the terminal has the details" in broken
    assert problems(Work(status=DONE)) == ""
