"""What `--check` finds in a model's files, and that a run reads the header of each of them once."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.checkpoints import tiny_sd15, tiny_sd15_folder
from tests.helpers.families import TINY
from tests.helpers.runs import tiny_config, write_dataset
from trainer import run
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.config import load_config, save_config
from trainer.families import FAMILIES, recognise_chosen
from trainer.families.reading import headers
from trainer.families.reading.configs import check_config

Breaking = Callable[[Path], object]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny diffusers folder, and pictures."""
    folder = tmp_path_factory.mktemp("folders")
    return tiny_sd15_folder(folder), write_dataset(folder / "data")


def told(component: str, **entries: object) -> Breaking:
    """Change entries of a component's configuration."""

    def change(model: Path) -> None:
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        path = model / component / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


def untold(component: str, key: str) -> Breaking:
    def change(model: Path) -> None:
        path = model / component / "config.json"
        path.write_text(
            json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key})
        )

    return change


def weights(model: Path, component: str) -> Path:
    return next((model / component).glob("*.safetensors"))


def weighed(component: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Breaking:
    """Change a component's weights."""

    def save(model: Path) -> None:
        path = weights(model, component)
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    return save


def without_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]


def narrower(tensors: dict[str, torch.Tensor]) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    tensors[name] = tensors[name][:, :16]


def into_parts(model: Path, *, lost: str = "") -> None:
    """Split the UNet's weights into two files with an index, as diffusers does with large models; lose one of them."""
    whole = weights(model, "unet")
    tensors, parts = load_file(whole), {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        part = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, whole.parent / part)
        parts |= dict.fromkeys(names, part)
    whole.unlink()
    (whole.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    if lost:
        (whole.parent / lost).unlink()


def pickled(content: bytes) -> Breaking:
    def change(model: Path) -> None:
        path = weights(model, "unet")
        path.unlink()
        path.with_name("diffusion_pytorch_model.bin").write_bytes(content)

    return change


def piped(name: str) -> Breaking:
    """Put a pipe in the place of a file."""

    def change(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return change


BROKEN: dict[str, tuple[Breaking, str]] = {
    "no VAE": (lambda model: shutil.rmtree(model / "vae"), "has no vae"),
    "no text encoder": (lambda model: shutil.rmtree(model / "text_encoder"), "text_encoder"),
    "no weights of the UNet": (lambda model: weights(model, "unet").unlink(), "holds no weights"),
    "no weights of the VAE": (lambda model: weights(model, "vae").unlink(), "holds no weights"),
    "a part is lost": (
        lambda model: into_parts(model, lost="diffusion_pytorch_model-00002-of-00002.safetensors"),
        "00002",
    ),
    "cut short": (lambda model: os.truncate(weights(model, "text_encoder"), 5000), "cut short"),
    "a pickle of nothing": (pickled(b"\x80\x02]q\x00."), "list of weights cannot be read"),
    "no pickle": (pickled(b"of words"), "damaged"),
    "a layer is missing": (weighed("unet", without_a_layer), "lacks 1 of its 4"),
    "a layer is narrower": (weighed("unet", narrower), "another shape"),
    "the VAE is another": (told("vae", latent_channels=16), "another shape"),
    "more layers than there are": (told("text_encoder", num_hidden_layers=40), "lacks"),
    "another vocabulary": (told("text_encoder", vocab_size=1000), "another shape"),
    "a negative size": (told("text_encoder", hidden_size=-32), "hidden_size is -32"),
    "a text for a size": (told("unet", cross_attention_dim="wide"), "cross_attention_dim is 'wide'"),
    "true for a size": (told("unet", norm_num_groups=True), "norm_num_groups is True"),
    "a billion layers": (told("unet", layers_per_block=1_000_000_000), "layers_per_block is 1000000000"),
    "a billion layers deep": (told("unet", transformer_layers_per_block=[1, 1, 1, 10**9]), "transformer_layers"),
    "a number of many digits": (told("vae", norm_num_groups=10**300), "norm_num_groups"),
    "no levels": (told("vae", block_out_channels=[]), "block_out_channels"),
    "levels that are none": (told("unet", block_out_channels=64), "block_out_channels"),
    "levels of two lengths": (told("unet", down_block_types=["DownBlock2D"]), "down_block_types"),
    "heads that do not divide": (told("text_encoder", num_attention_heads=5), "hidden_size"),
    "a text for a rate": (told("scheduler", beta_start="slow"), "beta_start"),
    "steps without end": (told("scheduler", num_train_timesteps=10**12), "num_train_timesteps"),
    "an entry is missing": (untold("unet", "block_out_channels"), "lacks 'block_out_channels'"),
    "a configuration of 5 MB": (told("unet", remark="x" * 5_000_000), "4,194,304"),
    "a pipe for an index": (piped("model_index.json"), "it is a pipe and no file"),
    "a pipe for a configuration": (piped("vae/config.json"), "it is a pipe and no file"),
    "a pipe for weights": (piped("unet/diffusion_pytorch_model.safetensors"), "it is a pipe and no file"),
}


@pytest.mark.parametrize("name", [name for name in BROKEN if hasattr(os, "mkfifo") or "pipe" not in name])
def test_check_finds_what_the_load_would(
    name: str, ground: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = BROKEN[name]
    assert expected in refused(change, ground, tmp_path, capsys)


def refused(change: Breaking, ground: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    model = folder / "model"
    shutil.copytree(ground[0], model)
    change(model)
    save_config(tiny_config(model, ground[1], folder / "out"), folder / "RUN.toml")
    assert main(["train", str(folder / "RUN.toml"), "--check"]) == REFUSED
    return capsys.readouterr().err


@pytest.mark.parametrize("family", TINY)
def test_a_whole_folder_of_every_family_is_content(family: str, tmp_path: Path) -> None:
    model = TINY[family].write_folder(tmp_path / family)
    found = recognise_chosen(load_config(overrides={"pretrained_model_name_or_path": str(model)}))
    assert (found.family, found.precision) == (family, "fp32")
    for component, shapes in FAMILIES[family].shapes(FAMILIES[family].configs).items():
        check_config(FAMILIES[family].configs[component], component)
        assert len(shapes) >= 4, "the published models are within the bounds, and more than their first layer is told"


def test_a_whole_folder_in_parts_is_content(ground: tuple[Path, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ground[0], model)
    into_parts(model)
    config = tiny_config(model, ground[1], tmp_path / "out", max_train_steps=1)
    save_config(config, tmp_path / "RUN.toml")
    assert main(["train", str(tmp_path / "RUN.toml"), "--check"]) == COMPLETED
    run.train(config, emit=lambda event: None)


def test_a_vae_of_its_own_makes_up_for_the_folders(ground: tuple[Path, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ground[0], model)
    shutil.rmtree(model / "vae")
    config = tiny_config(model, ground[1], tmp_path / "out", max_train_steps=1, vae=str(ground[0]))
    run.train(config, emit=lambda event: None)


def of_file(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Write a file anew with other weights under the same metadata."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def without(part: str, least: int = 1) -> Callable[[dict[str, torch.Tensor]], object]:
    """Lose all weights with this in their names."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        lost = [name for name in tensors if part in name]
        assert len(lost) >= least
        for name in lost:
            del tensors[name]

    return change


def cut(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: tensors[name][:1]})


DAMAGED = {
    "a level of the UNet": ("sd15", without("output_blocks.3.", 20), "lacks 40 of its UNet's 440 weights: model."),
    "norms alone": ("sdxl", without("norm2.", 8), "of its UNet's"),
    "a bias": ("sd2", without("model.diffusion_model.out.2.bias"), "lacks 1 of its UNet's"),
    "half of the VAE": ("sd15", without("first_stage_model.encoder.", 20), "of its VAE's"),
    "an attention's share": ("sd2", without("resblocks.0.attn.in_proj_weight"), "lacks 1 of its text encoder's"),
    "a layer of CLIP": ("sdxl", without("embedders.0.transformer.text_model.encoder.layers.1."), "text encoder's"),
    "the projection": ("sdxl", without("embedders.1.model.text_projection"), "lacks 1 of its text encoder 2's"),
    "another width": ("sd15", cut("model.diffusion_model.out.0.weight"), "is [1], not [32]"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_check_finds_what_a_file_lacks(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, change, expected = DAMAGED[name]
    model = of_file(TINY[family].write_file(tmp_path / "model.safetensors"), change)
    save_config(tiny_config(model, write_dataset(tmp_path / "data"), tmp_path / "out"), tmp_path / "RUN.toml")
    assert main(["train", str(tmp_path / "RUN.toml"), "--check"]) == REFUSED
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("form", ["file", "folder"])
def test_check_finds_what_a_vae_of_its_own_lacks(
    form: str, ground: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_check(vae: Path) -> int:
        config = tiny_config(ground[0], ground[1], tmp_path / "out", vae=str(vae))
        save_config(config, tmp_path / "RUN.toml")
        return main(["train", str(tmp_path / "RUN.toml"), "--check"])

    vae = tiny_sd15(tmp_path) if form == "file" else Path(shutil.copytree(ground[0] / "vae", tmp_path / "vae"))
    assert run_check(vae) == COMPLETED
    of_file(vae if form == "file" else next(vae.glob("*.safetensors")), without("decoder.mid", 10))
    assert run_check(vae) == REFUSED
    said = capsys.readouterr().err
    assert said.startswith("vae: ") and "weights: " in said


@pytest.mark.parametrize("form", ["file", "folder", "VAE of its own"])
def test_a_run_recognises_its_model_once(
    form: str, ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ground[0] if form == "folder" else tiny_sd15(tmp_path)
    more = {"vae": str(tiny_sd15(model.with_suffix("")))} if form == "VAE of its own" else {}
    read: Counter[str] = Counter()
    whole = headers.read_table

    def counted(file: BinaryIO, size: int) -> Any:
        read[os.path.relpath(file.name, model)] += 1
        return whole(file, size)

    monkeypatch.setattr(headers, "read_table", counted)
    run.train(tiny_config(model, ground[1], tmp_path / "out", max_train_steps=1, **more), emit=lambda event: None)
    if form == "folder":
        files = [str(path.relative_to(model)) for path in model.rglob("*.safetensors")]
    else:
        files = [".", *(os.path.relpath(path, model) for path in more.values())]
    assert dict(read) == dict.fromkeys(files, 1)
