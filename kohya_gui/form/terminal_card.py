"""Beside the form: the same training at the terminal, on one device or several."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kohya_gui.form import own_files
from kohya_gui.form.presets import PROJECT, file_text
from kohya_gui.parts.markup import button, copyable, esc
from trainer.config import TrainingConfig, in_labels
from trainer.ground.paths import MOST_TEXT, read_text


def settings_file(config: TrainingConfig) -> Path:
    """Return where the settings of a run are written for the terminal: beside its LoRA."""
    return Path(config.saving.output_dir) / f"{config.saving.output_name}.toml"


def is_written(config: TrainingConfig) -> bool:
    """Say whether the settings file holds these settings."""
    try:
        return read_text(settings_file(config), MOST_TEXT) == file_text(config)
    except (OSError, ValueError):
        return False


def question_before(config: TrainingConfig) -> str:
    """Return what to ask before the settings file is written, or "". Raises ConfigError where it may not be."""
    return own_files.question_before(settings_file(config), file_text(config), keeps_own=False)


def write(config: TrainingConfig) -> None:
    """Write the settings file. Raises ConfigError where it cannot be written."""
    own_files.write(settings_file(config), file_text(config))


def terminal_card(config: TrainingConfig, refusal: str = "") -> str:
    """Return the card with the commands, and a button where their settings file is not written yet."""
    path = str(settings_file(config))
    told = f'<p class="problem" role="alert">{esc(in_labels(refusal))}</p>' if refusal else ""
    if is_written(config):
        file = f'<p class="quiet" role="status">The settings are in <code>{esc(path)}</code>.</p>'
    else:
        words = "The commands read the settings from a file, which is not written yet, or says something else."
        file = f'<p class="quiet">{words}</p><p>{button("write-settings", f"Write {path}")}</p>'
    one = copyable(_line([*_launch(), "train", path]))
    two = copyable(_line([*_torchrun(2), "train", path]))
    return (
        '<details class="card terminal" id="terminal" data-keep="terminal"><summary><h3>At the terminal, on several '
        f"GPUs</h3></summary>{told}{file}<p>This training at the terminal:</p>{one}"
        f"<p>On two GPUs of this computer:</p>{two}"
        f'<p class="quiet">Both in the folder <code>{esc(Path.cwd())}</code>. The batch size counts for each GPU, so '
        "two need half as many steps for the same epochs. "
        '<a href="guide/several" target="_blank" rel="noopener">More, also on several machines</a></p></details>'
    )


def _launch() -> list[str]:
    return ["python", str(PROJECT / "launch.py") if Path.cwd() != PROJECT else "launch.py"]


def _torchrun(processes: int) -> list[str]:
    program = Path(sys.executable).with_name("torchrun.exe" if os.name == "nt" else "torchrun")
    here = Path.cwd() == PROJECT
    found = ["env", f"PYTHONPATH={PROJECT}"] if not here and os.name != "nt" else []
    shown = program.relative_to(PROJECT) if here and program.is_relative_to(PROJECT) else program
    return [*found, str(shown), "--standalone", "--nproc_per_node", str(processes), "-m", "trainer"]


def _line(words: Sequence[str]) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
