"""`import` tells what it read before it writes, and what it wrote trains."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import write_dataset
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.config import load_config

Capture = pytest.CaptureFixture[str]


def preset(folder: Path, **fields: object) -> Path:
    path = folder / "preset.json"
    common = {"LoRA_type": "Standard", "max_resolution": "64,64", "optimizer": "AdamW", "network_dim": 4}
    path.write_text(json.dumps({**common, **fields}), encoding="utf-8")
    return path


def test_a_form_becomes_a_file_that_trains(tmp_path: Path, capsys: Capture) -> None:
    model, pictures = tiny_sd15(tmp_path), write_dataset(tmp_path / "data")
    source = preset(
        tmp_path,
        pretrained_model_name_or_path=str(model),
        train_data_dir=str(pictures / "train"),
        output_dir=str(tmp_path),
        max_train_steps=1,
        lr_warmup=0,
        min_bucket_reso=64,
        text_encoder_lr="",
        vae="/gone/vae.pt",
        seed="x",
        loss_type="x",
    )
    target = tmp_path / "RUN.toml"
    assert main(["import", str(source), "--out", str(target)]) == COMPLETED
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "Read as a JSON file of kohya_ss."
    assert 'Not on this computer, and left out:\n  vae = "/gone/vae.pt".' in printed
    assert 'Cannot be used, and left out:\n  loss_type: "x" cannot be used' in printed
    header = [line for line in target.read_text().splitlines() if line.startswith("# Not in it")]
    assert len(header) == 2
    flat = {key: value for table in tomllib.loads(target.read_text()).values() for key, value in table.items()}
    assert (flat["network_dim"], flat["network_train_unet_only"], flat["loss_type"]) == (4, True, "l2")
    assert main(["train", str(target)]) == COMPLETED, capsys.readouterr().err
    assert (tmp_path / "last.safetensors").exists()


def test_what_is_not_supported_is_written_only_when_asked(tmp_path: Path, capsys: Capture) -> None:
    source, target = preset(tmp_path, additional_parameters="--train_inpainting"), tmp_path / "RUN.toml"
    assert main(["import", str(source)]) == COMPLETED
    assert main(["import", str(source), "--out", str(target)]) == REFUSED
    assert not target.exists()
    assert "train_inpainting" in capsys.readouterr().out
    assert main(["import", str(source), "--out", str(target), "--ignore-unsupported"]) == COMPLETED
    assert "# Not in it, since it is not supported: train_inpainting" in target.read_text()
    assert main(["import", str(source), "--out", str(target), "--ignore-unsupported"]) == REFUSED
    assert "is there already" in capsys.readouterr().err
    assert main(["import", str(source), "--out", str(target), "--ignore-unsupported", "--overwrite"]) == COMPLETED


def test_settings_go_out_for_kohya_ss_and_come_in_again(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "RUN.toml"
    run.write_text(
        'network_dim = 8\nseed = 0\nsample_prompts = "a dog"\ncaption_prefix = "a b"\ndeterministic = true\n'
    )
    assert main(["export", str(run), "--form", "json"]) == COMPLETED
    printed = capsys.readouterr()
    notes = [line for line in printed.err.splitlines() if line.startswith("Note:")]
    assert [note.split()[1 if "cannot" in note else 4] for note in notes] == ["deterministic", "caption_prefix"]
    (tmp_path / "form.json").write_text(printed.out)
    assert json.loads(printed.out)["additional_parameters"] == "--seed 0"
    assert main(["import", str(tmp_path / "form.json"), "--out", str(tmp_path / "BACK.toml")]) == COMPLETED
    back = load_config(tmp_path / "BACK.toml")
    assert (back.network.network_dim, back.training.seed, back.sampling.sample_prompts) == (8, 0, "a dog")


def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.json").write_text("{")
    assert main(["import", str(tmp_path / "a.json")]) == REFUSED
    assert main(["import", str(tmp_path / "gone.json")]) == REFUSED
    assert "there is no such file" in capsys.readouterr().err


def test_settings_go_out_for_a_shell_and_come_in_again(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "RUN.toml"
    run.write_text('network_dim = 8\ncaption_prefix = "it\'s a"\ndeterministic = true\nsample_prompts = "a dog"\n')
    assert main(["export", str(run), "--form", "sh"]) == COMPLETED
    printed = capsys.readouterr()
    assert "sd-scripts has no deterministic like this; true is left out." in printed.err
    assert "sample_prompts from a file alone" in printed.err
    (tmp_path / "train.sh").write_text(printed.out)
    assert main(["import", str(tmp_path / "train.sh"), "--out", str(tmp_path / "BACK.toml")]) == COMPLETED
    back = load_config(tmp_path / "BACK.toml")
    assert (back.network.network_dim, back.captions.caption_prefix) == (8, "it's a")
