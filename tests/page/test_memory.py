"""Runs one after another in the program: what one leaves behind the next one need not bear."""

from __future__ import annotations

import gc
import itertools
import json
import os
from pathlib import Path

import psutil
import pytest

from kohya_gui.form.presets import PROJECT, Presets
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from tests.helpers.runs import RunServer, exit_code

SETTLED = 4
"""Runs after which memory has to be flat: by then everything was loaded and every precision used."""
FLAT = 50_000_000
PRECISIONS = ("no", "bf16", "fp16")
PATIENCE = 300


def memory_of_runs(count: int, folder: Path) -> list[int]:
    """Train `count` times as the page does, at changing precision, and return the bytes in memory after each run."""
    os.chdir(folder)
    session = Session(Folders([PROJECT, folder]), Presets(PROJECT / "presets", folder / "own"))
    session.draft.change({"max_train_steps": 2, "max_train_epochs": None, "lr_warmup_steps": 0, "reg_data_dir": ""})
    session.draft.change({"sample_prompts": "a sks emblem --w 64 --h 64 --s 2", "sample_at_first": True})
    held = []
    for precision in itertools.islice(itertools.cycle(PRECISIONS), count):
        session.draft.change({"mixed_precision": precision})
        run = session.start()
        run.join(PATIENCE)
        assert run.snapshot.status == "finished", run.snapshot
        gc.collect()
        held.append(psutil.Process().memory_info().rss)
    return held


def write_memory_of_runs(count: int, folder: Path) -> None:
    """Write what `memory_of_runs` returns, in this process, which is meant to be a child of its own."""
    (folder / "held.json").write_text(json.dumps(memory_of_runs(count, folder)))


def check(count: int, folder: Path) -> None:
    """Fail where the runs after the first few hold more and more; in a process that trains nothing else."""
    process = RunServer().context.Process(target=write_memory_of_runs, args=(count, folder))
    process.start()
    assert exit_code(process) == 0
    held = json.loads((folder / "held.json").read_text())
    later = held[SETTLED - 1 :]
    assert max(later) - later[0] < FLAT, [f"{each / 1e6:.0f} MB" for each in held]


@pytest.mark.slow
def test_memory_stays_flat_over_six_runs(tmp_path: Path) -> None:
    check(6, tmp_path)


@pytest.mark.thorough
def test_memory_stays_flat_over_twenty_runs(tmp_path: Path) -> None:
    check(20, tmp_path)
