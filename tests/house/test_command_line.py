"""The headless door: what it prints, what it refuses and with which exit code, and that a refusal leaves nothing."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.build.single_file import write_single_file
from tests.helpers.checkpoints import tiny_modules, tiny_sd15, tiny_sd15_folder
from tests.helpers.pictures import write_folder
from tests.helpers.runs import RunServer, logged, tiny_config, write_dataset
from trainer.__main__ import COMPLETED, FAILED, REFUSED, STOPPED, main
from trainer.config import save_config


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def write_run(ground: tuple[Path, Path], folder: Path, **settings: object) -> Path:
    path = folder / "RUN.toml"
    save_config(tiny_config(*ground, folder / "out", **settings), path)
    return path


def test_a_checkpoint_file_and_its_folder_train_to_the_same_losses(ground: tuple[Path, Path], tmp_path: Path) -> None:
    losses = []
    for name, model in (("file", ground[0]), ("folder", tiny_sd15_folder(tmp_path))):
        (tmp_path / name).mkdir()
        run = write_run((model, ground[1]), tmp_path / name, max_train_steps=3)
        assert main(["train", str(run)]) == COMPLETED
        assert load_file(tmp_path / name / "out" / "tiny.safetensors")
        records = logged(tmp_path / name / "out" / "tiny.run")
        losses.append([record["loss"] for record in records if record["event"] == "StepDone"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_finished_name_is_not_trained_over_unless_asked(
    ground: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(ground, tmp_path, max_train_steps=1)
    assert main(["train", str(run)]) == COMPLETED
    before = (tmp_path / "out" / "tiny.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", str(run)]) == REFUSED
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "tiny.safetensors").read_bytes() == before
    assert main(["train", str(run), "--overwrite", "--set", "seed=8"]) == COMPLETED
    assert (tmp_path / "out" / "tiny.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_data_dir": "nowhere/at/all"}, "train_data_dir"),
        ({"train_data_dir": "EMPTY"}, "EMPTY"),
        ({"pretrained_model_name_or_path": "gone.safetensors"}, "gone.safetensors"),
        ({"pretrained_model_name_or_path": "CORRUPT"}, "corrupt.safetensors"),
        ({"pretrained_model_name_or_path": "LORA"}, "LoRA"),
        ({"output_dir": "FILE/below"}, "output_dir"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(
    ground: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, object],
    said: str,
) -> None:
    bad = bad_things(ground[0], tmp_path)
    changed = [f"--set={key}={replace_all(str(value), bad)}" for key, value in settings.items()]
    run = write_run(ground, tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["train", str(run), *changed]) == REFUSED
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    assert sorted(path for path in tmp_path.rglob("*")) == before


def bad_things(model: Path, folder: Path) -> dict[str, str]:
    (folder / "EMPTY").mkdir()
    corrupt = folder / "corrupt.safetensors"
    corrupt.write_bytes(model.read_bytes()[:-5000])
    lora = folder / "a_lora.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 64, 1, 1)}, lora)
    (folder / "FILE").touch()
    names = {"EMPTY": folder / "EMPTY", "CORRUPT": corrupt, "LORA": lora, "FILE": folder / "FILE"}
    return {name: str(path) for name, path in names.items()}


def replace_all(text: str, names: dict[str, str]) -> str:
    for name, path in names.items():
        text = text.replace(name, path)
    return text


def test_every_wrong_setting_is_named_at_once(
    ground: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--set", "network_dim=-3", "--set", "lr_scheduler=wavy", "--set", "no_such_key=1"]
    assert main(["train", str(write_run(ground, tmp_path)), *wrong]) == REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(":")[0] for line in lines} == {"network_dim", "lr_scheduler", "no_such_key"}


@pytest.mark.parametrize("steps", [3, 40])
def test_a_failure_during_training_exits_with_one_and_is_logged(
    ground: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    """A UNet with one NaN among its weights: no gradient is ever finite, and no file holds what was not learned."""
    unet, vae, text_encoder = tiny_modules()
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    broken = tmp_path / "broken.safetensors"
    write_single_file(broken, unet, vae, text_encoder, dtype=torch.float32)
    run = write_run((broken, ground[1]), tmp_path, max_train_steps=steps, save_every_n_steps=1)
    assert main(["train", str(run)]) == FAILED
    printed = capsys.readouterr().err
    assert "not a finite number" in printed
    assert "nothing was learned" in printed
    assert "mixed_precision" not in printed, "it is no already"
    assert logged(tmp_path / "out" / "tiny.run")[-1]["event"] == "Failed"
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_check_prints_the_plan_of_a_thousand_pictures_without_torch(ground: tuple[Path, Path], tmp_path: Path) -> None:
    write_folder(tmp_path / "train" / "2_tok class", 1000, caption="tok class, red")
    run = write_run((ground[0], tmp_path), tmp_path)
    program = (
        "import sys; from trainer.__main__ import main; code = main(sys.argv[1:]);"
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, "train", str(run), "--check"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    assert done.returncode == COMPLETED, done.stderr
    assert "1000" in done.stdout
    assert "MB" in done.stdout
    assert seconds < 30, "meant to take two seconds; thirty even on a machine that is busy"
    assert not (tmp_path / "out").exists()


def test_keys_at_rank_8_are_kohyas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "--family", "sd15", "--set", "network_dim=8", "--set", "network_alpha=8"]) == COMPLETED
    printed = json.loads(capsys.readouterr().out)
    listed = json.loads((Path(__file__).parents[1] / "data" / "lora_keys_sd15.json").read_text())["modules"]
    expected: dict[str, list[int]] = {}
    for name, down, up in listed:
        expected |= {f"{name}.alpha": [], f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    assert printed["keys"] == expected
    assert list(printed["keys"]) == list(expected)
    numbers = sum(math.prod(shape) for shape in expected.values())
    assert 2 * numbers < printed["bytes"] < 2.1 * numbers


def test_keys_are_of_the_family_that_the_settings_say(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for words in (["--set", 'model_family="sdxl"'], ["--family", "sdxl"], []):
        assert main(["keys", *words]) == COMPLETED
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] != found[2]


def ended_by_a_stop(output: Path, told: str, code: int | None) -> None:
    """A LoRA is there, and the last word is of a stop."""
    assert code == STOPPED, told
    assert load_file(output / "tiny.safetensors")
    last = logged(output / "tiny.run")[-1]
    assert last["event"] == "Finished" and last["stopped"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_saves_and_finishes(ground: tuple[Path, Path], tmp_path: Path) -> None:
    run = write_run(ground, tmp_path, max_train_steps=5000)
    process = subprocess.Popen([sys.executable, "-m", "trainer", "train", str(run)], stderr=subprocess.PIPE, text=True)
    try:
        wait_for_steps(tmp_path / "out" / "tiny.run", 3)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=120)
    finally:
        process.kill()
    ended_by_a_stop(tmp_path / "out", printed, process.returncode)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("told", ["SIGTERM", "stop", "save_now\nstop"])
def test_a_signal_and_the_control_file_are_obeyed(ground: tuple[Path, Path], tmp_path: Path, told: str) -> None:
    run = write_run(ground, tmp_path, max_train_steps=5000)
    folder, log = tmp_path / "out" / "tiny.run", tmp_path / "told.log"
    process = RunServer().command(["train", str(run)], log)
    try:
        wait_for_steps(folder, 1)
        if told == "SIGTERM":
            process.terminate()
        else:
            (folder / "control").write_text(f"{told}\n")
        process.join(timeout=120)
    finally:
        process.kill()
    ended_by_a_stop(tmp_path / "out", log.read_text(), process.exitcode)
    assert not (folder / "control").exists()
    assert bool(list((tmp_path / "out").glob("tiny-step*.safetensors"))) == ("save_now" in told)


def wait_for_steps(folder: Path, count: int, seconds: float = 120.0) -> None:
    """Return when a run has logged `count` steps."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if (folder / "events.jsonl").exists():
            records = logged(folder)
            if sum(record["event"] == "StepDone" for record in records) >= count:
                return
        time.sleep(0.05)
    raise TimeoutError(f"no {count} steps within {seconds:.0f} s")
