"""What `python -m trainer inspect` says of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.families import TINY
from trainer.__main__ import main
from trainer.adapters import KINDS
from trainer.adapters.lora.spec import LoraSpec
from trainer.families import FAMILIES, recognise
from trainer.ground.errors import ModelError
from trainer.planning.inspection import inspect, suits


@pytest.mark.parametrize("family", sorted(TINY))
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


PUBLISHED = {
    "v1-5.safetensors": ("sd15", "512,512", 1, "sd15-realistic"),
    "anything-v3.safetensors": ("sd15", "512,512", 2, "sd15-character-anime"),
    "v2-1_768.safetensors": ("sd2", "768,768", 1, "sd2-character"),
    "sd_xl_base_1.0.safetensors": ("sdxl", "1024,1024", 1, "sdxl-character"),
    "ponyDiffusionV6XL.safetensors": ("sdxl", "1024,1024", 2, "sdxl-pony-illustrious"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_suits_a_model(name: str, tmp_path: Path) -> None:
    """Resolution from the model, clip skip from its name, presets of the family with those of the kind first."""
    family, resolution, clip_skip, preset = PUBLISHED[name]
    tensors = dict.fromkeys(TINY[family].original(), torch.zeros(1))
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1, 4, 1, 1)
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / name)
    found = suits(recognise(tmp_path / name))
    assert found.settings == {"resolution": resolution, "clip_skip": clip_skip}
    assert found.presets[0] == preset
    assert all(each.startswith(family) for each in found.presets)
    assert bool(found.questions) == (family == "sd2")


@pytest.mark.parametrize(
    ("said", "prediction", "asked"),
    [({}, "unknown", 1), ({"prediction_type": "v"}, "v_prediction", 0), ({"predict_key": "epsilon"}, "epsilon", 0)],
)
def test_metadata_say_what_a_file_predicts(tmp_path: Path, said: dict[str, str], prediction: str, asked: int) -> None:
    tensors = {key: value.contiguous() for key, value in TINY["sd2"].original().items()}
    path = tmp_path / "768.safetensors"
    save_file(tensors, path, {f"modelspec.{key}": value for key, value in said.items()})
    found = inspect(path)
    assert (found["prediction"], len(found["questions"])) == (prediction, asked)


def test_a_folder_that_says_what_it_predicts_leaves_no_question(tmp_path: Path) -> None:
    folder = TINY["sd2"].write_folder(tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    assert suits(recognise(folder)).questions == ()


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loras(family: str, told: bool, tmp_path: Path) -> None:
    """The family comes from the metadata, or from names and widths: those of SD 1.x and 2.x have the same names."""
    spec = LoraSpec(4, 2.0, parts=tuple(part.name for part in FAMILIES[family].parts))
    shapes = spec.shapes(FAMILIES[family].targets(FAMILIES[family].configs, conv=False))
    tensors = {name: torch.full(shape, 2.0, dtype=torch.bfloat16) for name, shape in shapes.items()}
    version = FAMILIES[family].file_names("v_prediction").base_model_version
    path = tmp_path / "lora.safetensors"
    said = {"ss_base_model_version": version, "modelspec.prediction_type": "v"}
    save_file(tensors, path, said if told else {"anything": "else"})
    found = inspect(path)
    assert found["prediction"] == ("v_prediction" if told else "unknown")
    assert (found["kind"], found["family"], found["dtype"]) == ("lora", family, "bf16")
    assert (found["ranks"], found["alphas"], found["modules"]) == ([4], [2.0], len(shapes) // 3)
    assert found["metadata"]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind(kind: str, tmp_path: Path) -> None:
    spec = KINDS[kind](4, 2.0, parts=("unet",))
    shapes = spec.shapes(FAMILIES["sd15"].targets(FAMILIES["sd15"].configs, conv=False))
    path = tmp_path / "adapter.safetensors"
    save_file({name: torch.full(shape, 2.0, dtype=torch.float16) for name, shape in shapes.items()}, path)
    found = inspect(path)
    known = "lora" if kind == "locon" else kind  # without options a LoCon is a LoRA
    assert (found["kind"], found["network_type"]) == ("lora", known)
    assert found["what"].startswith(KINDS[known].title)
    assert 0 not in found["ranks"]
    with pytest.raises(ModelError, match="a LoRA file, not a base model"):
        recognise(path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", "GLoRA"),
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
