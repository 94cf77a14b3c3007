"""A model is recognised from its header; everything else is refused by its name."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.families import TINY
from trainer.families import FAMILIES, recognise
from trainer.families.reading.headers import read_model_header
from trainer.families.sd15 import facts
from trainer.families.unet.facts import FIRST_CONV
from trainer.ground.errors import ModelError


def fake(path: Path, *names: str, **shaped: tuple[int, ...]) -> Path:
    """Write a safetensors file with tensors of the given names (shape [1], or as given with "/" for ".")."""
    tensors = {name: torch.zeros(1) for name in names}
    tensors |= {name.replace("/", "."): torch.zeros(shape) for name, shape in shaped.items()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("form", ["file", "ckpt", "legacy", "folder"])
def test_every_form_is_recognised(models: dict[str, Path], form: str) -> None:
    recognition = recognise(models[form])
    assert recognition.family == "sd15"
    assert recognition.form == ("folder" if form == "folder" else "file")
    assert list(recognition.configs["unet"]["block_out_channels"]) == [32, 64, 64, 64]
    assert recognition.configs["text_encoder"]["hidden_size"] == 32
    assert recognition.configs["scheduler"]["beta_start"] == 0.00085


@pytest.mark.skipif(not hasattr(psutil.Process, "io_counters"), reason="this system does not count what is read")
def test_of_seven_gigabytes_the_header_is_read_and_nothing_else(tmp_path: Path) -> None:
    """How long that takes is for the benchmarks to say: 9 ms at the size and with the 2,516 tensors of SDXL."""
    path, header, end = tmp_path / "large.safetensors", {}, 0
    tensors = TINY["sdxl"].original()
    for name, tensor in tensors.items():
        shape = [7_000_000_000 // len(tensors) // 2] if name != FIRST_CONV else list(tensor.shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end := end + 2 * math.prod(shape)]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    before = psutil.Process().io_counters().read_chars
    assert recognise(path).family == "sdxl"
    assert path.stat().st_size > 6_900_000_000
    assert psutil.Process().io_counters().read_chars - before < 3 * len(text)


def test_every_form_describes_the_same_components(models: dict[str, Path]) -> None:
    targets = {form: FAMILIES["sd15"].targets(recognise(path).configs, conv=True) for form, path in models.items()}
    assert targets["file"] == targets["ckpt"] == targets["legacy"] == targets["folder"]


def test_header_of_a_pickle_equals_that_of_the_safetensors(models: dict[str, Path]) -> None:
    assert read_model_header(models["ckpt"]).shapes == read_model_header(models["file"]).shapes
    assert read_model_header(models["legacy"]).shapes == read_model_header(models["file"]).shapes


def test_a_file_that_does_not_describe_itself_has_the_published_configurations(tmp_path: Path) -> None:
    path = fake(
        tmp_path / "plain.safetensors",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        **{"model/diffusion_model/input_blocks/0/0/weight": (320, 4, 3, 3)},
    )
    assert recognise(path).configs == facts.FACTS.configs


def test_a_hub_id_is_taken_without_looking_it_up() -> None:
    recognition = recognise("someone/some-model")
    assert (recognition.form, recognition.source) == ("hub", "someone/some-model")


SD = {"model/diffusion_model/input_blocks/0/0/weight": (8, 4, 3, 3)}
SDXL = ["conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x"]
CLIP = "cond_stage_model.transformer.text_model.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("names", "shaped", "expected"),
    [
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], {}, "a LoRA file"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], {}, "a LoRA file"),
        (["lycoris_mid_block.lokr_w1"], {}, "a LoRA file"),
        (["conditioner.embedders.0.transformer.x"], SD, "an SDXL checkpoint without one of its text encoders"),
        ([*SDXL, "edm_mean"], SD, "a model after Karras"),
        (SDXL, {"model/diffusion_model/input_blocks/0/0/weight": (8, 9, 3, 3)}, "an inpainting model"),
        (["conditioner.embedders.0.model.x"], SD, "an SDXL refiner"),
        (["cond_stage_model.model.transformer.x", "model.diffusion_model.label_emb.0.x"], SD, "a depth, upscaling or"),
        ([CLIP], {"model/diffusion_model/input_blocks/0/0/weight": (8, 9, 3, 3)}, "an inpainting model"),
        ([CLIP], {"model/diffusion_model/input_blocks/0/0/weight": (8, 8, 3, 3)}, "an InstructPix2Pix model"),
        (["model.diffusion_model.joint_blocks.0.x"], {}, "a Stable Diffusion 3 model"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], {}, "a Flux model"),
        (["net.llm_adapter.embed.weight", "net.x_embedder.proj.1.weight"], {}, "a model like Anima"),
        (["down_blocks.0.resnets.0.conv1.weight"], {}, "a UNet without its text encoder"),
        ([], SD, "a UNet without its text encoder"),
        (["text_model.final_layer_norm.weight"], {}, "a text encoder alone"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], {}, "a VAE alone"),
        (["emb_params"], {}, "a textual inversion"),
        (["something.else"], {}, "of a kind that this program does not know"),
    ],
)
def test_other_files_are_refused_by_name(
    tmp_path: Path, names: list[str], shaped: dict[str, tuple[int, ...]], expected: str
) -> None:
    path = fake(tmp_path / "other.safetensors", *names, **shaped)
    with pytest.raises(ModelError) as caught:
        recognise(path)
    assert f"{path} is {expected}" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("names", "variant"),
    [([], ""), (["v_pred"], "v-prediction"), (["v_pred", "ztsnr"], "v-prediction, zero terminal SNR")],
)
def test_markers_say_how_a_model_was_trained(tmp_path: Path, names: list[str], variant: str) -> None:
    recognition = recognise(fake(tmp_path / "noob.safetensors", *SDXL, *names, **SD))
    assert (recognition.family, FAMILIES["sdxl"].variant(recognition.configs)) == ("sdxl", variant)


def test_a_lora_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="network_weights"):
        recognise(fake(tmp_path / "lora.safetensors", "lora_unet_x.lora_up.weight"))


@pytest.mark.parametrize(
    ("pipeline", "unet", "expected"),
    [
        ("StableDiffusionXLPipeline", {"in_channels": 9}, "an inpainting model"),
        ("StableDiffusionXLImg2ImgPipeline", {}, "an SDXL refiner"),
        ("StableDiffusionPipeline", {"use_linear_projection": True, "in_channels": 9}, "an inpainting model"),
        ("StableDiffusionPipeline", {"in_channels": 9}, "an inpainting model"),
        ("StableDiffusionInpaintPipeline", {"in_channels": 9}, "an inpainting model"),
        ("KandinskyPipeline", {}, "KandinskyPipeline"),
    ],
)
def test_other_folders_are_refused_by_name(
    models: dict[str, Path], tmp_path: Path, pipeline: str, unet: dict[str, object], expected: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["folder"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | unet))
    with pytest.raises(ModelError, match=expected) as caught:
        recognise(folder)
    assert "Stable Diffusion 1.x" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no header"),
        (b"\x00" * 4, "no header"),
        (struct.pack("<Q", 1 << 40) + b"{}", "cut short"),
        (struct.pack("<Q", 5000) + b"{}", "cut short"),
        (struct.pack("<Q", 2) + b"[]", "not that of a safetensors file"),
        (struct.pack("<Q", 4) + b"{{{{", "not that of a safetensors file"),
        (struct.pack("<Q", 9) + b'{"a": {}}', "not that of a safetensors file"),
        (b"of words, and not a safetensors file at all", "cut short, or it is no safetensors"),
        (b"PK\x03\x04 and then nothing", "archive is cut short"),
        (b"\x80\x02]q\x00.", "cannot be read"),
        (pickle.dumps([1, 2, 3], protocol=2) * 4, "no table of weights"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected) as caught:
        recognise(path)
    assert str(path) in str(caught.value)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(), "a PNG picture and no model"),
        (b"\xff\xd8\xff\xe0 and so on", "a JPEG picture"),
        (b"<!DOCTYPE html><html>sign in to download", "a web page"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    ],
)
def test_what_is_no_model_at_all_is_called_what_it_is(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "chosen.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected) as caught:
        recognise(path)
    assert "damaged" not in str(caught.value) and "again" not in caught.value.remedy


@pytest.mark.parametrize(
    ("form", "share"),
    # In the format before PyTorch 1.6 the list of weights comes first: a longer piece shows its loss when it is loaded.
    [*((form, share) for form in ("file", "ckpt") for share in (0.001, 0.5, 0.999)), ("legacy", 0.001)],
)
def test_a_truncated_download_is_damaged(models: dict[str, Path], tmp_path: Path, form: str, share: float) -> None:
    whole = models[form].read_bytes()
    path = tmp_path / models[form].name
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match="damaged"):
        recognise(path)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.ckpt", "/no/such/folder/model"])
def test_a_missing_path_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        recognise(name)


def test_no_model_and_a_folder_without_index_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pretrained_model_name_or_path"):
        recognise("")
    with pytest.raises(ModelError, match="model_index.json"):
        recognise(tmp_path)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_reading_a_pickle_runs_nothing_in_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(2)}, "callbacks": Hostile(mark)}, path)
    assert read_model_header(path).shapes == {"model.diffusion_model.x": (2,)}
    assert not mark.exists()


def test_recognition_does_not_import_torch(models: dict[str, Path]) -> None:
    code = (
        "import sys; from trainer.families import recognise, FAMILIES; "
        f"r = recognise({str(models['ckpt'])!r}); assert FAMILIES[r.family].targets(r.configs, conv=True); "
        "assert not {'torch', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
