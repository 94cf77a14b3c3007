"""What `python -m trainer inspect` says of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.families import TINY
from trainer.__main__ import main
from trainer.adapters.lora.config import LoraSpec
from trainer.families import FAMILIES
from trainer.inspection import inspect


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_checkpoints(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = TINY[family].write_file(tmp_path / "model.safetensors")
    assert main(["inspect", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["family"], found["dtype"], found["vae"]) == ("checkpoint", family, "fp32", True)
    assert FAMILIES[family].title in found["what"]
    assert found["bytes"] == file.stat().st_size
    folder = inspect(TINY[family].write_folder(tmp_path / "model", variant="fp16"))
    assert (folder["family"], folder["dtype"], folder["form"]) == (family, "fp16", "folder")


def test_markers_of_v_prediction(tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    found = inspect(TINY["sdxl"].write_file(tmp_path / "noob.safetensors", extra=marks))
    assert (found["variant"], found["prediction"]) == ("v-prediction, zero terminal SNR", "v_prediction")


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loras(family: str, told: bool, tmp_path: Path) -> None:
    """The family comes from the metadata, or from names and widths: those of SD 1.x and 2.x have the same names."""
    spec = LoraSpec(4, 2.0, components=FAMILIES[family].trainable)
    shapes = spec.shapes(FAMILIES[family].targets(FAMILIES[family].configs, conv=False))
    tensors = {name: torch.full(shape, 2.0, dtype=torch.bfloat16) for name, shape in shapes.items()}
    version = FAMILIES[family].file_names("v_prediction").base_model_version
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, {"ss_base_model_version": version} if told else {"anything": "else"})
    found = inspect(path)
    assert (found["kind"], found["family"], found["dtype"]) == ("lora", family, "bf16")
    assert (found["ranks"], found["alphas"], found["modules"]) == ([4], [2.0], len(shapes) // 3)
    assert found["metadata"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("conditioner.embedders.0.model.x", "refiner"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "PEFT"),
        ("first_stage_model.decoder.x", "VAE"),
        ("something", "does not know"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, what: str) -> None:
    save_file({name: torch.zeros(2)}, tmp_path / "other.safetensors")
    found = inspect(tmp_path / "other.safetensors")
    assert found["kind"] == "other"
    assert what in found["what"]


def test_a_damaged_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(TINY["sdxl"].write_file(tmp_path / "whole.safetensors").read_bytes()[:5_000_000])
    assert main(["inspect", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
