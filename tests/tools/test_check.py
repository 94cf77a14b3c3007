"""`train --check` refuses what `train` would refuse, and writes nothing; names of any length cost one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.settings.toml import encoded

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def write_run(ground: tuple[Path, Path], folder: Path, **changed: object) -> str:
    values = tiny_settings(*ground, folder / "out", **changed)
    path = folder / "RUN.toml"
    path.write_text("\n".join(f"{key} = {encoded(value)}" for key, value in values.items()), encoding="utf-8")
    return str(path)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_check_says_what_training_would(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    run = write_run(ground, tmp_path, max_train_steps=2)
    assert main(["train", run]) == COMPLETED
    before = files(tmp_path)
    for words, said in (
        ([], "output_name: 'tiny' was trained already"),
        (["--resume", str(tmp_path / "nowhere")], "nowhere"),
        (["--resume", "auto", "--set", "network_dim=8"], "network_dim"),
        (["--resume", str(tmp_path / "out" / "tiny.run" / "state"), "--set", "output_name=b"], "state"),
    ):
        capsys.readouterr()
        assert main(["train", run, "--check", *words]) == REFUSED, words
        printed = capsys.readouterr().err
        assert said in printed and "Traceback" not in printed
        assert main(["train", run, *words]) == REFUSED, "a check that is stricter than training"
        assert files(tmp_path) == before
    for words, said in (
        (["--overwrite"], ""),
        (["--resume", "auto", "--set", "max_train_steps=4"], "Resuming: "),
        (["--set", "output_name=other"], ""),
    ):
        capsys.readouterr()
        assert main(["train", run, "--check", *words]) == COMPLETED, words
        assert said in "".join(capsys.readouterr())
        assert files(tmp_path) == before


def test_a_state_that_was_harmed_is_found_by_the_check(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    run = write_run(ground, tmp_path, max_train_steps=2)
    assert main(["train", run]) == COMPLETED
    for state in (tmp_path / "out" / "tiny.run" / "state").iterdir():
        (state / "optimizer.pt").write_bytes(b"harmed")
    capsys.readouterr()
    assert main(["train", run, "--check", "--resume", "auto"]) == REFUSED
    assert "Traceback" not in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    run = write_run(ground, tmp_path, output_dir=str(tmp_path / "file" / "below"))
    assert main(["train", run, "--check"]) == REFUSED
    assert "output_dir: cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("length", [300, 5000])
def test_names_of_any_length_cost_one_sentence(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    run, name = write_run(ground, tmp_path), "n" * length
    monkeypatch.chdir(tmp_path)
    keys = ("train_data_dir", "reg_data_dir", "output_dir", "pretrained_model_name_or_path", "vae", "network_weights")
    for words in (
        ["inspect", name],
        ["train", name],
        ["export", name],
        ["recode", name],
        ["train", run, "--check", "--resume", name],
        ["train", run, "--check", "--set", f"sample_prompts={name}.txt", "--set", "sample_at_first=true"],
        *(["train", run, "--check", "--set", f"{key}={name}"] for key in keys),
    ):
        capsys.readouterr()
        assert main(words) == REFUSED, words[:4]
        printed = capsys.readouterr().err
        assert printed.strip() and "Traceback" not in printed


def test_a_check_has_the_sum_that_leads_to_the_steps(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    run = write_run(ground, tmp_path, train_batch_size=5, max_train_steps=0, max_train_epochs=2)
    assert main(["train", run, "--check"]) == COMPLETED
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("Steps: 10")
    assert lines[place + 1].strip() == (
        "12 × 2 images × repeats ÷ 5 a batch, rounded up, = 5 an epoch; × 2 epochs = 10 steps"
    )
