"""Surveys on a thread of their own: whoever asks waits a moment, and no form waits for a hundred thousand pictures.

A survey that takes longer is told of by `revision`, upon which the pages ask again. One scan is made at a time; the one
of folders that are no longer chosen is stopped.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path

from kohya_gui.form.survey import Survey, survey
from trainer.config import TrainingConfig, datasets_of
from trainer.config.datasets import paths_in
from trainer.families import Recognition
from trainer.ground.errors import Stopped
from trainer.pictures.report import DatasetReport
from trainer.pictures.scan import scan

PATIENCE = 0.5
"""Seconds that a form waits for an answer."""


@dataclass(slots=True)
class _Question:
    """Settings that were asked about, the model they name once it is known, and the answer to come."""

    config: TrainingConfig
    recognition: Recognition | None = None
    answer: Future[Survey] = field(default_factory=Future)

    def recognised(self, seen: Recognition | None) -> None:
        self.recognition = seen


class Surveyor:
    """Makes surveys. Remembers the last scan, since only a change of the folders makes a new one necessary."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.revision = 0
        self._patience = patience
        self._lock = threading.Lock()
        self._at_work = threading.Lock()
        self._newest: _Question | None = None
        self._wanted: object = None
        self._seen: tuple[object, DatasetReport] | None = None
        self._slow: tuple[object, Survey] | None = None

    def forget(self) -> None:
        """Scan anew next time: captions may have been edited in place."""
        self._seen = self._slow = None

    def survey(self, config: TrainingConfig) -> Survey:
        """Return what the settings come to; where that takes long, what is known, and `revision` grows once it is."""
        question = self._ask(config)
        last = self._slow[1] if self._slow and self._slow[1].config == config else None
        try:
            return question.answer.result(self._patience)
        except (TimeoutError, CancelledError, Stopped):
            question.answer.add_done_callback(lambda done: self._tell(done, last))
            return last or Survey(config, recognition=question.recognition, counting=True)

    def _ask(self, config: TrainingConfig) -> _Question:
        """Return the newest question, which takes the place of one that waits, unless it is the same."""
        with self._lock:
            newest = self._newest
            if newest and newest.config == config and not newest.answer.done():
                return newest
            self._wanted = _folders(config)
            question = self._newest = _Question(config)
        if newest:
            newest.answer.cancel()
        threading.Thread(target=self._work, args=(question,), name="survey", daemon=True).start()
        return question

    def _tell(self, done: Future[Survey], shown: Survey | None) -> None:
        """Have the pages ask again: what they show is not what was found, or gave way to another question."""
        gave_way = done.cancelled() or isinstance(done.exception(), Stopped)
        if gave_way or done.result() is not shown:
            with self._lock:
                self.revision += 1

    def _work(self, question: _Question) -> None:
        """Answer a question, unless a newer one takes its place before its turn has come."""
        with self._at_work:
            if not question.answer.set_running_or_notify_cancel():
                return
            try:
                question.answer.set_result(self._answer(question))
            except Stopped as stopped:
                question.answer.set_exception(stopped)
            finally:
                if not question.answer.done():
                    words = "Looking at the pictures and the model ended in a fault; the terminal says which."
                    question.answer.set_exception(RuntimeError(words))

    def _answer(self, question: _Question) -> Survey:
        config, began = question.config, time.monotonic()
        folders = _folders(config)
        signature = (folders, _times(config))
        if self._slow and self._slow[0] == signature and self._slow[1].config == config:
            return self._slow[1]

        def report_of(config: TrainingConfig) -> DatasetReport:
            if self._seen is None or self._seen[0] != signature:
                self._seen = (signature, scan(config, lambda phase, done, total: self._go_on(folders)))
            return self._seen[1]

        found = survey(config, report_of, question.recognised)
        self._slow = (signature, found) if time.monotonic() - began > self._patience else None
        return found

    def _go_on(self, folders: object) -> None:
        """Raises Stopped where other folders are asked about by now."""
        if self._wanted != folders:
            raise Stopped("Stopped while looking at pictures: other folders were chosen.")


def _folders(config: TrainingConfig) -> object:
    """Return what a scan is of: folders and how they are read."""
    listed = [
        (
            each.place,
            each.image_dir,
            each.metadata_file,
            each.num_repeats,
            each.class_tokens,
            each.is_reg,
            each.config.captions.caption_extension,
            each.config.captions.caption_separator,
            each.config.captions.enable_wildcard,
            each.config.validation,
        )
        for dataset in datasets_of(config)
        for each in dataset.subsets
    ]
    captions = (config.captions.caption_extension, config.captions.enable_wildcard)
    chosen = (config.dataset.train_data_dir, config.dataset.reg_data_dir)
    return (chosen, listed, captions, config.validation, config.training.seed)


def _times(config: TrainingConfig) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Return when the folders that are chosen, and those directly in them, changed."""
    named = [path for _, path in paths_in(config.dataset.datasets)]
    chosen = (config.dataset.train_data_dir, config.dataset.reg_data_dir, config.validation.val_data_dir)
    return tuple(_changed(folder) for folder in (*chosen, *named) if folder)


def _changed(folder: str) -> tuple[tuple[str, int], ...]:
    """Return the times at which a folder and those directly in it changed."""
    root = Path(folder)
    try:
        if root.is_file():
            return ((str(root), root.stat().st_mtime_ns),)
        inside = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir()]
        return tuple((str(path), path.stat().st_mtime_ns) for path in (root, *sorted(inside)))
    except OSError:
        return ()
