"""Tools on models of SDXL and FLUX.1 in every layout: every kind of adapter, and number formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers import flux as tiny_flux
from tests.helpers.adapters import Network
from tests.helpers.families import TINY
from tests.tools.test_around import planted, product
from tests.tools.test_merge import close
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.adapters import KINDS, make_spec
from trainer.families import FAMILIES, recognise
from trainer.families.flux.checkpoint import Checkpoint as FluxCheckpoint
from trainer.families.flux.facts import DENOISER
from trainer.families.flux.transformer import run
from trainer.families.unet.checkpoint import Checkpoint
from trainer.results import export

Capture = pytest.CaptureFixture[str]
EACH: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in KINDS},
    "locon": {"dora_wd": True},
    "lokr": {"factor": 4},
    "oft": {"rescaled": True},
}
"""Each kind in one of its forms; `test_merge` has them all, on a smaller model."""
PLAIN = torch.device("cpu"), torch.float32, torch.float32


@dataclass(frozen=True)
class Subject:
    """A tiny model: its family, its denoiser, and how that is loaded and run."""

    family: str
    denoiser: str
    load: Callable[[Path], nn.Module]
    run: Callable[[nn.Module], Tensor]


def unet_of(path: Path) -> nn.Module:
    return Checkpoint(FAMILIES["sdxl"].facts, recognise(path), "", *PLAIN, {}).unet()


def transformer_of(path: Path) -> nn.Module:
    return FluxCheckpoint(recognise(path), {}, "", *PLAIN).transformer()


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_unet(unet: nn.Module) -> Tensor:
    told = {"text_embeds": numbers(2, 2, 48), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, 6)}
    given = numbers(0, 2, 4, 8, 8), torch.tensor([10, 500]), numbers(1, 2, 7, 80)
    drawn: Tensor = unet(*given, added_cond_kwargs=told).sample
    return drawn


def run_transformer(model: Any) -> Tensor:
    text = {"context": numbers(1, 2, 7, 48), "pooled": numbers(2, 2, 32)}
    return run(model, numbers(0, 2, 16, 8, 8), torch.tensor([0.3, 0.8]), text, torch.tensor([1.0, 3.5]))


SDXL = Subject("sdxl", "unet", unet_of, run_unet)
FLUX = Subject("flux", DENOISER, transformer_of, run_transformer)


def flux_forms(folder: Path, seed: int = 0) -> dict[str, Path]:
    """FLUX.1 as a transformer alone in both layouts, as ComfyUI's checkpoint and as a folder: the same bits."""
    state = {name: value.clone() for name, value in tiny_flux.modules(seed)[DENOISER].state_dict().items()}
    folder.mkdir(exist_ok=True)
    return {
        "alone": Path(tiny_flux.write_files(folder / "files", seed=seed)["pretrained_model_name_or_path"]),
        "diffusers": tiny_flux.write(folder / "diffusers.safetensors", state, tiny_flux.described()),
        "checkpoint": tiny_flux.write_checkpoint(folder / "checkpoint" / "flux.safetensors", seed=seed),
        "folder": tiny_flux.write_folder(folder / "folder", seed=seed),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"sdxl": TINY["sdxl"].write_file(folder / "sdxl.safetensors"), **flux_forms(folder / "flux")}


def trained(subject: Subject, source: Path, kind: str, options: dict[str, Any], path: Path) -> Tensor:
    """Write a file of this kind as after training on the denoiser, and return what that draws with it."""
    network = Network(network_type=kind, conv_dim=3, conv_alpha=1.5)
    model, seen = subject.load(source), recognise(source)
    targets = FAMILIES[subject.family].targets_of(seen, conv=True)
    own = [each for each in targets if each.component == subject.denoiser]
    adapter = make_spec(network, (subject.denoiser,), SimpleNamespace(**options)).build(
        {subject.denoiser: model}, own, seed=1
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        export.save(path, adapter.tensors(), {}, "float")
        return subject.run(model)


@pytest.mark.parametrize(("kind", "options"), EACH.items())
@pytest.mark.parametrize(("subject", "form"), [(SDXL, "sdxl"), (FLUX, "folder")], ids=["sdxl", "flux"])
def test_a_merged_checkpoint_is_the_model_with_its_adapter(
    tmp_path: Path, models: dict[str, Path], subject: Subject, form: str, kind: str, options: dict[str, Any]
) -> None:
    """FLUX.1's folder has query, key and value apart, which are one layer of the LoRA's."""
    lora, source = tmp_path / "lora.safetensors", models[form]
    target = tmp_path / ("merged" if source.is_dir() else "merged.safetensors")
    expected = trained(subject, source, kind, options, lora)
    words = ["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]
    assert main(words) == COMPLETED
    with torch.no_grad():
        close(subject.run(subject.load(target)), expected)
        assert (subject.run(subject.load(source)) - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("form", ["alone", "diffusers", "checkpoint"])
def test_flux_in_files_of_every_layout(tmp_path: Path, models: dict[str, Path], form: str, capsys: Capture) -> None:
    """A LoRA with layers of CLIP too: what a file lacks is said, and stays out."""
    lora, target = tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    expected = trained(FLUX, models[form], "lora", {}, lora)
    clip = FAMILIES["flux"].targets_of(recognise(models[form]), conv=True)[0]
    width = clip.in_features
    more = {f"{clip.name}.lora_down.weight": numbers(5, 2, width), f"{clip.name}.lora_up.weight": numbers(6, width, 2)}
    save_file({**load_file(lora), **more}, lora)
    assert (
        main(["merge", "--models", str(lora), "--sd_model", str(models[form]), "--save_to", str(target)]) == COMPLETED
    )
    lacks = (
        f"Note: {models[form].name} lacks a part of the model, so nothing is done with 1 layer of lora.safetensors: "
    )
    assert (lacks in capsys.readouterr().err) == (form != "checkpoint")
    with torch.no_grad():
        close(run_transformer(transformer_of(target)), expected)
    before, after = load_file(models[form]), load_file(target)
    assert before.keys() == after.keys()
    with safe_open(target, "pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == "flux-1-dev" and "modelspec.prediction_type" not in said
    if form == "checkpoint":
        key = f"text_encoders.clip_l.transformer.text_model.{clip.path}.weight"
        close(after[key] - before[key], numbers(6, width, 2) @ numbers(5, 2, width))


def test_weights_of_few_bits_stay_so_and_it_is_said(tmp_path: Path, models: dict[str, Path], capsys: Capture) -> None:
    """Plain 8-bit floats keep their format, or get another that is asked for; those with scales are refused."""
    lora, source = tmp_path / "lora.safetensors", tmp_path / "fp8.safetensors"
    trained(FLUX, models["alone"], "lora", {}, lora)
    tensors = load_file(models["alone"])
    small = {
        key: value.to(torch.float8_e4m3fn) if value.dim() == 2 else value.bfloat16() for key, value in tensors.items()
    }
    tiny_flux.write(source, small, tiny_flux.described())
    for precision, dtype in (("auto", torch.float8_e4m3fn), ("bf16", torch.bfloat16)):
        target = tmp_path / f"{precision}.safetensors"
        words = ["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]
        assert main([*words, "--save_precision", precision]) == COMPLETED
        assert ("has weights of 8 bits, and they stay so" in capsys.readouterr().err) == (precision == "auto")
        found = load_file(target)
        assert {value.dtype for value in found.values() if value.dim() == 2} == {dtype}
        up, down = (
            load_file(lora)[f"lora_unet_double_blocks_0_img_attn_qkv.lora_{part}.weight"] for part in ("up", "down")
        )
        whole = small["double_blocks.0.img_attn.qkv.weight"].float() + 0.5 * up @ down
        assert torch.equal(found["double_blocks.0.img_attn.qkv.weight"], whole.to(dtype))
    scale = {"double_blocks.0.img_attn.qkv.scale_weight": torch.ones(())}
    tiny_flux.write(source, {**small, **scale, "scaled_fp8": torch.zeros(2)}, tiny_flux.described())
    target = tmp_path / "new.safetensors"
    assert main(["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]) == REFUSED
    assert "stores its weights in few bits with scales" in capsys.readouterr().err and not target.exists()


def test_a_lora_is_extracted_from_flux_of_any_two_layouts(
    tmp_path: Path, models: dict[str, Path], capsys: Capture
) -> None:
    """The tuned one has no text encoders, so nothing is said of them."""
    made = tiny_flux.modules()
    before = tiny_flux.original(made[DENOISER])
    before = {key: value.clone() for key, value in before.items()}
    planted(made[DENOISER], 1)
    after = tiny_flux.original(made[DENOISER])
    state = {name: value.clone() for name, value in made[DENOISER].state_dict().items()}
    tuned = tiny_flux.write(tmp_path / "tuned.safetensors", state, tiny_flux.described())
    target = tmp_path / "lora.safetensors"
    words = ["extract", "--model_org", str(models["checkpoint"]), "--model_tuned", str(tuned), "--save_to", str(target)]
    assert main([*words, "--save_precision", "float", "--clamp_quantile", "1", "--dim", "6"]) == COMPLETED
    assert "text encoders" not in capsys.readouterr().out
    found = load_file(target)
    wanted = [each for each in FAMILIES["flux"].targets_of(recognise(tuned), conv=True) if each.block is not None]
    assert {key.partition(".")[0] for key in found} == {each.name for each in wanted}
    for each in wanted:
        key = FAMILIES["flux"].places(each, {})
        name = next(iter(key)).names[0]
        u, s, v = torch.linalg.svd((after[name] - before[name]).double(), full_matrices=False)
        close(product(found, each.name), (u[:, :6] * s[:6]) @ v[:6])
    with safe_open(target, "pt") as file:
        said = file.metadata()
    assert (said["ss_base_model_version"], said["ss_network_module"]) == ("flux1", "networks.lora_flux")
    assert said["modelspec.architecture"] == "flux-1-dev/lora" and "modelspec.prediction_type" not in said


def flux_lora(path: Path, configs: Any, family: str = "flux") -> dict[str, Tensor]:
    """A LoRA of rank 2 on every layer of FLUX.1's blocks."""
    layers = [
        each for each in FAMILIES[family].targets(configs, conv=True) if each.component == DENOISER and each.block
    ]
    tensors: dict[str, Tensor] = {}
    for number, each in enumerate(layers):
        tensors[f"{each.name}.alpha"] = torch.tensor(1.5)
        tensors[f"{each.name}.lora_down.weight"] = numbers(2 * number, 2, each.in_features)
        tensors[f"{each.name}.lora_up.weight"] = numbers(2 * number + 1, each.out_features, 2)
    save_file(tensors, path, metadata={"ss_base_model_version": "flux1", "ss_output_name": "mine"})
    return tensors


@pytest.mark.parametrize("dialect", ["diffusers", "lycoris"])
def test_layers_that_are_several_in_other_programs_are_taken_apart_and_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    """There is one query, one key and one value with a matrix of their own; together they are kohya's one layer."""
    configs = {**FAMILIES["flux"].configs, DENOISER: {**FAMILIES["flux"].configs[DENOISER], **tiny_flux.TRANSFORMER}}
    monkeypatch.setattr(type(FAMILIES["flux"]), "configs", configs)
    before = flux_lora(tmp_path / "a.safetensors", configs)
    there, back = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    assert (
        main(["convert", "--model", str(tmp_path / "a.safetensors"), "--save_to", str(there), "--to", dialect])
        == COMPLETED
    )
    keys = set(load_file(there))
    starts = {
        "diffusers": "transformer.transformer_blocks.0.attn.to_k.",
        "lycoris": "lycoris_transformer_blocks_0_attn_to_k.",
    }
    assert any(key.startswith(starts[dialect]) for key in keys) and not any("qkv" in key for key in keys)
    # One of the three is not there: it adds nothing.
    lacking = {key: value for key, value in load_file(there).items() if not key.startswith(starts[dialect])}
    save_file(lacking, tmp_path / "d.safetensors")
    for source, whole in ((there, True), (tmp_path / "d.safetensors", False)):
        assert main(["convert", "--model", str(source), "--save_to", str(back), "--overwrite"]) == COMPLETED
        after = load_file(back)
        assert {key.partition(".")[0] for key in after} == {key.partition(".")[0] for key in before}
        for name in {key.partition(".")[0] for key in before}:
            expected = product(before, name)
            if name == "lora_unet_double_blocks_0_img_attn_qkv" and not whole:
                expected[64:128] = 0
            close(product(after, name), expected)
            assert (
                whole == (after[f"{name}.lora_down.weight"].shape == before[f"{name}.lora_down.weight"].shape)
                or not whole
            )
    if dialect == "lycoris":
        return
    model: Any = tiny_flux.modules()[DENOISER]
    model.load_lora_adapter(load_file(there), prefix="transformer")
    found = model.transformer_blocks[0].attn.to_k.get_delta_weight("default_0")
    close(found.double(), product(before, "lora_unet_double_blocks_0_img_attn_qkv")[64:128])


def test_names_of_comfyui_and_of_onetrainer_are_read(tmp_path: Path) -> None:
    """Names of the original's layout with PEFT's matrices, and names of diffusers with kohya's."""
    keys = {
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (2, 3072),
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": (9216, 2),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (2, 768),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": (3072, 2),
        "lora_transformer_single_transformer_blocks_0_proj_mlp.lora_down.weight": (2, 3072),
        "lora_transformer_single_transformer_blocks_0_proj_mlp.lora_up.weight": (12288, 2),
    }
    save_file({key: torch.ones(shape) for key, shape in keys.items()}, tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    assert main(["convert", "--model", str(tmp_path / "a.safetensors"), "--save_to", str(target)]) == COMPLETED
    found = load_file(target)
    assert {key.partition(".")[0] for key in found} == {
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_unet_single_blocks_0_linear1",
    }
    up = found["lora_unet_single_blocks_0_linear1.lora_up.weight"]
    assert up.shape == (21504, 2) and not up[:9216].any() and (up[9216:] == 1).all()


def test_what_was_trained_apart_keeps_its_strength(tmp_path: Path) -> None:
    """sd-scripts writes four parts as one layer of four times the rank, with the alpha of one."""
    name = "lora_unet_single_blocks_0_linear1"
    tensors = {
        f"{name}.alpha": torch.tensor(4.0),
        f"{name}.lora_down.weight": numbers(1, 16, 3072),
        f"{name}.lora_up.weight": numbers(2, 21504, 16) * 0.01,
    }
    said = {"ss_base_model_version": "flux1", "ss_network_alpha": "4", "ss_network_args": '{"split_qkv": "True"}'}
    save_file(tensors, tmp_path / "a.safetensors", metadata=said)
    expected = 4 * product(tensors, name)
    for number, (tool, more) in enumerate(
        (("resize", ["--new_rank", "16"]), ("convert", []), ("resize", ["--new_rank", "16"]))
    ):
        source, target = (tmp_path / f"{letter}.safetensors" for letter in "abcd"[number : number + 2])
        words = [tool, "--model", str(source), "--save_to", str(target), "--save_precision", "float"]
        assert main([*words, *more]) == COMPLETED
        close(product(load_file(target), name), expected)
        with safe_open(target, "pt") as file:
            assert "split_qkv" not in file.metadata()["ss_network_args"]
