"""What strangers named and wrote never steers the terminal: it is shown with escapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.pictures import write_picture
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.settings.toml import encoded

Capture = pytest.CaptureFixture[str]
posix = pytest.mark.skipif(sys.platform == "win32", reason="such names need a POSIX system")

STEERING = "\x1b[2J\x9b31m\x07\x08\x7f\u202e\u2066"
"""Clears the screen, colours, rings, steps back, turns the direction of writing."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def write_run(ground: tuple[Path, Path], folder: Path, **changed: object) -> Path:
    lines = [f"{key} = {encoded(value)}" for key, value in tiny_settings(*ground, folder / "out", **changed).items()]
    path = folder / "RUN.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def harmless(capsys: Capture) -> str:
    """Return what was printed, having seen that nothing in it steers a terminal."""
    out, err = capsys.readouterr()
    steering = [each for each in out + err if unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in STEERING[-2:]]
    assert set(steering) <= {"\n"}
    return out + err


@posix
def test_names_and_prompts_in_a_plan(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "train" / f"1_{STEERING}"
    write_picture(folder / f"a{STEERING}.png", caption="a")
    (folder / f"torn{STEERING}\nLeft out nothing.png").write_bytes(b"none")
    write_picture(tmp_path / "train" / f"none{STEERING}" / "b.png", caption="b")
    run = write_run((ground[0], tmp_path), tmp_path, sample_prompts=f"a{STEERING} --x 3", sample_every_n_epochs=1)
    assert main(["train", str(run), "--check"]) == COMPLETED
    printed = harmless(capsys)
    assert r"\u001b[2J\u009b31m\u0007\u0008\u007f\u202e\u2066" in printed
    assert r"\u000aLeft out nothing" in printed


@posix
@pytest.mark.parametrize(
    "words",
    [
        ["train", f"RUN{STEERING}.toml"],
        ["train", "RUN.toml", f"--set={STEERING}=1"],
        ["train", "RUN.toml", f"--set=lr_scheduler={STEERING}"],
        ["train", "RUN.toml", f"--set=output_name={STEERING}"],
        ["train", "RUN.toml", f"--{STEERING}"],
        ["train", "RUN.toml", STEERING],
        ["train", "RUN.toml", "--check", f"--set=train_data_dir={STEERING}"],
        ["inspect", f"gone\u202e{STEERING}"],
        ["inspect", "gone\u202e"],
    ],
)
def test_words_of_the_command_line(
    ground: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    words: list[str],
) -> None:
    write_run(ground, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(words) == REFUSED
    assert harmless(capsys).strip()


def test_a_command_that_there_is_not(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([f"train{STEERING}"])
    assert "train" in harmless(capsys)


def test_metadata_of_a_file_stays_json(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"ss_title": f"{STEERING}\n\u2028"})
    assert main(["inspect", str(path)]) == COMPLETED
    assert json.loads(harmless(capsys))["metadata"]["ss_title"] == f"{STEERING}\n\u2028"


def test_what_libraries_log(project: Path) -> None:
    program = (
        "import logging; from trainer.__main__ import start_logging; start_logging();"
        f"logging.getLogger('diffusers').warning({STEERING!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=project)
    assert done.stderr.decode().startswith(r"WARNING diffusers: \u001b[2J")


@posix
def test_a_run_shows_its_files_so_too(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "o\u202e\u2066\u200e"
    run = write_run(ground, tmp_path, max_train_steps=1, output_dir=str(output))
    assert main(["train", str(run)]) == COMPLETED
    assert r"o\u202e\u2066" in harmless(capsys)
    assert os.path.exists(output / "tiny.safetensors")
