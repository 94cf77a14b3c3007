"""What is refused at the terminal is refused for what it is, by its own name, and with a way out that is one."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.checking import check_run
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.ground.files import write_text
from trainer.ground.safetensors_header import LONGEST_NAME

Capture = pytest.CaptureFixture[str]
posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are a POSIX system's")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def check(ground: tuple[Path, Path], folder: Path, capsys: Capture, *words: str, **changed: object) -> tuple[int, str]:
    """Return the exit code of a check and all that it printed."""
    return check_run(folder, tiny_settings(*ground, folder / "out", **changed), capsys, *words)


# --- what a path leads to ---------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    "key", ["pretrained_model_name_or_path", "vae", "network_weights", "sample_prompts", "train_data_dir"]
)
def test_what_is_no_file_is_not_said_to_be_missing(
    key: str, ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    more = {"sample_every_n_epochs": 1}
    code, printed = check(ground, tmp_path, capsys, **{**more, key: str(pipe)})
    assert code == REFUSED
    assert "is no folder" in printed if key == "train_data_dir" else "it is a pipe and no file" in printed
    assert "there is no" not in printed.lower() and "does not exist" not in printed


@posix
def test_a_device_is_no_model(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    code, printed = check(ground, tmp_path, capsys, pretrained_model_name_or_path="/dev/zero")
    assert (code, "it is a device and no file" in printed) == (REFUSED, True)


@pytest.mark.parametrize("tool", ["verify", "merge"])
def test_a_tool_speaks_of_its_own_arguments(tool: str, tmp_path: Path, capsys: Capture) -> None:
    gone, more = [str(tmp_path / "gone.safetensors")], ["--save_to", str(tmp_path / "x.safetensors"), "--models"]
    assert (
        main([tool, *gone] if tool == "verify" else [tool, *more, *gone, str(tmp_path / "too.safetensors")]) == REFUSED
    )
    printed = capsys.readouterr().err
    assert "gone.safetensors" in printed
    assert "network_weights" not in printed


def test_a_lora_to_begin_from_is_refused_by_its_setting(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    code, printed = check(ground, tmp_path, capsys, network_weights=str(tmp_path / "gone.safetensors"))
    assert (code, printed.startswith("network_weights: ")) == (REFUSED, True)


def test_an_output_folder_is_named_and_not_what_was_tried_in_it(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    code, printed = check(ground, tmp_path, capsys, output_dir=str(tmp_path / "file" / "out"))
    assert code == REFUSED
    assert f"output_dir: cannot write to {str(tmp_path / 'file')!r} (" in printed


def test_a_write_that_fails_names_what_was_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "config.toml"
    with pytest.raises(OSError) as caught:
        write_text(path, "")
    assert caught.value.filename == str(path)


# --- names and metadata of strangers ----------------------------------------------------------------------------------


def test_names_without_end_are_refused_and_entries_are_cut(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "long.safetensors"
    save_file({"x" * LONGEST_NAME: torch.zeros(1)}, path, {"ss_tag_frequency": "y" * 1_000_000})
    assert main(["inspect", str(path)]) == COMPLETED
    printed = capsys.readouterr().out
    assert json.loads(printed)["metadata"]["ss_tag_frequency"].endswith("... (1,000,000 characters)")
    assert len(printed) < 12_000
    for names, entries in (({"x" * 600: torch.zeros(1)}, {}), ({"x": torch.zeros(1)}, {"y" * 600: ""})):
        save_file(names, path, entries)
        for tool in ("inspect", "verify"):
            assert main([tool, str(path)]) == REFUSED
            assert len(capsys.readouterr().err) < 400
    torch.save({"x" * 600: torch.zeros(1)}, tmp_path / "long.ckpt")
    assert main(["inspect", str(tmp_path / "long.ckpt")]) == REFUSED
    assert len(capsys.readouterr().err) < 400


def test_a_lora_of_strange_names_is_told_in_few_words(tmp_path: Path, capsys: Capture) -> None:
    header = {"z" * LONGEST_NAME: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path = tmp_path / "strange.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert main(["verify", str(path)]) == REFUSED
    assert len(capsys.readouterr().err) < 1000


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_state_that_is_not_there_is_said_in_words(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    gone, empty = tmp_path / "gone", tmp_path / "empty"
    empty.mkdir()
    for path, words in ((gone, f"resume: {str(gone)!r} is not there"), (empty, "has no state.json")):
        code, printed = check(ground, tmp_path, capsys, "--resume", str(path))
        assert (code, words in printed) == (REFUSED, True), printed
        assert "Errno" not in printed and "OUTPUT_NAME.run/state" in printed


def test_a_resumption_with_nothing_to_go_on_from_is_said(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    code, printed = check(ground, tmp_path, capsys, "--resume", "auto")
    assert code == COMPLETED
    assert "has no state to go on from; the run begins at step 0." in printed


# --- what is said of settings -----------------------------------------------------------------------------------------


def test_prompts_that_are_not_there_are_not_advised_to_be_drawn(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    settings = {"sample_every_n_epochs": 0, "sample_every_n_steps": 0}
    code, printed = check(ground, tmp_path, capsys, sample_prompts=str(tmp_path / "gone.txt"), **settings)
    assert (code, "the run goes on without these prompts" in printed) == (COMPLETED, True)
    assert "there are prompts" not in printed
    assert "there are prompts" in check(ground, tmp_path, capsys, sample_prompts="a cat", **settings)[1]


def test_sentences_end_once(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "p.toml").write_text('prompt = "a\n')
    prompts = check(ground, tmp_path, capsys, sample_prompts=str(tmp_path / "p.toml"), sample_every_n_epochs=1)[1]
    argument = check(ground, tmp_path, capsys, optimizer_args=["weight_decai=1"])[1]
    once = check(ground, tmp_path, capsys, train_data_dir=str(ground[1] / "reg" / "1_class"))[1]
    for printed in (prompts, argument, once):
        assert not any(end in printed for end in ("..\n", "?.", ".. ")), printed
    assert "its name gives 1 repeat and the class" in once
