"""Surveys beside the form: no handler looks at pictures itself, and what takes long is told of once it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kohya_gui.form import surveyor
from kohya_gui.form.draft import Checked
from kohya_gui.form.plan_panel import plan_panel
from kohya_gui.form.presets import PROJECT, Presets
from kohya_gui.form.surveyor import Surveyor
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.shell.page import Page
from trainer.config import TrainingConfig, load_config
from trainer.faststart import libraries
from trainer.ground.errors import ConfigError
from trainer.pictures.report import DatasetReport
from trainer.pictures.scan import scan
from trainer.results.run_folder import RunFolder
from trainer.schedules import torch_classes

LONG = 600.0


class Slow:
    """A scan that waits until it is let go, and keeps by which thread and of what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []
        self.folders: list[str] = []
        monkeypatch.setattr(surveyor, "scan", self)

    def __call__(self, config: TrainingConfig, progress: Callable[[str, int, int], None]) -> DatasetReport:
        self.threads.append(threading.current_thread())
        self.folders.append(Path(config.dataset.train_data_dir).name)
        self.begun.set()
        while not self.go.wait(0.01):
            progress("", 0, 1)
        return scan(config, progress)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Slow:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "1.png")
    return Slow(monkeypatch)


def of(folder: Path, **settings: object) -> TrainingConfig:
    return load_config(None, {"train_data_dir": str(folder), **settings})


def answered(asked: Surveyor) -> None:
    """Wait until the last question is answered, and whoever waits for it told."""
    assert asked._newest is not None
    asked._newest.answer.result(LONG)
    with asked._at_work:
        return


def test_what_takes_long_is_told_of_once_it_is_there(slow: Slow, tmp_path: Path) -> None:
    quick, patient = Surveyor(0.0), Surveyor(LONG)
    first = quick.survey(of(tmp_path / "a"))
    assert first.counting and first.report is None
    slow.begun.wait(LONG)
    other = quick.survey(of(tmp_path / "a", network_dim=5))
    assert other.counting, "another question, about the same pictures"
    slow.go.set()
    quick._patience = LONG
    found = quick.survey(of(tmp_path / "a", network_dim=5))
    assert not found.counting and found.counts is not None and found.config.network.network_dim == 5
    assert slow.folders == ["a"], "the pictures are looked at once"
    assert quick.revision >= 1
    assert patient.survey(of(tmp_path / "a")).counts is not None
    assert patient.revision == 0, "an answer in time is nothing new"
    assert threading.current_thread() not in slow.threads


def test_folders_that_are_no_longer_chosen_are_not_looked_at_any_further(slow: Slow, tmp_path: Path) -> None:
    asked = Surveyor(0.0)
    asked.survey(of(tmp_path / "a"))
    slow.begun.wait(LONG)
    asked.survey(of(tmp_path / "b"))
    asked._patience = LONG
    slow.begun.clear()
    slow.go.set()
    found = asked.survey(of(tmp_path / "b"))
    assert found.report is not None and found.report.folders[0].path.name == "b"
    assert slow.folders == ["a", "b"]
    assert asked.revision >= 1, "whoever still shows the first one asks again"


def test_a_slow_answer_holds_until_a_folder_changes(slow: Slow, tmp_path: Path) -> None:
    asked = Surveyor(0.0)
    config = of(tmp_path / "a")
    asked.survey(config)
    slow.go.set()
    answered(asked)
    told = asked.revision
    assert told == 1
    again = asked.survey(config)
    assert not again.counting and asked.survey(config).report is again.report
    answered(asked)
    assert asked.revision == told, "the same is nothing new, or pages would ask for ever"
    Image.new("RGB", (64, 64)).save(tmp_path / "a" / "2.png")
    slow.go.clear()
    asked.survey(config)
    slow.go.set()
    answered(asked)
    assert asked.revision == told + 1
    later = asked.survey(config)
    assert later.report is not None and later.report.train_images == 2


def test_no_handler_looks_at_pictures_itself(slow: Slow, tmp_path: Path) -> None:
    presets = Presets(PROJECT / "presets", tmp_path / "own")
    session = Session(Folders([PROJECT, tmp_path]), presets, patience=0.01)
    page = Page(session)
    session.edit("train_data_dir", str(tmp_path / "a"))
    shown = "".join(map(str, page.form_update().values()))
    assert shown.count("Counting the pictures") == 2, "among the steps and among the pictures"
    before = page.news.since(0)
    session.edit("network_dim", "5")
    page.opened()
    with pytest.raises(ConfigError, match="still being counted"):
        session.look_ahead(RunFolder(tmp_path, "x"), of(tmp_path / "a"))
    slow.go.set()
    session._surveyor._patience = LONG
    page.form_update()
    answered(session._surveyor)
    shown = "".join(map(str, page.form_update().values()))
    assert "Counting the pictures" not in shown and 'id="total-steps"' in shown
    after = page.news.since(0)
    assert before is not None and after is not None and after["form"] != before["form"], "open pages draw it again"
    assert threading.current_thread() not in slow.threads


def test_a_schedule_of_pytorch_is_gone_through_aside_once_pytorch_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second import beside the one ahead of a run would leave both with halves of it, and every run failing."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "a" / "1.png")
    done: list[tuple[str, threading.Thread]] = []
    simulated = torch_classes.simulated

    def gone_through(*given: Any) -> object:
        done.append(("gone through", threading.current_thread()))
        return simulated(*given)

    monkeypatch.setattr(torch_classes, "simulated", gone_through)
    monkeypatch.setattr(libraries, "load", lambda: done.append(("loaded", threading.current_thread())))
    settings = {"lr_scheduler_type": "ExponentialLR", "lr_scheduler_args": ["gamma=0.5"], "max_train_steps": 3}
    asked = Surveyor(LONG)
    found = asked.survey(of(tmp_path / "a", **settings))
    shown = plan_panel(Checked(found.config, found.config, (), {}), found)
    assert found.curve is not None and found.curve.values == pytest.approx([1e-4, 5e-5, 2.5e-5])
    assert "ExponentialLR" in shown
    assert [what for what, _ in done] == ["loaded", "gone through"]
    assert threading.current_thread() not in {thread for _, thread in done}
    long = asked.survey(of(tmp_path / "a", **{**settings, "max_train_steps": 100_000_000}))
    assert long.curve is not None and "is not drawn over more than 100,000 steps" in long.curve.instead
    came = {**settings, "optimizer_type": "CAME", "lr_scheduler_type": "OneCycleLR"}
    args = ["max_lr=1e-4", "total_steps=9"]
    assert not asked.survey(of(tmp_path / "a", **{**came, "lr_scheduler_args": args})).counting
