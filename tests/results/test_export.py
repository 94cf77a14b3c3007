"""LoRA files: whole or not there, what other programs expect, and read back from others."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from torch import nn

from tests.helpers.adapters import Network, components, fill, outputs, tiny_targets
from tests.helpers.checkpoints import tiny_modules
from trainer.adapters import make_spec
from trainer.adapters.lora.adapter import LoraAdapter
from trainer.ground.errors import ModelError, RunError
from trainer.results import export

BOTH = ("unet", "text_encoder")
CONV = Network(network_dim=4, network_alpha=1.0, conv_dim=2, conv_alpha=3.0)
NAME = "lora_unet_mid_block_attentions_0_proj_in"


def trained(network: Network = CONV, parts: tuple[str, ...] = BOTH) -> tuple[dict[str, nn.Module], LoraAdapter]:
    """Return the tiny models with a LoRA as after training."""
    models = components()
    adapter = make_spec(network, parts).build(models, tiny_targets(), seed=1)
    fill(adapter.tensors())
    return models, adapter


@pytest.fixture(scope="module")
def conv() -> tuple[dict[str, nn.Module], LoraAdapter]:
    """Return the tiny models with a LoRA on every layer, for tests that only look."""
    return trained()


def small(value: float = 1.0) -> dict[str, torch.Tensor]:
    """Return one module of a LoRA of rank 3."""
    return {
        f"{NAME}.alpha": torch.tensor(1.5),
        f"{NAME}.lora_down.weight": torch.full((3, 64, 1, 1), value),
        f"{NAME}.lora_up.weight": torch.full((64, 3, 1, 1), value),
    }


@pytest.mark.parametrize("network", [Network(network_dim=4, network_alpha=1.0), CONV], ids=["linear", "conv"])
def test_diffusers_loads_the_file_and_gives_the_training_models_output(tmp_path: Path, network: Network) -> None:
    models, adapter = trained(network)
    path = tmp_path / "lora.safetensors"
    export.save(path, adapter.tensors(), {"ss_network_module": "networks.lora"}, "float")
    unet, vae, text_encoder = tiny_modules()
    plain = outputs({"unet": unet, "text_encoder": text_encoder})
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, None, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    pipeline.load_lora_weights(path)
    loaded = outputs({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    for ours, theirs, untrained in zip(outputs(models), loaded, plain, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
        assert (untrained - ours).abs().max() > 0.01, "the LoRA must matter for the comparison to mean anything"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("float", torch.float32)]
)
def test_every_tensor_has_the_save_precision(
    tmp_path: Path, conv: tuple[dict[str, nn.Module], LoraAdapter], precision: str, dtype: torch.dtype
) -> None:
    _, adapter = conv
    path = tmp_path / "lora.safetensors"
    size = export.save(path, adapter.tensors(), {"ss_epoch": "1"}, precision)
    assert path.stat().st_size == size
    assert [entry.name for entry in path.parent.iterdir()] == ["lora.safetensors"]
    with safe_open(path, "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        assert file.metadata()["ss_epoch"] == "1"
    expected = adapter.tensors()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value.to(dtype)), key


def test_a_lora_goes_on_from_its_file_exactly(tmp_path: Path, conv: tuple[dict[str, nn.Module], LoraAdapter]) -> None:
    models, adapter = conv
    path = tmp_path / "lora.safetensors"
    export.save(path, adapter.tensors(), {}, "float")
    file = export.read_adapter(path)
    network = Network(network_dim=99, network_alpha=7, network_weights=str(path), dim_from_weights=True)
    again = components()
    other = make_spec(network, BOTH).build(again, tiny_targets(), seed=2)
    assert other.load(file.tensors, source=path.name) == ()
    assert all(torch.equal(one, two) for one, two in zip(outputs(models), outputs(again), strict=True))
    assert (file.header.ranks[NAME], file.header.alphas[NAME]) == (4, 1.0)


def test_network_weights_of_another_rank_are_refused(
    tmp_path: Path, conv: tuple[dict[str, nn.Module], LoraAdapter]
) -> None:
    path = tmp_path / "lora.safetensors"
    export.save(path, conv[1].tensors(), {}, "fp16")
    other = make_spec(Network(network_dim=6), ["text_encoder"]).build(components(), tiny_targets(), seed=2)
    with pytest.raises(ModelError, match=r"lora\.safetensors: .* is \[4, 32\], this LoRA has \[6, 32\] \(rank 6\)"):
        other.load(export.read_adapter(path).tensors, strict=False, source=path.name)


@pytest.mark.parametrize("width", [64, 400_000], ids=["smaller than 1 MiB", "larger"])
def test_hashes_are_those_of_sd_scripts(tmp_path: Path, width: int) -> None:
    tensors = {"x.lora_down.weight": torch.arange(3 * width).reshape(3, width) % 1000 / 10, "x.alpha": torch.ones(())}
    metadata = {"ss_output_name": "näme\n", "ss_epoch": "1", "modelspec.title": "not hashed"}
    path = tmp_path / "lora.safetensors"
    export.save(path, tensors, metadata, "fp16")
    with safe_open(path, "pt") as file:
        written = file.metadata()
    half = {key: tensor.half() for key, tensor in tensors.items()}
    content = io.BytesIO(safetensors.torch.save(half, {key: metadata[key] for key in ("ss_output_name", "ss_epoch")}))
    content.seek(8 + int.from_bytes(content.read(8), "little"))
    assert written.pop("sshs_model_hash") == hashlib.sha256(content.read()).hexdigest()
    content.seek(0x100000)
    assert written.pop("sshs_legacy_hash") == hashlib.sha256(content.read(0x10000)).hexdigest()[:8]
    assert written == metadata


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    metadata = {f"ss_{number}": str(number) for number in range(20)}
    backwards = dict(reversed(metadata.items()))
    export.save(tmp_path / "one", small(), metadata, "fp16")
    export.save(tmp_path / "two", small(), backwards, "fp16")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_names_that_are_no_unicode_do_not_spoil_the_file(tmp_path: Path) -> None:
    export.save(tmp_path / "lora", small(), {"ss_dataset_dirs": "1_caf\udce9"}, "fp16")
    assert export.read_adapter(tmp_path / "lora").header.metadata["ss_dataset_dirs"] == "1_caf?"


@pytest.mark.parametrize(
    ("value", "precision", "message"),
    [
        (float("nan"), "float", "not finite; the training has diverged"),
        (float("inf"), "fp16", "not finite; the training has diverged"),
        (70_000.0, "fp16", r"too large for fp16.*save_precision"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(
    tmp_path: Path, value: float, precision: str, message: str
) -> None:
    path = tmp_path / "lora.safetensors"
    export.save(path, small(), {}, precision)
    before = path.read_bytes()
    with pytest.raises(RunError, match=rf"lora\.safetensors was not written: {NAME}.lora_down.weight has .*{message}"):
        export.save(path, small(value), {}, precision)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora.safetensors"]


def test_large_numbers_fit_into_bf16(tmp_path: Path) -> None:
    export.save(tmp_path / "lora", small(70_000.0), {}, "bf16")
    assert export.read_adapter(tmp_path / "lora").tensors[f"{NAME}.lora_up.weight"].max() > 60_000


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    path = tmp_path / "lora.safetensors"
    export.save(path, small(), {}, "fp16")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match=r"lora\.safetensors can't be written: the disk is full, .* MB are needed"):
            export.save(
                path,
                {key: value.repeat_interleave(50) if value.dim() else value for key, value in small().items()},
                {},
                "float",
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora.safetensors"]


def test_a_place_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RunError, match=r"file.lora\.safetensors can't be written: .*output_dir"):
        export.save(blocked / "lora.safetensors", small(), {}, "fp16")
    taken = tmp_path / "lora.safetensors"
    taken.mkdir()
    with pytest.raises(RunError, match=r"lora\.safetensors can't be written"):
        export.save(taken, small(), {}, "fp16")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "lora.safetensors"]


def test_a_file_that_does_not_hold_what_was_written_is_noticed() -> None:
    tensors = {key: value.half() for key, value in small().items()}
    content = safetensors.torch.save(tensors)
    assert export._holds(content, tensors)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    first = {f"{NAME}.alpha": tensors[f"{NAME}.alpha"]}
    for wrong, expected in (
        (bytes(flipped), tensors),
        (content[:-2], tensors),
        (content, {**tensors, "more": torch.ones(1)}),
        (content, first),
        (content, small()),
    ):
        assert not export._holds(wrong, expected)


@pytest.mark.parametrize("alpha", [None, torch.tensor(3), torch.tensor(3, dtype=torch.float16)])
def test_a_file_without_alpha_or_with_an_odd_one_reads_as_its_number(
    tmp_path: Path, alpha: torch.Tensor | None
) -> None:
    tensors = {key: value for key, value in small().items() if not key.endswith("alpha")}
    if alpha is not None:
        tensors[f"{NAME}.alpha"] = alpha
    path = tmp_path / "some.safetensors"
    safetensors.torch.save_file(tensors, path, {"ss_network_dim": "3"})
    file = export.read_adapter(path)
    assert (file.header.ranks, file.header.alphas) == ({NAME: 3}, {NAME: 3.0})
    assert file.tensors[f"{NAME}.alpha"].dtype == torch.float32
    assert file.header.metadata == {"ss_network_dim": "3"}
    targets = [target for target in tiny_targets() if "mid_block" in target.name]
    other = make_spec(Network(network_dim=3, network_alpha=3.0), ["unet"]).build(components(), targets, seed=2)
    assert other.load(file.tensors, strict=False)[0].startswith("The LoRA lacks")
    assert torch.equal(other.tensors()[f"{NAME}.lora_down.weight"], tensors[f"{NAME}.lora_down.weight"])


def test_lora_files_of_no_use_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    safetensors.torch.save_file(small(float("nan")), path)
    with pytest.raises(
        ModelError, match=rf"some\.safetensors: {NAME}.lora_down.weight has numbers that are not finite"
    ):
        export.read_adapter(path)
    safetensors.torch.save_file({"model.diffusion_model.out.0.weight": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="a checkpoint, not a LoRA"):
        export.read_adapter(path)
    header = json.dumps({key: {"dtype": "F32", "shape": [3, 9], "data_offsets": [0, 4]} for key in small()}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=r"some\.safetensors"):
        export.read_adapter(path)


@pytest.mark.parametrize("alpha", [1e-8, 1e-6, 70000.0, 0.5, 0.0])
def test_an_alpha_that_half_precision_cannot_hold_is_saved_as_it_is(tmp_path: Path, alpha: float) -> None:
    """As 0 it would be read as the rank, and the LoRA be a hundred million times too strong."""
    tensors = {f"{NAME}.alpha": torch.tensor(alpha)}
    tensors |= {f"{NAME}.lora_down.weight": torch.ones(4, 8), f"{NAME}.lora_up.weight": torch.ones(8, 4)}
    export.save(tmp_path / "x.safetensors", tensors, {}, "fp16")
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert float(found[f"{NAME}.alpha"]) == pytest.approx(alpha, rel=1e-3)
    assert found[f"{NAME}.lora_up.weight"].dtype == torch.float16
    assert (found[f"{NAME}.alpha"].dtype == torch.float16) == (alpha in (0.0, 0.5))
