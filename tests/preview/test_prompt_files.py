"""Sample prompts from files: what is read, what is refused by name, and what does not stop a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.checking import check_run
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_config, tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, REFUSED
from trainer.preview.prompts import SamplePrompt, read_prompts
from trainer.settings.kohya import names_a_file

Capture = pytest.CaptureFixture[str]
Check = Callable[..., tuple[int, str]]

TOML = """
[prompt]
width = 96
negative_prompt = "ugly"
scale = 5

[[prompt.subset]]
prompt = "a cat"

[[prompt.subset]]
prompt = "a dog --w 32"
width = 128
height = 64
seed = 7
sample_steps = 3
sample_sampler = "ddim"
guidance_scale = 3.5
colour = "red"
"""
TABLES = (
    SamplePrompt("a cat", "ugly", width=96, scale=5.0),
    SamplePrompt(
        "a dog --w 32", "ugly", 128, 64, 7, 5.0, 3, "ddim", others=(("guidance_scale", 3.5),), ignored=("colour",)
    ),
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


@pytest.fixture
def check(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> Check:
    """Return a function that runs `train --check` with these prompts and returns the exit code and what was printed."""

    def run(prompts: str, **settings: object) -> tuple[int, str]:
        changed = {"sample_prompts": prompts, "sample_every_n_epochs": 1, **settings}
        return check_run(tmp_path, tiny_settings(*ground, tmp_path / "out", **changed), capsys)

    return run


def read(ground: tuple[Path, Path], tmp_path: Path, name: str, content: str) -> tuple[SamplePrompt, ...]:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return read_prompts(tiny_config(*ground, tmp_path / "out", sample_prompts=f' "{path}" '))


def test_files_of_sd_scripts_are_read(ground: tuple[Path, Path], tmp_path: Path) -> None:
    assert read(ground, tmp_path, "a.toml", TOML) == TABLES
    tables = [
        {"prompt": "a cat", "negative_prompt": "ugly", "width": 96, "scale": 5, "enum": 0, "seed": None},
        {
            "prompt": "a dog --w 32",
            "negative_prompt": "ugly",
            "width": 128,
            "height": 64,
            "seed": 7,
            "scale": 5.0,
            "sample_steps": 3,
            "sample_sampler": "ddim",
            "guidance_scale": 3.5,
            "colour": "red",
        },
    ]
    assert read(ground, tmp_path, "a.JSON", json.dumps(tables)) == TABLES
    mixed = read(ground, tmp_path, "b.json", json.dumps(["a cat --w 96", "# none", {"prompt": "a dog"}]))
    assert mixed == (SamplePrompt("a cat", width=96), SamplePrompt("a dog"))
    assert read(ground, tmp_path, "a.txt", "\ufeffa cat --w 96\n\n# none\n") == (SamplePrompt("a cat", width=96),)


def test_what_has_no_effect_in_a_table_is_said(tmp_path: Path, check: Check) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    code, printed = check(str(tmp_path / "a.toml"))
    assert code == COMPLETED
    assert "sample_prompts: no effect in 'a dog --w 32': colour, guidance_scale." in printed


WRONG = {
    "empty.toml": ("", "[[prompt.subset]]"),
    "flat.toml": ("prompt = 'a cat'", "[[prompt.subset]]"),
    "broken.toml": ("[prompt", "not valid TOML"),
    "deep.toml": ("a = " + "[" * 3000, "holds no prompts"),
    "table.json": ('{"prompt": "a"}', "a list of prompts"),
    "broken.json": ('[{"prompt": ', "holds no prompts"),
    "deep.json": ("[" * 100_000, "holds no prompts"),
    "nameless.json": ('[{"width": 64}]', "needs the key prompt"),
    "wide.json": ('[{"prompt": "a", "width": "wide"}]', "width = 'wide' cannot be used"),
    "flag.json": ('[{"prompt": "a", "seed": true}]', "seed = True cannot be used"),
    "many.json": ('[{"prompt": ["a", "b"]}]', "prompt = ['a', 'b'] cannot be used"),
    "sampler.json": ('[{"prompt": "a", "sample_sampler": "magic"}]', "'magic' is no sampler"),
    "a.yaml": ("- a cat", "read from .txt, .toml, .json files"),
    "large.txt": ("a" * 1_000_001, "more than 1,000,000 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, check: Check, name: str) -> None:
    content, said = WRONG[name]
    (tmp_path / name).write_text(content)
    code, printed = check(str(tmp_path / name))
    assert code == REFUSED
    assert printed.startswith("sample_prompts: ") and said in printed
    assert len(printed) < 1500


@pytest.mark.parametrize(
    "path",
    ["gone.txt", "gone.toml", "gone.json", "./gone", "~/gone", "/gone", "'gone.txt'", "C:\\a\\gone", "g.csv"],
)
def test_a_file_that_is_not_there_is_never_drawn_as_a_prompt(check: Check, path: str) -> None:
    code, printed = check(path)
    assert code == REFUSED
    assert printed.startswith("sample_prompts: ")


@pytest.mark.parametrize("path", ["gone.toml", "gone.txt", "a.yaml"])
def test_a_prompt_file_that_no_sampling_asks_for_does_not_stop_the_run(check: Check, path: str) -> None:
    code, printed = check(path, sample_every_n_epochs=0)
    assert code == COMPLETED
    assert "Note: sample_prompts: " in printed
    assert "No sample pictures are asked for, so the run goes on without these prompts." in printed
    assert check(path, sample_every_n_epochs=0, sample_every_n_steps=5)[0] == REFUSED
    assert check(path, sample_every_n_epochs=0, sample_at_first=True)[0] == REFUSED


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_pipe_is_no_file_of_prompts(tmp_path: Path, check: Check) -> None:
    os.mkfifo(tmp_path / "a.txt")
    code, printed = check(str(tmp_path / "a.txt"))
    assert code == REFUSED
    assert "it is a pipe and no file" in printed


@pytest.mark.parametrize(
    "text", ["a cat", "a cat\n./b.txt", "girl, red/blue eyes", "1.5 m tall", "a cat --w 64", "", "v1.0 of a cat. md"]
)
def test_prompts_are_no_paths(text: str) -> None:
    assert not names_a_file(text)
