"""The benchmarks measure what they say, and write it in one form. No test asks how long anything took."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import answers, gpu_checks, gpu_round, ground, scanning, steps, trials, watching
from benchmarks.options import Options
from benchmarks.rivals import Floor
from benchmarks.rows import Results, Row, Target, ratio_row, table
from trainer.config import load_config

TINY = steps.Cell("tiny", model="tiny", resolution=64, text=True, quick_steps=2, target=Target(1000.0))


def test_a_cell_of_steps_has_its_rows(tmp_path: Path) -> None:
    rows = {row.name: row for row in steps.measure(TINY, Options(quick=True, profile=True, folder=tmp_path))}
    assert rows.keys() == {
        f"steps/tiny/{what}"
        for what in (
            "ours",
            "floor",
            "ours over floor",
            "reference over floor",
            "rate against reference",
            "between two steps",
        )
    }
    assert all(row.value > 0 for row in rows.values())
    assert rows["steps/tiny/ours over floor"].ok is True


@pytest.mark.slow
def test_a_run_is_noted_from_the_command_to_its_end(tmp_path: Path) -> None:
    data = ground.pictures(tmp_path / "pictures", 4, (64, 64), repeats=2, form="jpg")
    given = ground.settings(ground.DEMO, data, tmp_path / "output", resolution="64,64", max_train_steps=6)
    trial = trials.ours(given, tmp_path, Options())
    assert len(trial.steps) == 6 - trials.WARM - 1
    assert 0 < trial.to_first_step < trial.whole
    assert trial.caching_rate > 0 and trial.memory > 10**8
    assert trial.at("saved lora")["bytes"] > 0
    with pytest.raises(RuntimeError, match="pretrained_model_name_or_path|no model|does not exist|gone"):
        trials.ours({**given, "pretrained_model_name_or_path": str(tmp_path / "gone.safetensors")}, tmp_path, Options())


def test_the_command_writes_rows_and_keeps_those_of_other_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    Results(file).add([Row("page/earlier", 2.0, "s").to_json()], {})
    monkeypatch.setattr(scanning, "QUICK_SIZES", (10, 20))
    options = Options(quick=True, folder=tmp_path)

    def here(name: str, _arguments: object) -> list[object]:
        return [row.to_json() for row in command.cells(options)[name](options)]

    monkeypatch.setattr(command, "_in_a_process", here)
    assert command.main(["--quick", "--only", "scan", "--json", str(file), "--folder", str(tmp_path)]) == 0
    written = json.loads(file.read_text())
    assert {"machine", "device", "versions", "rows"} <= written.keys()
    assert all(set(row) == {"name", "value", "spread", "unit", "target", "ok"} for row in written["rows"])
    names = [row["name"] for row in written["rows"]]
    assert "page/earlier" in names and "scan/20 pictures, first time" in names
    assert "| scan/20 pictures, again |" in capsys.readouterr().out


def test_a_cell_that_fails_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_in_a_process", lambda name, _: None if name == "run" else [])
    assert command.main(["--only", "run", "memory", "--folder", str(tmp_path)]) == 1
    assert "Failed: run\n" in capsys.readouterr().out


def test_an_unknown_cell_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing", "--folder", str(tmp_path)])
    assert "steps/base" in capsys.readouterr().err


def test_without_a_browser_the_open_page_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "CHROMIUM", None)
    assert list(watching.measure(Options(quick=True))) == []
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("text", [True, False])
def test_the_floor_asks_no_gradient_of_a_weight(tmp_path: Path, text: bool) -> None:
    given = ground.settings(ground.DEMO, tmp_path, tmp_path, resolution="64,64", network_train_unet_only=not text)
    floor = Floor(load_config(overrides=given), torch.device("cpu"), torch.float32)
    floor()
    parameters = [*floor.unet.parameters(), *floor.text.parameters()]
    assert parameters and not any(each.requires_grad or each.grad is not None for each in parameters)


def test_ratios_are_of_pairs_and_targets_have_a_side() -> None:
    row = ratio_row("a", [2.0, 20.0, 200.0, 9.0], [1.0, 10.0, 100.0, 3.0], Target(2.0))
    assert row.value == 2.0 and row.ok is True and row.spread is not None
    assert Row("b", 1.9, "x", target=Target(2.0, at_most=False)).ok is False
    assert Row("c", 1.0, "s").ok is None
    assert "MISSED" in table([Row("b", 1.9, "x", target=Target(2.0, at_most=False)).to_json()])


def test_every_model_is_made_whole(tmp_path: Path) -> None:
    """The random checkpoints are ones that the trainer recognises and loads."""
    from trainer import families

    for name, family in (("sd15-quarter", "sd15"), ("sdxl-quarter", "sdxl")):
        path = ground.model(name, tmp_path)
        assert ground.model(name, tmp_path) == path
        config = load_config(overrides={"pretrained_model_name_or_path": str(path)})
        assert families.load(config, device=torch.device("cpu"), dtype=torch.float32).family == family


def test_the_form_is_asked_about_whatever_a_field_may_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "QUICK_ENTRIES", 20)
    rows = {row.name: row for row in answers.measure(Options(quick=True, folder=tmp_path))}
    assert {"answers/any field: a pipe", "answers/any field: a folder of 20 entries"} <= rows.keys() or not hasattr(
        os, "mkfifo"
    )
    assert {"answers/the runs of a folder of 20 entries", "answers/a folder of 20 pictures"} <= rows.keys()
    assert all(row.value > 0 and row.target is not None for row in rows.values())


ALIKE = {"checkpointing", "int8", "fp8", "nf4", "twice", "fp16"}
"""Checks that do what another one does, with other settings; on a CPU fp16 is bf16."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "check"),
    [
        pytest.param(part, check, marks=pytest.mark.thorough if check in ALIKE else ())
        for part, checks in gpu_checks.PARTS.items()
        for check in checks
    ],
)
def test_the_gpu_round_can_be_rehearsed(part: str, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    rows = list(gpu_checks.PARTS[part][check](gpu_checks.Place(tmp_path, rehearsal=True)))
    assert rows and len({row.name for row in rows}) == len(rows)
    assert part == "compile" or all(check in row.name for row in rows), "another check's row is of the same name"
    assert [row.name for row in rows if row.name.startswith("gpu/exact") and not row.ok] == []


@pytest.mark.parametrize("name", gpu_checks.MEMORY)
def test_what_the_gpu_round_measures_memory_with_can_be_set(name: str, tmp_path: Path) -> None:
    place = gpu_checks.Place(tmp_path, rehearsal=True)
    config = place.config(tmp_path, place.cell(name, "sdxl", 1024), 1, **gpu_checks.MEMORY[name])
    assert config.model.quantize_base == gpu_checks.MEMORY[name].get("quantize_base", "none")


def test_a_check_of_the_gpu_round_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    begun: list[str] = []

    def run(command: list[str], **_given: object) -> subprocess.CompletedProcess[str]:
        name = command[command.index("--check") + 1]
        begun.append(name)
        if name == "int8":
            return subprocess.CompletedProcess(command, 1, "", "no such kernel")
        rows = [Row(f"gpu/memory/{name}", 1.0, "MiB").to_json()]
        Path(command[command.index("--rows") + 1]).write_text(json.dumps(rows))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    given = ["--part", "memory", "--rehearse", "--folder", str(tmp_path), "--json", str(file)]
    assert gpu_round.main(given) == 1
    assert begun == list(gpu_checks.PARTS["memory"])
    names = {row["name"] for row in json.loads(file.read_text())["rows"]}
    assert names == {f"gpu/memory/{name}" for name in begun if name != "int8"}
    told = capsys.readouterr().out
    assert "int8 failed:\nno such kernel" in told and "Not measured: int8" in told
