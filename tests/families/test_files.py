"""A model in several files: a UNet alone, its text encoders and its VAE each with a setting of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.families import TINY
from tests.helpers.runs import logged, tiny_config, write_dataset
from trainer import families, train
from trainer.families.reading.weights import fingerprint
from trainer.ground.errors import ConfigError, ModelError
from trainer.planning.inspection import inspect
from trainer.planning.plan import plan

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SETTINGS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class Apart:
    """One model whole, and in files of single components."""

    family: str
    whole: Path
    bare: Path
    """The UNet alone, without the prefix that it has in a checkpoint."""
    prefixed: Path
    in_diffusers_names: Path
    files: dict[str, str]

    def settings(self, **more: object) -> dict[str, object]:
        return {**self.files, **more}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Apart:
    folder, tiny = tmp_path_factory.mktemp(request.param), TINY[request.param]
    whole = tiny.write_file(folder / "whole.safetensors")
    tensors = load_file(whole)
    with safe_open(whole, "pt") as file:
        metadata = file.metadata()
    unet = {name: value for name, value in tensors.items() if name.startswith(UNET)}
    save_file(unet, folder / "prefixed.safetensors", metadata)
    save_file({name.removeprefix(UNET): value for name, value in unet.items()}, folder / "bare.safetensors", metadata)
    modules = tiny.modules()
    save_file(dict(modules["unet"].state_dict()), folder / "diffusers.safetensors", metadata)
    vae = {name.removeprefix(VAE): value for name, value in tensors.items() if name.startswith(VAE)}
    save_file(vae, folder / "vae.safetensors", metadata)
    files = {"vae": str(folder / "vae.safetensors")}
    for component in tiny.text_encoders:
        path = folder / f"{component}.safetensors"
        # As such files are: transformers' names, with "text_model." in front.
        state = modules[component].state_dict()
        named = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
        if "text_model.text_projection.weight" in named:
            named["text_projection.weight"] = named.pop("text_model.text_projection.weight")
        save_file({name: value.contiguous() for name, value in named.items()}, path)
        files[SETTINGS[component]] = str(path)
    return Apart(
        request.param,
        whole,
        folder / "bare.safetensors",
        folder / "prefixed.safetensors",
        folder / "diffusers.safetensors",
        files,
    )


@pytest.mark.parametrize("form", ["bare", "prefixed", "in_diffusers_names"])
def test_a_model_in_several_files_is_the_whole_model(apart: Apart, form: str, tmp_path: Path) -> None:
    def loaded(model: Path, **more: object) -> families.Bundle:
        config = tiny_config(model, tmp_path, tmp_path, **more)
        return families.load(config, device=torch.device("cpu"), dtype=torch.float32)

    whole, made = loaded(apart.whole), loaded(getattr(apart, form), **apart.files)
    assert (made.family, made.vae_key) == (apart.family, whole.vae_key)
    assert {name: fingerprint(module) for name, module in made.components.items()} == {
        name: fingerprint(module) for name, module in whole.components.items()
    }


def test_it_trains_to_the_same_bits(apart: Apart, tmp_path: Path) -> None:
    if apart.family == "sd15":
        pytest.skip("SDXL has every component that SD 1.x has")
    dataset, made = write_dataset(tmp_path), {}
    for name, model, files in (("whole", apart.whole, {}), ("apart", apart.bare, apart.files)):
        train(tiny_config(model, dataset, tmp_path / name, max_train_steps=2, **files), emit=lambda event: None)
        losses = [each["loss"] for each in logged(tmp_path / name / "tiny.run") if each["event"] == "StepDone"]
        made[name] = losses, load_file(tmp_path / name / "tiny.safetensors")
    assert made["whole"][0] == made["apart"][0]
    assert all(torch.equal(value, made["apart"][1][name]) for name, value in made["whole"][1].items())


def test_what_is_missing_is_asked_for_by_its_setting(apart: Apart, tmp_path: Path) -> None:
    told = inspect(apart.bare)
    assert (told["kind"], told["family"]) == ("checkpoint", apart.family)
    assert told["missing"] == ["vae", *TINY[apart.family].text_encoders]
    dataset = write_dataset(tmp_path)
    for key in apart.files:
        others = {other: path for other, path in apart.files.items() if other != key}
        with pytest.raises(ModelError, match=rf"^{key}: .*bare.safetensors has no"):
            plan(tiny_config(apart.bare, dataset, tmp_path, **others))
    assert plan(tiny_config(apart.bare, dataset, tmp_path, **apart.files)).spec


def test_a_file_of_another_kind_is_refused_by_its_setting(apart: Apart, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    swapped = apart.settings(clip_l=apart.files["vae"])
    with pytest.raises(ModelError, match=r"clip_l: .*vae.safetensors is a VAE alone and holds no text encoder"):
        plan(tiny_config(apart.bare, dataset, tmp_path, **swapped))
    with pytest.raises(ModelError, match=r"vae: .* holds no VAE"):
        plan(tiny_config(apart.bare, dataset, tmp_path, **apart.settings(vae=apart.files["clip_l"])))


def test_a_component_that_a_family_has_not_is_refused(apart: Apart, tmp_path: Path) -> None:
    if apart.family == "sdxl":
        pytest.skip("SDXL has both text encoders")
    with pytest.raises(ConfigError, match=r"clip_g.*no such part"):
        plan(tiny_config(apart.whole, write_dataset(tmp_path), tmp_path, clip_g=apart.files["clip_l"]))
