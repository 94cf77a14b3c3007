"""Extracting, converting, metadata and comparing: the tools around a LoRA that are not held to merges."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.build.single_file import write_single_file
from tests.helpers.adapters import tiny_targets
from tests.helpers.checkpoints import tiny_modules, tiny_sd15
from tests.helpers.families import TINY
from trainer.__main__ import COMPLETED, FAILED, REFUSED, main
from trainer.families import FAMILIES
from trainer.results.export import hashes

Capture = pytest.CaptureFixture[str]

RANK = 6


def planted(module: nn.Module, seed: int) -> None:
    """Add to every layer a difference of twelve singular values that halve from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                whole = layer.weight.flatten(1)
                count = min(12, *whole.shape)
                u, _ = torch.linalg.qr(torch.randn(whole.shape[0], count, generator=generator))
                v, _ = torch.linalg.qr(torch.randn(whole.shape[1], count, generator=generator))
                layer.weight += ((u * 2.0 ** -torch.arange(count)) @ v.T).view_as(layer.weight)


def pair(folder: Path, *, text: bool = True) -> tuple[Path, Path]:
    """A checkpoint and one that was made from it."""
    unet, vae, encoder = tiny_modules()
    write_single_file(folder / "org.safetensors", unet, vae, encoder, dtype=torch.float32)
    planted(unet, 1)
    if text:
        planted(encoder, 2)
    write_single_file(folder / "tuned.safetensors", unet, vae, encoder, dtype=torch.float32)
    return folder / "org.safetensors", folder / "tuned.safetensors"


def product(tensors: dict[str, Tensor], name: str) -> Tensor:
    up, down = (tensors[f"{name}.lora_{part}.weight"].flatten(1).double() for part in ("up", "down"))
    return tensors[f"{name}.alpha"].double() / down.shape[0] * up @ down


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--dim", "6"], 6),
        (["--dim", "4", "--conv_dim", "3"], 4),
        (["--dim", "64", "--dynamic_method", "sv_cumulative", "--dynamic_param", "0.9"], 5),
        (["--dim", "64", "--dynamic_method", "sv_ratio", "--dynamic_param", "10"], 5),
    ],
)
def test_extracting_keeps_the_largest_singular_values(tmp_path: Path, words: list[str], kept: int) -> None:
    org, tuned = pair(tmp_path)
    target = tmp_path / "lora.safetensors"
    common = ["extract", "--model_org", str(org), "--model_tuned", str(tuned), "--save_to", str(target)]
    assert main([*common, "--save_precision", "float", "--clamp_quantile", "1", *words]) == COMPLETED
    found, before, after = load_file(target), tiny_modules(), tiny_modules()
    planted(after[0], 1)
    planted(after[2], 2)
    models = {"unet": (before[0], after[0]), "text_encoder": (before[2], after[2])}
    conv = "--conv_dim" in words
    wanted = [each for each in tiny_targets() if not each.rim and (conv or not each.extra)]
    assert {key.partition(".")[0] for key in found} == {each.name for each in wanted}
    for each in wanted[:: len(wanted) // 20]:
        one, other = (module.get_submodule(each.path).weight.double().flatten(1) for module in models[each.component])
        u, s, v = torch.linalg.svd(other - one, full_matrices=False)
        rank = 3 if conv and each.kernel == (3, 3) else kept
        assert found[f"{each.name}.lora_down.weight"].shape[0] == rank
        close(product(found, each.name), (u[:, :rank] * s[:rank]) @ v[:rank])
    said = metadata(target)
    assert (said["ss_base_model_version"], said["ss_training_comment"]) == (
        "sd_v1",
        "extracted from tuned.safetensors - org.safetensors",
    )
    assert str(tmp_path) not in json.dumps(said)


def test_what_is_the_same_stays_out(tmp_path: Path, capsys: Capture) -> None:
    org, tuned = pair(tmp_path, text=False)
    target = tmp_path / "lora.safetensors"
    words = ["extract", "--model_org", str(org), "--save_to", str(target), "--model_tuned"]
    assert main([*words, str(tuned)]) == COMPLETED
    assert not any(key.startswith("lora_te") for key in load_file(target))
    (tmp_path / "copy.safetensors").write_bytes(org.read_bytes())
    target.unlink()
    xl = TINY["sdxl"].write_file(tmp_path / "xl.safetensors")
    (tmp_path / "lora.txt").write_text("no model")
    for other, said in (
        (str(tmp_path / "copy.safetensors"), "model_tuned: copy.safetensors has the weights of org.safetensors"),
        (str(org), "model_tuned: "),
        (str(xl), "both must be of one kind"),
        (str(tmp_path / "lora.txt"), "model_tuned: "),
    ):
        capsys.readouterr()
        assert main([*words, other]) == REFUSED
        assert said in capsys.readouterr().err
        assert not target.exists()


def lora(family: str, path: Path, alpha: float = 1.5, kind: str = "lora") -> dict[str, Tensor]:
    """A LoRA on every layer of a family's published model but the largest ones, of rank 2."""
    layers = [each for each in FAMILIES[family].targets(FAMILIES[family].configs, conv=True) if not each.rim]
    generator, tensors = torch.Generator().manual_seed(3), {}
    for each in layers[:: len(layers) // 16]:
        kernel = each.kernel or ()
        tensors[f"{each.name}.alpha"] = torch.tensor(alpha)
        tensors[f"{each.name}.lora_down.weight"] = torch.randn(2, each.in_features, *kernel, generator=generator)
        up = torch.randn(each.out_features, 2, *(1,) * len(kernel), generator=generator)
        tensors[f"{each.name}.lora_up.weight"] = up
    save_file(tensors, path, metadata={"ss_output_name": "mine", "sshs_model_hash": "old"})
    return tensors


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("dialect", ["diffusers", "lycoris"])
def test_there_and_back_again(tmp_path: Path, family: str, dialect: str) -> None:
    before = lora(family, tmp_path / "a.safetensors")
    there, back = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    words = ["convert", "--model", str(tmp_path / "a.safetensors"), "--save_to", str(there), "--to", dialect]
    two = family == "sdxl" and dialect == "lycoris"
    assert main([*words, "--family", family]) == (REFUSED if two else COMPLETED)
    if two:
        return
    keys = set(load_file(there))
    assert not keys & set(before)
    assert main(["convert", "--model", str(there), "--save_to", str(back), "--family", family]) == COMPLETED
    after = load_file(back)
    assert after.keys() == before.keys()
    for name in {key.partition(".")[0] for key in before}:
        close(product(after, name), product(before, name))
    assert metadata(back)["ss_output_name"] == "mine" and metadata(back)["sshs_model_hash"] != "old"


def test_diffusers_reads_what_is_converted(tmp_path: Path) -> None:
    """Its loader takes the file, and its layers then do what the LoRA's matrices say. The model is a narrow one."""
    from diffusers import UNet2DConditionModel
    from peft.tuners.lora import LoraLayer

    unet: UNet2DConditionModel = tiny_modules()[0]
    tensors, generator = {}, torch.Generator().manual_seed(4)
    layers = [each for each in tiny_targets(conv=False) if each.component == "unet"]
    for each in layers:
        kernel = each.kernel or ()
        tensors[f"{each.name}.alpha"] = torch.tensor(3.0)
        tensors[f"{each.name}.lora_down.weight"] = torch.randn(4, each.in_features, *kernel, generator=generator)
        up = torch.randn(each.out_features, 4, *(1,) * len(kernel), generator=generator)
        tensors[f"{each.name}.lora_up.weight"] = up
    save_file(tensors, tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    words = ["convert", "--model", str(tmp_path / "a.safetensors"), "--save_to", str(target), "--to", "diffusers"]
    assert main(words) == COMPLETED
    unet.load_lora_adapter({key.removeprefix("unet."): value for key, value in load_file(target).items()}, prefix=None)
    for each in layers:
        layer = unet.get_submodule(each.path)
        assert isinstance(layer, LoraLayer)
        close(layer.get_delta_weight("default_0").flatten(1).double(), product(tensors, each.name))


def test_projections_of_stable_diffusion_2_take_either_shape(tmp_path: Path) -> None:
    before = lora("sd2", tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    words = ["convert", "--model", str(tmp_path / "a.safetensors"), "--save_to", str(target), "--overwrite"]
    for wanted, sides in (("conv", 4), ("linear", 2)):
        assert main([*words, "--family", "sd2", "--projections", wanted]) == COMPLETED
        after = load_file(target)
        found = [key for key in after if "proj_in.lora" in key or "proj_out.lora" in key]
        assert found and all(after[key].dim() == sides for key in found)
        assert all(torch.equal(after[key].flatten(), before[key].flatten()) for key in before)


def test_what_cannot_be_converted_is_refused(tmp_path: Path, capsys: Capture) -> None:
    lora("sd15", tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({"x.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    save_file({**tensors, "lora_unet_somewhere.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    half = {key: value for key, value in tensors.items() if key != next(key for key in tensors if "lora_up" in key)}
    save_file(half, tmp_path / "half.safetensors")
    name = next(iter(tensors)).partition(".")[0]
    save_file({f"{name}.hada_w1_a": torch.zeros(2, 2)}, tmp_path / "loha.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    for file, said in (
        ("x.safetensors", "model: "),
        ("odd.safetensors", "mean no layer of"),
        ("half.safetensors", "lacks one of the two matrices"),
        ("loha.safetensors", "to: "),
        ("gone.safetensors", "model: "),
    ):
        words = ["convert", "--model", str(tmp_path / file), "--save_to", str(tmp_path / "new.safetensors")]
        capsys.readouterr()
        assert main([*words, "--to", "diffusers"]) == REFUSED
        printed = capsys.readouterr().err
        assert said in printed and printed.count("\n") == 1, printed
        assert {path.name for path in tmp_path.iterdir()} == before


def test_metadata_are_told_and_edited(tmp_path: Path, capsys: Capture) -> None:
    before = lora("sd15", tmp_path / "a.safetensors")
    assert main(["metadata", str(tmp_path / "a.safetensors")]) == COMPLETED
    assert json.loads(capsys.readouterr().out)["ss_output_name"] == "mine"
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "red.png")
    words = ["--metadata_title", "A title", "--metadata_tags", "one, two", "--thumbnail", str(tmp_path / "red.png")]
    target = tmp_path / "b.safetensors"
    assert main(["metadata", str(tmp_path / "a.safetensors"), *words, "--save_to", str(target)]) == COMPLETED
    said, after = metadata(target), load_file(target)
    assert (said["modelspec.title"], said["modelspec.tags"], said["ss_output_name"]) == ("A title", "one, two", "mine")
    with Image.open(io.BytesIO(base64.b64decode(said["modelspec.thumbnail"].partition(",")[2]))) as picture:
        assert picture.size == (512, 256)
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    content = target.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    del table["__metadata__"]
    assert {key: said[key] for key in said if key.startswith("sshs_")} == hashes(
        said, table, memoryview(content)[start:]
    )
    assert main(["metadata", str(target), "--save_to", str(tmp_path / "c.safetensors")]) == REFUSED
    assert main(["metadata", str(target), *words, "--save_to", str(target), "--overwrite"]) == REFUSED
    (tmp_path / "no.png").write_text("no picture")
    more = ["--thumbnail", str(tmp_path / "no.png"), "--save_to", str(tmp_path / "c.safetensors")]
    assert main(["metadata", str(target), *more]) == REFUSED
    assert not (tmp_path / "c.safetensors").exists()


def test_a_checkpoints_hash_is_renewed(tmp_path: Path) -> None:
    source = tiny_sd15(tmp_path)
    tensors = load_file(source)
    save_file(tensors, source, metadata={**metadata(source), "modelspec.hash_sha256": "0xold"})
    target = tmp_path / "b.safetensors"
    words = ["metadata", str(source), "--metadata_author", "me", "--save_to", str(target)]
    assert main(words) == COMPLETED
    content = target.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata(target)["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"
    assert "sshs_model_hash" not in metadata(target)


def test_comparing_tells_how_far_two_files_are_apart(tmp_path: Path, capsys: Capture) -> None:
    tensors = lora("sd15", tmp_path / "a.safetensors")
    name = next(key for key in tensors if key.startswith("lora_unet")).partition(".")[0]
    changed = {**tensors, f"{name}.lora_up.weight": 2 * tensors[f"{name}.lora_up.weight"]}
    alone = next(key for key in tensors if key.startswith("lora_te")).partition(".")[0]
    changed = {key: value for key, value in changed.items() if not key.startswith(f"{alone}.")}
    save_file(changed, tmp_path / "b.safetensors", metadata={"ss_output_name": "yours"})
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]) == COMPLETED
    printed = capsys.readouterr().out
    layers = len({key.partition(".")[0] for key in tensors})
    assert f"Only in a.safetensors: 1 layer: {alone}" in printed
    assert "ss_output_name: mine | yours" in printed
    assert f"The same numbers: {layers - 2} of {layers - 1}" in printed
    norm = float(product(tensors, name).norm())
    assert f"Norm of the difference: {norm:.6g}," in printed
    assert main(["compare", str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors")]) == COMPLETED
    assert "The numbers are the same in all" in capsys.readouterr().out

    org, tuned = pair(tmp_path, text=False)
    assert main(["compare", str(org), str(tuned)]) == COMPLETED
    printed = capsys.readouterr().out
    assert "Largest difference of a number:" in printed and "diffusion_model.input_blocks.1" in printed
    assert main(["compare", str(org), str(tmp_path / "a.safetensors")]) == REFUSED
    assert capsys.readouterr().err.startswith("second: ")


def test_verifying_names_keys_that_no_loader_would_know(tmp_path: Path, capsys: Capture) -> None:
    tensors = lora("sd15", tmp_path / "a.safetensors")
    save_file({**tensors, "somewhere.weight_of_mine": torch.zeros(2)}, tmp_path / "b.safetensors")
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "b.safetensors")]) == FAILED
    printed = capsys.readouterr().out
    assert "Fault: keys that no program knows: somewhere.weight_of_mine" in printed
